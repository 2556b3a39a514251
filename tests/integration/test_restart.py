"""A platform that is ended and started again beside another: what it keeps, what it says, what goes on.

Starting one takes half a minute. So all that a restart is about is told as stories about one platform: the
first half of each, up to its `yield`, before the platform ends, the second after it has started again.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import psutil
import pytest
import websockets
from conftest import Eventually
from event_stream import curl, values_of
from log_audit import audit
from own_process import isolated, process_of, shown
from platform_process import PlatformProcess, run_sensorium, status_json

from sensorium.ingest.broker import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CONFIG = """
cluster: {max_isolated_devices: 2}
profiles:
  press: {isolation: process}
  oven: {isolation: process, isolation_resources: {resources: {nobody_has_it: 1}}}
"""
RULE = {
    "name": "Tank empty",
    "scope": {"device_type": "tank"},
    "condition": {"type": "threshold", "metric": "level", "operator": "<", "value": 5},
}
TANKS = (
    "/api/devices?type=tank",
    "/api/analytics/rules",
    "/api/alarms",
    "/api/devices/tank-1/data",
    "/api/devices/tank-1/data/latest",
    "/api/devices/tank-1/window/level",
)
DEADLINE_S = 15.0
SHUT_DOWN_WITHIN_S = 15.0


class World(NamedTuple):
    """The platform that is ended and started again, at the same address, and how to look at it."""

    platform: PlatformProcess
    api: httpx.AsyncClient
    eventually: Eventually

    async def register(self, device_id: str, device_type: str) -> None:
        body = {"device_id": device_id, "device_type": device_type, "metadata": {"site": "a"}}
        assert (await self.api.post("/api/devices", json=body)).status_code == 201

    async def send(self, device_id: str, readings: Any) -> dict[str, Any]:
        answer = await self.api.post(f"/api/devices/{device_id}/data", json=readings)
        assert answer.status_code in (200, 201), answer.text
        found: dict[str, Any] = answer.json()
        return found


async def same_answers(world: World) -> AsyncIterator[None]:
    """Devices, rules, alarms, readings and windows are what they were; what was stored is known."""
    now_ms = time.time_ns() // 1_000_000
    readings = [{"level": 40.0 - n, "timestamp": now_ms - 60_000 + n * 1000} for n in range(40)]
    low = {"level": 1.0, "timestamp": readings[-1]["timestamp"]}

    async def known() -> dict[str, Any]:
        return {path: (await world.api.get(path)).raise_for_status().json() for path in TANKS}

    async def raised() -> Any:
        # Sent again, since the rule may not have been there when they came first.
        await world.send("tank-1", readings)
        await world.send("tank-2", low)
        return (await world.api.get("/api/alarms")).json()["items"]

    for device_id in ("tank-1", "tank-2"):
        await world.register(device_id, "tank")
    assert (await world.api.post("/api/analytics/rules", json=RULE)).status_code == 201
    await world.eventually(raised)
    before = await known()
    assert before["/api/devices/tank-1/window/level"]["count"] == len(readings)
    yield
    assert await known() == before
    assert (await world.send("tank-1", readings))["duplicates"] == len(readings)


async def streams(world: World) -> AsyncIterator[None]:
    """Streams do not hold the end up, are told of it, and go on behind where they were."""
    await world.register("live-4", "pump")
    url = f"{world.platform.state.http_url}/api/live?device_id=live-4&topics=readings"
    socket_url = url.replace("http://", "ws://").replace("/api/live", "/ws")
    async with (
        curl(f"{url}&snapshot=false") as stream,
        websockets.connect(f"{socket_url}&snapshot=false") as socket,
    ):
        await world.send("live-4", {"pressure": 1.0})
        async with asyncio.timeout(DEADLINE_S):
            event = await anext(stream)
            assert msgspec.json.decode(await socket.recv())["items"]
        yield
        with suppress(websockets.ConnectionClosed):
            async with asyncio.timeout(DEADLINE_S):
                async for _ in socket:
                    pass
    await world.send("live-4", {"pressure": 2.0})
    async with curl(url, "-H", f"Last-Event-ID: {event['id']}") as stream:
        assert await values_of(stream, "pressure", 1) == [2.0]


async def isolation_by_profile(world: World) -> AsyncIterator[None]:
    """Who is to have a process has one again; who cannot have one is served by the others."""
    api = world.api
    for device_type in ("press", "oven"):
        await world.register(f"{device_type}-1", device_type)
    for run in range(2):
        await isolated(api, "press-1", True, world.eventually)
        for device_id in ("press-1", "oven-1"):
            await world.send(device_id, {"run": run})
        found = await world.eventually(partial(shown, api), lambda found: found[0].get("press-1") == "own")
        # No node has what it needs: the others serve it, and the platform is as ready as ever.
        assert found[0]["oven-1"] == "starting"
        assert await process_of(api, "oven-1") is None
        assert (await api.get("/readyz")).status_code == 200
        latest = (await api.get("/api/devices/press-1/data/latest")).json()
        assert latest["metrics"]["run"]["value"] == run
        if run == 0:
            yield
    async with audit(world.platform.state.database) as log:
        assert await log.stored(["press-1"], "run") == {"press-1": [0, 1]}
        assert await log.faulty_shards() == []


Story = Callable[[World], AsyncIterator[None]]
STORIES: tuple[Story, ...] = (same_answers, streams, isolation_by_profile)


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """A short path of this test's own."""
    path = Path(tempfile.mkdtemp(prefix="sens-re-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_beside_another_through_a_restart(
    platform: PlatformProcess, own_dir: Path, eventually: Eventually
) -> None:
    """On other ports and another directory than the shared one; ended by SIGINT and by `down`."""
    config = own_dir / "platform.yaml"
    config.write_text(CONFIG)
    ours = PlatformProcess(own_dir / "p", free_port(), free_port(), "--config", str(config))
    try:
        await asyncio.to_thread(ours.start)
        await asyncio.to_thread(beside, ours, platform)
        async with httpx.AsyncClient(base_url=ours.state.http_url, timeout=15.0) as api:
            world = World(ours, api, eventually)
            stories = [story(world) for story in STORIES]
            for story in stories:
                await anext(story)
            async with asyncio.timeout(SHUT_DOWN_WITHIN_S):
                assert await asyncio.to_thread(ours.stop, signal.SIGINT) == 0, ours.errors
            assert await asyncio.to_thread(ours.left, SHUT_DOWN_WITHIN_S) == []
            assert run_sensorium("status", "--data-dir", ours.data_dir).returncode == 1
            await asyncio.to_thread(ours.start)
            for story in stories:
                with suppress(StopAsyncIteration):
                    await anext(story)
        await asyncio.to_thread(ended_by_command, ours)
    finally:
        ours.close()
    async with httpx.AsyncClient(base_url=platform.state.http_url, timeout=10) as api:
        assert (await api.get("/readyz")).status_code == 200, "the other platform is unharmed"
        assert (await api.get("/api/devices/tank-1")).status_code == 404


def beside(ours: PlatformProcess, other: PlatformProcess) -> None:
    """It says what it is, shares nothing with the other, and is not started twice."""
    status = status_json(ours.data_dir)
    assert (status["phase"], status["ready"], status["pid"]) == ("ready", True, ours.pid)
    assert (status["http_url"], status["hosts"]) == (ours.state.http_url, psutil.cpu_count())
    assert status["ray_address"] != other.state.ray_address
    assert "check database" in run_sensorium("status", "--data-dir", ours.data_dir).stdout
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    assert {p.nice() for p in ours.processes()} == {priority}, "processes that give way to all others"
    assert ours.http_port in ours.listening()
    assert ours.listening() & other.listening() == set(), "ports that answer for both"

    again = run_sensorium("up", "--data-dir", ours.data_dir, "--http-port", str(free_port()))
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert f"(pid {ours.pid})" in again.stderr


def ended_by_command(ours: PlatformProcess) -> None:
    ours.processes()
    down = run_sensorium("down", "--data-dir", ours.data_dir)
    assert (down.returncode, down.stdout) == (0, f"stopped (pid {ours.pid})\n")
    assert ours.wait() == 0
    assert ours.left(within_s=SHUT_DOWN_WITHIN_S) == []
    nobody = run_sensorium("down", "--data-dir", ours.data_dir)
    assert (nobody.returncode, nobody.stdout.count("\n")) == (0, 1)
