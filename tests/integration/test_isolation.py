"""Devices with a process of their own on a real platform: there and back under load, and deaths.

Nothing that was acknowledged is lost, stored twice or out of order, whatever process a device is in.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import Eventually
from faults import pids
from field import Load, mqtt_client
from log_audit import LogAudit
from own_process import isolated, shown
from prometheus_client.parser import text_string_to_metric_families

from sensorium.actors.fleet import Fleet
from sensorium.actors.isolation import DEFAULT_MAX_ISOLATED
from sensorium.actors.runtime import COORDINATOR
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

MESSAGES_PER_S = 300.0
MOVED = "isolated 1.0:ä*?"
"""Its name has what means something to Ray's names, to shells and to URLs."""
BESIDE = [f"beside-{n}" for n in range(20)]
OVER_HTTP = "isolated-http"


@pytest.fixture
async def load_client(broker: BrokerAddress) -> AsyncIterator[MqttClient]:
    """The devices' connection."""
    async with mqtt_client(broker, "isolation-load") as client:
        yield client


async def changed(api: httpx.AsyncClient, device_id: str, isolation: str | None) -> dict[str, Any]:
    """The device after a PATCH."""
    response = await api.patch(f"/api/devices/{quote(device_id, safe='')}", json={"isolation": isolation})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


class Poster:
    """A device that posts one reading after the other over HTTP, and waits for each."""

    def __init__(self, api: httpx.AsyncClient, device_id: str) -> None:
        self.acked = 0
        self._api = api
        self._device_id = device_id

    async def run(self) -> None:
        """Until cancelled."""
        started_ms = time.time_ns() // 1_000_000
        while True:
            body = {"timestamp": started_ms + self.acked, "sequence": self.acked}
            response = await self._api.post(f"/api/devices/{self._device_id}/data", json=body)
            if response.status_code < 300:
                self.acked += 1
            else:
                assert response.status_code in (429, 503), response.text
                await asyncio.sleep(0.05)


async def test_there_and_back_under_load_and_killed_in_between(
    api: httpx.AsyncClient, load_client: MqttClient, fleet: Fleet, log: LogAudit, eventually: Eventually
) -> None:
    ids = [MOVED, *BESIDE]
    for device_id in (*ids, OVER_HTTP):
        body = {"device_id": device_id, "device_type": "isolated"}
        assert (await api.post("/api/devices", json=body)).status_code == 201
    poster = Poster(api, OVER_HTTP)
    async with Load(load_client, ids, MESSAGES_PER_S) as load, asyncio.TaskGroup() as group:
        posting = group.create_task(poster.run())
        await load.more(100)
        for turn in range(3):
            for device_id in (MOVED, OVER_HTTP):
                found = await changed(api, device_id, "process")
                assert (found["isolation"], found["isolation_by"]) == ("process", "device")
            there_s = [await isolated(api, device_id, True, eventually) for device_id in (MOVED, OVER_HTTP)]
            own = await asyncio.to_thread(pids, "device:")
            assert own.keys() == {f"device:{MOVED}", f"device:{OVER_HTTP}"}
            shared = await asyncio.to_thread(pids, "host-")
            assert not set(own.values()) & set(shared.values())
            await load.more(150)
            if turn == 1:
                await killed(api, own, load, eventually)
                await coordinator_killed(api, load, eventually)
            await eventually(partial(shown, api), lambda found: found == ALL_OWN)
            await eventually(partial(counted, api), lambda count: count == 2.0)
            for device_id in (MOVED, OVER_HTTP):
                found = await changed(api, device_id, "shared" if turn else None)
                assert (found["isolation"], found["isolation_by"]) == (
                    "shared",
                    "device" if turn else "profile",
                )
            back_s = [await isolated(api, device_id, False, eventually) for device_id in (MOVED, OVER_HTTP)]
            await load.more(150)
            print(f"turn {turn}: there in {max(there_s):.2f} s, back in {max(back_s):.2f} s")
        await eventually(lambda: asyncio.to_thread(pids, "device:"), lambda found: not found)
        posting.cancel()
    await eventually(lambda: log.count(ids), lambda stored: stored >= load.total, 60.0)
    stored = await log.stored([*ids, OVER_HTTP], "sequence")
    for device_id in ids:
        assert stored[device_id] == list(range(load.sent[device_id])), device_id
    # The last one may have been stored without the answer having come.
    assert stored[OVER_HTTP] in (list(range(poster.acked)), list(range(poster.acked + 1)))
    assert poster.acked > 100
    assert await log.faulty_shards() == []
    chosen = fleet.select(ids=[MOVED])
    latest = await asyncio.to_thread(lambda: chosen.map(lambda view: view.values["sequence"]))
    assert latest[MOVED] == load.sent[MOVED] - 1


ALL_OWN = ({MOVED: "own", OVER_HTTP: "own"}, {MOVED: 1, OVER_HTTP: 1})


