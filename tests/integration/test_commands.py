"""The command line on a machine where another platform runs: start, look, stop, start again, be killed."""

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess, run_sensorium, status_json, wait_until
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.ingest.broker import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

RULE = {
    "name": "Tank empty",
    "scope": {"device_type": "tank"},
    "condition": {"type": "threshold", "metric": "level", "operator": "<", "value": 5},
}
SHUT_DOWN_WITHIN_S = 15.0
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""After a kill they wait a minute for Ray's control store to come back. They hold nothing of ours."""


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """A short path of this test's own."""
    path = Path(tempfile.mkdtemp(prefix="sens-cli-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def known(url: str) -> dict[str, Any]:
    """What a platform knows of the tanks: it must be the same after a restart."""
    with httpx.Client(base_url=url, timeout=10) as api:
        return {
            path: api.get(path).raise_for_status().json()
            for path in (
                "/api/devices",
                "/api/analytics/rules",
                "/api/alarms",
                "/api/devices/tank-1/data",
                "/api/devices/tank-1/data/latest",
                "/api/devices/tank-1/window/level",
            )
        }


def test_two_platforms_and_a_restart(platform: PlatformProcess, own_dir: Path) -> None:
    """Beside the shared one, on other ports and another directory; ended by SIGINT and by `down`."""
    first = PlatformProcess(own_dir / "p", free_port(), free_port())
    now_ms = time.time_ns() // 1_000_000
    readings = [{"level": 40.0 - n, "timestamp": now_ms - 60_000 + n * 1000} for n in range(40)]
    try:
        first.start()
        url = first.state.http_url
        status = status_json(first.data_dir)
        assert (status["phase"], status["ready"], status["pid"]) == ("ready", True, first.pid)
        assert (status["http_url"], status["hosts"]) == (url, psutil.cpu_count())
        assert status["ray_address"] != platform.state.ray_address
        assert "check database" in run_sensorium("status", "--data-dir", first.data_dir).stdout
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert {p.nice() for p in first.processes()} == {ours}, "processes that give way to all others"
        assert first.http_port in first.listening()
        assert first.listening() & platform.listening() == set(), "ports that answer for both"

        again = run_sensorium("up", "--data-dir", first.data_dir, "--http-port", str(free_port()))
        assert again.returncode == 1
        assert again.stderr.count("\n") == 1
        assert f"(pid {first.pid})" in again.stderr

        with httpx.Client(base_url=url, timeout=10) as api:
            for device in ("tank-1", "tank-2"):
                body = {"device_id": device, "device_type": "tank", "metadata": {"site": "a"}}
                assert api.post("/api/devices", json=body).status_code == 201
            assert api.post("/api/analytics/rules", json=RULE).status_code == 201
            wait_until(lambda: hot(api, readings), 10, "the alarm")
        before = known(url)
        assert before["/api/devices/tank-1/window/level"]["count"] == len(readings)
        assert first.stop(signal.SIGINT) == 0, first.errors
        assert first.left(within_s=SHUT_DOWN_WITHIN_S) == []
        assert run_sensorium("status", "--data-dir", first.data_dir).returncode == 1

        first.start()
        assert known(url) == before
        with httpx.Client(base_url=url, timeout=10) as api:
            response = api.post("/api/devices/tank-1/data", json=readings)
            assert (response.status_code, response.json()["duplicates"]) == (200, len(readings))
        first.processes()
        down = run_sensorium("down", "--data-dir", first.data_dir)
        assert (down.returncode, down.stdout) == (0, f"stopped (pid {first.pid})\n")
        assert first.wait() == 0
        assert first.left(within_s=SHUT_DOWN_WITHIN_S) == []
        nobody = run_sensorium("down", "--data-dir", first.data_dir)
        assert (nobody.returncode, nobody.stdout.count("\n")) == (0, 1)
    finally:
        first.close()
    with httpx.Client(base_url=platform.state.http_url, timeout=10) as api:
        assert api.get("/readyz").status_code == 200, "the other platform is unharmed"
        assert api.get("/api/devices/tank-1").status_code == 404


def hot(api: httpx.Client, readings: list[dict[str, Any]]) -> bool:
    """Send the readings (again); whether the rule was there when they first came, or has seen the last."""
    response = api.post("/api/devices/tank-1/data", json=readings)
    assert response.status_code in (200, 201), response.text
    low = {"level": 1.0, "timestamp": readings[-1]["timestamp"]}
    assert api.post("/api/devices/tank-2/data", json=low).status_code in (200, 201)
    return bool(api.get("/api/alarms").json()["items"])


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
