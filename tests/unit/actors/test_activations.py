"""Which devices a host keeps in memory, which it saves when, which it lets go."""

from typing import Any

from sensorium.actors.activations import Activations, ActivationSettings
from sensorium.actors.device import Surroundings
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


async def test_idle_devices_go_and_busy_ones_stay() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, idle_after_s=60.0)
    await kept.ensure(["a", "b"], Surroundings())
    clock.now_s += 50
    await kept.ensure(["c"], Surroundings())
    clock.now_s += 20
    assert kept.passivate() == 2
    assert list(kept.devices) == ["c"]


async def test_beyond_the_cap_the_longest_idle_go_first() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, max_active=3)
    for name in "abcde":
        clock.now_s += 1
        await kept.ensure([name], Surroundings())
    assert kept.passivate() == 2
    assert list(kept.devices) == ["c", "d", "e"]


async def test_beyond_the_cap_an_unsaved_device_is_saved_before_it_goes() -> None:
    clock = Clock()
    kept = await activations(MemoryStore(), clock, max_active=1, snapshot_every_s=3600.0)
    await kept.ensure(["a", "b"], Surroundings())
    kept.changed([kept.devices["a"]])
    clock.now_s += 1
    kept.changed([kept.devices["b"]])
    assert kept.take_due() == []
    assert kept.passivate() == 0
    assert [s.device for s in kept.take_due()] == [kept.devices["a"].key]
    assert kept.passivate() == 1
    assert list(kept.devices) == ["b"]


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
