"""A platform under load whose calls between processes fail all the time, by Ray's own fault injection."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, RealMosquitto
from recovery import recovered
from rpc_faults import failing_calls

from sensorium.ingest.broker import free_port

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="it needs Mosquitto, which is not installed"),
]

DEVICES = 100
MESSAGES_PER_S = 200.0
LOAD_S = 20.0


@pytest.fixture(scope="module")
def broker(short_dir: Path) -> Iterator[RealMosquitto]:
    """The devices' broker, which is no part of what fails."""
    running = RealMosquitto(short_dir)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def platform(short_dir: Path, broker: RealMosquitto) -> Iterator[PlatformProcess]:
    """One call in ten fails from its first start on."""
    environment = {"MQTT_BROKER_URL": broker.url, **failing_calls(4, 4, 2, late_us=20_000)}
    running = PlatformProcess(short_dir / "rpc", free_port(), free_port(), environment=environment)
    try:
        running.start()
        yield running
        assert running.stop() == 0, running.errors
    finally:
        running.close()


@pytest.fixture
async def api(platform: PlatformProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API."""
    async with httpx.AsyncClient(base_url=platform.state.http_url, timeout=30) as client:
        yield client


def injected(platform: PlatformProcess) -> int:
    """How many calls Ray says it has let fail."""
    (raylet,) = platform.named("raylet")
    (session,) = [part.partition("=")[2] for part in raylet.cmdline() if part.startswith("--session_dir=")]
    logs = Path(session, "logs").glob("*.log")
    return sum(log.read_text(errors="replace").count("Inject RPC") for log in logs)


async def registered(api: httpx.AsyncClient, device_id: str) -> None:
    """Register it, again while the answer is that it cannot be said."""
    body = {"device_id": device_id, "device_type": "called"}
    async with asyncio.timeout(30):
        while (await api.post("/api/devices", json=body)).status_code not in (201, 409):
            await asyncio.sleep(0.1)


async def test_calls_that_fail_lose_and_double_nothing(
    platform: PlatformProcess, broker: RealMosquitto, api: httpx.AsyncClient
) -> None:
    ids = [f"rpc-{n:03}" for n in range(DEVICES)]
    for device_id in ids:
        await registered(api, device_id)
    dsn = platform.state.database
    async with mqtt_client(broker.address, "rpc") as client, Load(client, ids, MESSAGES_PER_S) as load:
        await load.more(int(LOAD_S * MESSAGES_PER_S), deadline_s=3 * LOAD_S)
        took_s = await recovered(dsn, load, dict(load.sent), 60.0)
        print(f"every device served within {took_s:.1f} s while calls fail")
    async with audit(dsn) as log:
        async with asyncio.timeout(60):
            while await log.count(ids) < load.total:
                await asyncio.sleep(0.1)
        stored = await log.stored(ids, "sequence")
        assert stored == {device_id: list(range(sent)) for device_id, sent in load.sent.items()}
        assert await log.faulty_shards() == []
    assert injected(platform) > 0, "no call failed by injection: the test proves nothing"
