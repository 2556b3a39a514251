"""Which devices a host keeps in memory, which it saves when, which it lets go."""

import asyncio
import gc
from typing import Any

from sensorium.actors.activations import Activations, ActivationSettings, Leaving
from sensorium.actors.device import Device, Surroundings
from sensorium.actors.testing import MemoryStore


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def activations(store: MemoryStore, clock: Clock, **settings: Any) -> Activations:
    made = Activations(
        store.log(await store.join("host-0")), range(1024), ActivationSettings(**settings), clock
    )
    await made.open()
    return made


def leave(kept: Activations, most: int = 100) -> Leaving:
    """Let devices go whose snapshots are stored at once."""
    leaving = kept.let_go(most)
    kept.gone(leaving)
    return leaving


async def test_idle_devices_go_and_busy_ones_stay() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, idle_after_s=60.0)
    await kept.ensure(["a", "b"], Surroundings())
    clock.now_s += 50
    await kept.ensure(["c"], Surroundings())
    await kept.ensure(["b"], Surroundings(), scan=True)
    clock.now_s += 20
    assert leave(kept).reasons == {"idle": 2, "count": 0, "memory": 0}
    assert list(kept.devices) == ["c"]


async def test_beyond_the_cap_those_used_least_lately_go_first() -> None:
    kept = await activations(MemoryStore(), Clock(), max_active=3)
    for name in "abcde":
        await kept.ensure([name], Surroundings())
    assert kept.beyond() == (2, 0)
    assert leave(kept, most=1).reasons["count"] == 1
    assert leave(kept).reasons == {"idle": 0, "count": 1, "memory": 0}
    assert list(kept.devices) == ["c", "d", "e"]


async def test_devices_that_are_used_once_do_not_displace_the_working_set() -> None:
    kept = await activations(MemoryStore(), Clock(), max_active=10)
    working = [f"working-{n}" for n in range(8)]
    for _ in range(3):
        await kept.ensure(working, Surroundings())
    for n in range(500):
        await kept.ensure([f"once-{n}"], Surroundings())
        leave(kept)
    assert set(working) <= set(kept.devices)
    assert len(kept.devices) == 10


async def test_beyond_the_memory_as_many_go_as_it_takes() -> None:
    kept = await activations(MemoryStore(), Clock())
    await kept.ensure([f"d{n}" for n in range(10)], Surroundings())
    each = kept.estimated_bytes // 10
    kept.settings = ActivationSettings(max_active_bytes=7 * each)
    assert kept.beyond() == (0, 3 * each)
    assert leave(kept).reasons == {"idle": 0, "count": 0, "memory": 3}
    assert kept.estimated_bytes == 7 * each
    # A process that takes twice the estimate has room for half as many.
    kept.gone(kept.let_go(100, correction=2.0))
    assert len(kept.devices) == 3
    kept.discard(list(kept.devices), {})
    assert kept.estimated_bytes == 0


async def test_an_unsaved_device_is_saved_before_it_goes_and_is_waited_for() -> None:
    kept = await activations(MemoryStore(), Clock(), max_active=1, snapshot_every_s=3600.0)
    await kept.ensure(["a", "b"], Surroundings())
    first = kept.devices["a"]
    kept.changed([first])
    leaving = kept.let_go(10)
    assert [s.device for s in leaving.snapshots] == [first.key]
    assert (kept.dirty, list(kept.devices)) == (0, ["b"])
    again = asyncio.create_task(kept.ensure(["a"], Surroundings()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not again.done()
    kept.gone(leaving)
    await again
    assert kept.devices["a"] is not first
    assert kept.activated == 3


async def test_a_device_that_cannot_be_saved_stays_and_is_the_next_to_go() -> None:
    kept = await activations(MemoryStore(), Clock(), max_active=2, snapshot_every_s=3600.0)
    await kept.ensure(["a", "b", "c"], Surroundings())
    first, size_bytes = kept.devices["a"], kept.estimated_bytes
    kept.changed([first])
    leaving = kept.let_go(10)
    again = asyncio.create_task(kept.ensure(["a"], Surroundings()))
    await asyncio.sleep(0)
    kept.back(leaving)
    await again
    assert kept.devices["a"] is first
    assert (kept.dirty, kept.activated, kept.estimated_bytes) == (1, 3, size_bytes)


async def test_many_turns_or_a_long_time_make_a_device_due() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, snapshot_every_turns=3, snapshot_every_s=30.0)
    await kept.ensure(["a", "b"], Surroundings())
    a, b = kept.devices["a"], kept.devices["b"]
    a.turns, b.turns = 3, 1
    kept.changed([a, b])
    assert [s.device for s in kept.take_due()] == [a.key]
    assert kept.dirty == 1
    clock.now_s += 31
    assert [s.device for s in kept.take_due()] == [b.key]
    assert kept.dirty == 0


async def test_a_save_that_failed_is_due_again() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, snapshot_every_s=0.0)
    await kept.ensure(["a"], Surroundings())
    kept.changed([kept.devices["a"]])
    clock.now_s += 1
    taken = kept.take_due()
    kept.unsaved(taken)
    clock.now_s += 1
    assert [s.device for s in kept.take_due()] == [s.device for s in taken]


async def test_a_clean_stop_takes_them_by_bounded_batches() -> None:
    kept = await activations(MemoryStore(), Clock(), save_batch=2)
    names = list("abcde")
    await kept.ensure(names, Surroundings())
    kept.changed(kept.devices.values())
    sizes = []
    while taken := kept.take_unsaved():
        sizes.append(len(taken))
    assert sizes == [2, 2, 1]


async def test_what_leaves_is_freed_without_the_collector() -> None:
    """The heap relies on it: frozen objects are never looked at again."""
    kept = await activations(MemoryStore(), Clock(), idle_after_s=-1.0)
    gc.collect()
    before = sum(type(o) is Device for o in gc.get_objects())
    gc.disable()
    try:
        await kept.ensure([f"freed-{n}" for n in range(20)], Surroundings(auto_register_as="generic"))
        kept.changed(list(kept.devices.values()))
        assert sum(type(o) is Device for o in gc.get_objects()) == before + 20
        leave(kept)
        assert sum(type(o) is Device for o in gc.get_objects()) == before
    finally:
        gc.enable()
