"""Passivation over a store that is slow, or away: nothing is lost, and memory stays in its bounds."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sensorium.actors import passivation as passivation_module
from sensorium.actors.activations import ActivationSettings
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import GetLatest, Reading, TimerFired
from sensorium.actors.passivation import MOST_CORRECTION, Correction
from sensorium.actors.placement import SHARDS
from sensorium.actors.records import Snapshot
from sensorium.actors.testing import MemoryLog, MemoryStore

NOW_MS = 1_700_000_000_000


class SlowSaves:
    """Holds every save until it is let go on, or makes it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0
        self.fails = False
        save = MemoryLog.save

        async def slow(log: MemoryLog, snapshots: Sequence[Snapshot], heads: Mapping[int, int]) -> None:
            self.waiting += 1
            await self.go_on.wait()
            self.waiting -= 1
            if self.fails:
                raise LogUnavailable("no saves now")
            await save(log, snapshots, heads)

        monkeypatch.setattr(MemoryLog, "save", slow)


@pytest.fixture(autouse=True)
def _quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passivation_module, "SWEEP_EVERY_S", 0.01)


async def host_over(store: MemoryStore, **settings: Any) -> DeviceHost:
    activation = ActivationSettings(**{"snapshot_every_s": 3600.0, **settings})
    host = DeviceHost(
        "host-0",
        await store.join("host-0"),
        range(SHARDS),
        store.ports,
        HostSettings(auto_register_as="generic", activation=activation),
        lambda: NOW_MS,
    )
    await host.start()
    return host


def reading(device_id: str, number: int) -> Reading:
    return Reading(device_id, NOW_MS + number, NOW_MS, number, 0, [float(number)])


async def send(host: DeviceHost, device_id: str, number: int) -> None:
    await host.ask(reading(device_id, number), ("t",))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_message_to_a_leaving_device_waits_for_its_flush_and_activates_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    saves = SlowSaves(monkeypatch)
    host = await host_over(store, idle_after_s=0.0)
    await send(host, "a", 1)
    await until(lambda: saves.waiting == 1)
    assert host.statistics()["devices_active"] == 0
    coming = asyncio.create_task(send(host, "a", 2))
    await until(lambda: not host._compartments[0].delivery._waiting)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not coming.done()
    assert len(store.readings) == 1
    saves.go_on.set()
    await coming
    assert [row.key for row in store.readings] == [1, 2]
    told = host.statistics()
    assert told["activations"] == 2
    assert told["evictions"]["idle"] >= 1
    assert told["passivations_saved"] >= 1
    latest = await host.answer(GetLatest("a"))
    assert latest.metrics["t"].value == 2.0
    await host.stop()


async def test_what_cannot_be_saved_stays_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    saves = SlowSaves(monkeypatch)
    saves.fails = True
    saves.go_on.set()
    host = await host_over(store, idle_after_s=0.0)
    for number in range(1, 30):
        await send(host, "a", number)
        await asyncio.sleep(0.001)
    assert host.statistics()["activations"] == 1
    assert host.statistics()["passivations"] == 0
    saves.fails = False
    await until(lambda: host.statistics()["devices_active"] == 0)
    await send(host, "a", 30)
    assert [row.key for row in store.readings] == list(range(1, 31))
    await host.stop()


async def test_a_timer_brings_a_device_back_while_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    saves = SlowSaves(monkeypatch)
    host = await host_over(store, idle_after_s=0.0)
    await send(host, "a", 1)
    await until(lambda: saves.waiting == 1)
    firing = asyncio.create_task(host._compartments[0]._fire([TimerFired("a", "offline", NOW_MS)]))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not firing.done()
    saves.go_on.set()
    await firing
    assert host.statistics()["activations"] == 2
    await host.stop()


@pytest.mark.parametrize("bound", ["count", "memory"])
async def test_turns_wait_for_room_when_more_come_than_can_be_saved(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    saves = SlowSaves(monkeypatch)
    small = {"max_active": 16} if bound == "count" else {"max_active_bytes": 16 * 6_000}
    host = await host_over(store, **small)
    sent = []
    most = 0
    for number in range(200):
        sent.append(asyncio.create_task(send(host, f"d{number}", number)))
        for _ in range(30):
            await asyncio.sleep(0)
        most = max(most, host.statistics()["devices_active"])
        if saves.waiting and len(sent) - sum(task.done() for task in sent) > 3:
            saves.go_on.set()
            await until(lambda: not saves.waiting)
            saves.go_on.clear()
    saves.go_on.set()
    await asyncio.gather(*sent)
    told = host.statistics()
    assert len(store.readings) == 200
    assert told["evictions"][bound] > 100
    assert told["room_waits"] > 0
    assert most < 60
    await host.stop()


async def test_a_clean_stop_saves_those_that_were_about_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    saves = SlowSaves(monkeypatch)
    host = await host_over(store, idle_after_s=0.0)
    await send(host, "a", 1)
    await until(lambda: saves.waiting == 1)
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0)
    saves.go_on.set()
    await stopping
    assert len(store.snapshots) == 1


def test_the_estimate_is_corrected_by_what_the_fullest_process_took() -> None:
    mib = 1 << 20
    resident, estimated = 100 * mib, 10 * mib
    correction = Correction(lambda: estimated, lambda: resident)
    correction.measure()
    assert correction.factor == 1.0
    resident, estimated = 250 * mib, 100 * mib
    correction.measure()
    assert correction.factor == 1.5
    # Devices left and the process keeps what they had: that says nothing of those that stay.
    estimated = 20 * mib
    correction.measure()
    assert correction.factor == 1.5
    resident, estimated = 2000 * mib, 101 * mib
    correction.measure()
    assert correction.factor == MOST_CORRECTION
