"""One platform for all integration tests, started as a user starts it; tests take device ids of their own."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from field import mqtt_client
from log_audit import LogAudit, audit
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.actors.fleet import Fleet, connect
from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory with a short path, since it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="sens-it-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def mosquitto(short_dir: Path) -> Iterator[RealMosquitto | None]:
    """The broker of the shared platform; None (the embedded one) where Mosquitto is not installed."""
    if MOSQUITTO is None:
        yield None
        return
    directory = short_dir / "broker"
    directory.mkdir()
    broker = RealMosquitto(directory)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def platform(short_dir: Path, mosquitto: RealMosquitto | None) -> Iterator[PlatformProcess]:
    """The shared platform. When the session ends, it must end well and leave no process."""
    environment = {} if mosquitto is None else {"MQTT_BROKER_URL": mosquitto.url}
    running = PlatformProcess(short_dir / "main", free_port(), free_port(), environment=environment)
    try:
        running.start()
        yield running
        code = running.stop(signal.SIGTERM)
        assert code == 0, running.errors
        assert running.left(within_s=10) == []
    finally:
        running.close()


@pytest.fixture(scope="session")
def broker(platform: PlatformProcess, mosquitto: RealMosquitto | None) -> BrokerAddress:
    """Where devices publish."""
    return (
        BrokerAddress(host="127.0.0.1", port=platform.mqtt_port) if mosquitto is None else mosquitto.address
    )


@pytest.fixture(scope="session")
async def api(platform: PlatformProcess) -> AsyncIterator[httpx.AsyncClient]:
    """The HTTP API of the shared platform."""
    async with httpx.AsyncClient(base_url=platform.state.http_url, timeout=15.0) as client:
        yield client


@pytest.fixture(scope="session")
async def device_client(broker: BrokerAddress) -> AsyncIterator[MqttClient]:
    """An MQTT connection to publish with."""
    async with mqtt_client(broker, "integration-tests") as client:
        yield client


@pytest.fixture(scope="session")
def fleet(platform: PlatformProcess) -> Iterator[Fleet]:
    """The notebook's door, which also knows the processes of the hosts."""
    yield connect(platform.state.ray_address)
    ray.shutdown()


@pytest.fixture
async def log(platform: PlatformProcess) -> AsyncIterator[LogAudit]:
    """A look into the log of the shared platform."""
    async with audit(platform.state.database) as looking:
        yield looking


Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """`await eventually(ask, accept, deadline_s)`: the first answer of `ask()` that `accept` likes."""

    async def wait(
        ask: Callable[[], Awaitable[Any]], accept: Callable[[Any], object] = bool, deadline_s: float = 15.0
    ) -> Any:
        answer = None
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    answer = await ask()
                    if accept(answer):
                        return answer
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s:g} s; last: {answer!r}"[:2000]) from None

    return wait
