"""Forks beside the running platform: devices copied, played with, thrown away, and nothing left of it."""

import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import ray
from log_audit import LogAudit
from platform_process import PlatformProcess, wait_until

from sensorium.actors.errors import ForkExists, InvalidMessage
from sensorium.actors.fleet import Fleet
from sensorium.cluster.simulator.fleet import Simulation, rows
from sensorium.cluster.simulator.rules import RULES

pytestmark = pytest.mark.ray

Eventually = Callable[..., Awaitable[Any]]
IDS = [f"forked-{n}" for n in range(20)]
TYPE = "forked"
STEADY = (
    *("readings_committed", "readings_duplicate", "dead_letters", "alarms_raised", "activations"),
    *("devices_active", "timers_fired", "commits", "rules"),
)
"""What hosts count that only the real fleet may move."""


@pytest.fixture(scope="module")
def devices(fleet: Fleet) -> list[str]:
    for device_id in IDS:
        fleet.register(device_id, TYPE, metadata={"simulated": False})
        ray.get(fleet.device(device_id).send.remote({"a": 1.0}))
    return IDS


def counted(fleet: Fleet) -> dict[str, Any]:
    hosts = fleet.statistics()["hosts"]
    return {host["name"]: {name: host[name] for name in STEADY} for host in hosts}


async def test_nothing_it_does_touches_the_platform(
    fleet: Fleet, devices: list[str], api: httpx.AsyncClient, log: LogAudit
) -> None:
    before = counted(fleet), await log.counts()
    pages = ["/api/devices?limit=1000", "/api/alarms", "/api/analytics/rules", "/api/dead-letters"]
    shown = [(await api.get(page)).json() for page in pages]
    with fleet.fork(fleet.select(type=TYPE), "untouching") as fork:
        for rule in fork.rules.list():
            fork.rules.delete(rule.rule_id)
        hot = {"type": "threshold", "metric": "a", "operator": ">", "value": 5}
        fork.create_rule({"name": "hot", "condition": hot})
        fork.create_rule({"name": "silent", "condition": {"type": "no_data", "after_s": 60}})
        at_ms = fork.now_ms() + 1000
        done = fork.replay([(i, at_ms + n * 1000, {"a": float(n)}) for n in range(20) for i in devices])
        assert (done.accepted, done.refused) == (400, {})
        fork.advance(3600)
        assert len(fork.alarms()) == 2 * len(devices)
        fork.register("only-here", TYPE)
        ray.get(fork.device("only-here").send.remote({"b": "text"}))
        ray.get(fork.device(devices[0]).decommission.remote())
        assert ray.get(fork.device(devices[1]).latest.remote()).metrics["a"].value == 19.0
        assert ray.get(fork.device(devices[1]).window.remote("a")).last == 19.0
        assert len(ray.get(fork.device(devices[1]).rules.remote())) >= 2
        newest = fork.select(type=TYPE).map(lambda device: device.values)
        assert newest.keys() == {*devices[1:], "only-here"}
        with fork.fork(fork.select(ids=devices[2:4]), "untouching-2") as again:
            again.ingest(devices[2], {"a": -1.0})
            assert [a.state for a in again.alarms() if a.device_id == devices[2]] == ["CLEARED", "CLEARED"]
            beside = again.compare(fork)
            assert len(beside.both) == 4
            assert (beside.only_mine, len(beside.only_theirs)) == ([], 2 * (len(devices) - 2))
    assert (counted(fleet), await log.counts()) == before
    assert [(await api.get(page)).json() for page in pages] == shown
    assert ray.get(fleet.device(devices[0]).latest.remote()).metrics["a"].value == 1.0


def test_the_simulator_drives_a_fork(fleet: Fleet, devices: list[str]) -> None:
    simulated = Simulation(40, faults_per_h=4.0).fleet()
    with fleet.fork(fleet.select(ids=devices[:1]), "simulated") as fork:
        for device in simulated:
            fork.register(device.device_id, device.device_type)
        for rule in RULES:
            fork.create_rule(rule)
        done = fork.replay(rows(simulated, 5.0, fork.now_ms() / 1000, 1800.0))
        assert done.accepted == 40 * 360
        assert {alarm.rule_name for alarm in fork.alarms()} >= {"Room temperature outside 5 to 40 °C"}


def test_what_cannot_be_forked_says_so(fleet: Fleet, devices: list[str]) -> None:
    with fleet.fork(fleet.select(ids=devices), "only-one") as fork:
        with pytest.raises(ForkExists, match="only-one"):
            fleet.fork(fleet.select(ids=devices), "only-one")
        assert fork.select().ids() == sorted(devices)
    with pytest.raises(LookupError):
        fork.now_ms()
    fork.close()
    with pytest.raises(LookupError, match="nothing to fork"):
        fleet.fork(fleet.select(type="nothing-of-this-type"), "empty")
    with pytest.raises(InvalidMessage, match="no name"):
        fleet.fork(fleet.select(ids=devices), "a b")


def test_it_dies_with_who_opened_it(platform: PlatformProcess, fleet: Fleet, devices: list[str]) -> None:
    script = (
        "import os\nfrom sensorium import connect\n"
        f"fleet = connect({platform.state.ray_address!r})\n"
        f"fork = fleet.fork(fleet.select(ids={devices!r}), 'orphan')\n"
        "assert len(fork.select()) == 20\nprint('open', flush=True)\nos._exit(9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "open", ended.stderr

    def name_is_free() -> bool:
        try:
            fleet.fork(fleet.select(ids=devices[:1]), "orphan").close()
        except ForkExists:
            return False
        return True

    wait_until(name_is_free, 30, "the fork's end")