async def counted(api: httpx.AsyncClient) -> float:
    """The metric of those in their own process."""
    for family in text_string_to_metric_families((await api.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "sensorium_isolated_devices" and sample.labels == {"state": "own"}:
                return float(sample.value)
    return 0.0


async def killed(api: httpx.AsyncClient, own: dict[str, int], load: Load, eventually: Eventually) -> None:
    """SIGKILL to the device's process: another is there soon, in its place and with its state."""
    name = f"device:{MOVED}"
    before = load.sent[MOVED]
    os.kill(own[name], signal.SIGKILL)
    killed_s = time.monotonic()

    async def sequence() -> int:
        response = await api.get(f"/api/devices/{quote(MOVED, safe='')}/data/latest")
        return int(response.json()["metrics"]["sequence"]["value"]) if response.status_code == 200 else -1

    await eventually(sequence, lambda found: found >= before, 30.0)
    print(f"its process was killed and it served again after {time.monotonic() - killed_s:.2f} s")
    again = await eventually(lambda: asyncio.to_thread(pids, name), lambda found: name in found)
    assert again[name] != own[name]


async def coordinator_killed(api: httpx.AsyncClient, load: Load, eventually: Eventually) -> None:
    """The coordinator that is made anew goes on with the processes that it finds."""
    before = await asyncio.to_thread(pids, "")
    os.kill(before[COORDINATOR], signal.SIGKILL)
    await load.more(150)

    async def ready() -> int:
        return (await api.get("/readyz")).status_code

    await eventually(ready, lambda code: code == 200, 45.0)
    after = await eventually(
        lambda: asyncio.to_thread(pids, ""), lambda found: found.get(COORDINATOR, 0) != before[COORDINATOR]
    )
    own = {name: pid for name, pid in before.items() if name.startswith("device:")}
    assert {name: after.get(name) for name in own} == own


async def test_the_bound_is_told(api: httpx.AsyncClient) -> None:
    """As many as are allowed where nothing else is configured; the next is refused and stays where it is."""
    for n in range(DEFAULT_MAX_ISOLATED + 1):
        body = {"device_id": f"bound-{n}", "device_type": "isolated"}
        assert (await api.post("/api/devices", json=body)).status_code == 201
    try:
        for n in range(DEFAULT_MAX_ISOLATED):
            await changed(api, f"bound-{n}", "process")
        response = await api.patch(
            f"/api/devices/bound-{DEFAULT_MAX_ISOLATED}", json={"isolation": "process"}
        )
        assert (response.status_code, response.json()["code"]) == (409, "isolation_limit")
        assert "cluster.max_isolated_devices" in response.json()["detail"]
        body = {"device_id": "bound-more", "device_type": "isolated", "isolation": "process"}
        assert (await api.post("/api/devices", json=body)).status_code == 409
        assert (await api.get(f"/api/devices/bound-{DEFAULT_MAX_ISOLATED}")).json()["isolation"] == "shared"
    finally:
        for n in range(DEFAULT_MAX_ISOLATED):
            await changed(api, f"bound-{n}", None)


STATE_API = """
import json, sys, time
import ray
from ray.util.state import list_actors
from sensorium.actors.profile import ProcessNeeds
from sensorium.actors.runtime import RayLauncher

class Probe:
    async def ping(self):
        return 0.0

here = ray.init(
    num_cpus=1, resources={"hall": 1}, labels={"zone": "a"}, include_dashboard=True, log_to_driver=False
)
launcher = RayLauncher("isolation-test")
there = ProcessNeeds(num_cpus=0.5, resources={"hall": 1}, labels={"zone": "in(a, b)"})
process = launcher.launch("device:press 1.0:ä*?", "", Probe, needs=there)
ray.get(process.address.pid.remote(), timeout=60)
launcher.launch("device:elsewhere", "", Probe, needs=ProcessNeeds(labels={"zone": "!a"}))
launcher.launch("device:greedy", "", Probe, needs=ProcessNeeds(resources={"hall": 1}))
launcher.launch("device:modest", "", Probe)
deadline_s = time.monotonic() + 60
while True:
    actors = list_actors("http://" + here.dashboard_url)
    found = {actor.name: actor.state for actor in actors if actor.name.startswith("device:")}
    if (found.get("device:modest") == "ALIVE" and len(found) == 4) or time.monotonic() > deadline_s:
        break
    time.sleep(0.2)
print(json.dumps(found))
"""


def test_ray_lists_the_process_by_its_name_and_finds_it_what_it_needs() -> None:
    """By the state API, which `ray list actors` asks. It needs the dashboard, so this is a Ray of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", STATE_API], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "device:press 1.0:ä*?": "ALIVE",
        "device:elsewhere": "PENDING_CREATION",
        "device:greedy": "PENDING_CREATION",
        "device:modest": "ALIVE",
    }
