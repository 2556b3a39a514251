"""The command line on a machine where another platform runs: killed, in the way of others, mistaken."""

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess, run_sensorium
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.ingest.broker import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

SHUT_DOWN_WITHIN_S = 15.0
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""After a kill they wait a minute for Ray's control store to come back. They hold nothing of ours."""


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """A short path of this test's own."""
    path = Path(tempfile.mkdtemp(prefix="sens-cli-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_kill_9_leaves_nothing_and_loses_nothing(own_dir: Path) -> None:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; the embedded broker dies with the platform, and what it has")
    broker = RealMosquitto(own_dir)
    broker.start()
    run = PlatformProcess(
        own_dir / "p", free_port(), free_port(), environment={"MQTT_BROKER_URL": broker.url}
    )
    ids = [f"killed-{n}" for n in range(50)]
    try:
        await asyncio.to_thread(run.start)
        async with httpx.AsyncClient(base_url=run.state.http_url, timeout=10) as api:
            for device_id in ids:
                body = {"device_id": device_id, "device_type": "killed"}
                assert (await api.post("/api/devices", json=body)).status_code == 201
        async with mqtt_client(broker.address, "kill-9") as client, Load(client, ids, 1000) as load:
            await load.more(500)
            await asyncio.to_thread(run.kill)
            await load.more(500)
            assert await asyncio.to_thread(run.left, SHUT_DOWN_WITHIN_S, RAYS_AGENTS) == []
            await asyncio.to_thread(run.start)
            await load.more(300)
        async with audit(run.state.database) as log:
            async with httpx.AsyncClient(base_url=run.state.http_url, timeout=10) as api:
                last = {}
                wanted = {device_id: sent - 1 for device_id, sent in load.sent.items()}
                end_s = time.monotonic() + 30
                while last != wanted and time.monotonic() < end_s:
                    for device_id in ids:
                        page = (await api.get(f"/api/devices/{device_id}/data/latest")).json()
                        newest = page.get("metrics", {})  # a problem document, while all starts at once
                        last[device_id] = newest.get("sequence", {"value": -1})["value"]
            assert last == wanted
            stored = await log.stored(ids, "sequence")
            assert stored == {device_id: list(range(sent)) for device_id, sent in load.sent.items()}
            assert await log.faulty_shards() == []
        assert await asyncio.to_thread(run.stop) == 0, run.errors
        assert await asyncio.to_thread(run.left, SHUT_DOWN_WITHIN_S, RAYS_AGENTS) == []
    finally:
        run.close()
        broker.stop()


@pytest.mark.parametrize("option", ["--http-port", "--mqtt-port"])
def test_a_port_that_is_taken_is_told_in_one_line(own_dir: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"--http-port": free_port(), "--mqtt-port": free_port(), option: port}
        run = PlatformProcess(own_dir / "p", ports["--http-port"], ports["--mqtt-port"])
        try:
            run.spawn()
            assert run.wait(60) in (1, 2)
            told = [line for line in run.errors.splitlines() if line.startswith("sensorium: ")]
            assert len(told) == 1, run.errors
            assert str(port) in told[0]
            assert "Traceback" not in run.errors
            assert run.left(within_s=SHUT_DOWN_WITHIN_S) == []
        finally:
            run.close()


def test_a_mistake_in_the_configuration_is_one_line(own_dir: Path) -> None:
    config = own_dir / "platform.yaml"
    config.write_text("mqtt:\n  prot: 1883\n")
    run = run_sensorium("up", "--data-dir", own_dir / "p", "--config", config)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "platform.yaml:2: mqtt.prot: unknown key" in run.stderr
    assert msgspec.json.encode(run.stdout) == b'""'
