"""Seeded storms over the runtime on a virtual clock: crashes, cut-off hosts, failing commits.

What must hold: nothing acknowledged is lost or stored twice, each device's readings are in order, each
shard's offsets have no gap. A seed that fails is the test's parameter, and runs the same way again.
"""

import asyncio
import random
from functools import partial
from typing import Any

import pytest

from sensorium.actors import ticker as ticker_module
from sensorium.actors.messages import GetLatest
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.test_runtime import assert_log_is_sound, platform
from tests.unit.actors.virtual import run_virtually

SEEDS = 24


async def storm(seed: int, store: MemoryStore) -> None:
    """Random load while hosts are killed, or cut off and paused, and commits fail; asserts what must hold."""
    rng = random.Random(seed)
    devices = [f"device-{i}" for i in range(12)]
    outcomes: dict[tuple[str, int], Any] = {}
    sent = dict.fromkeys(devices, 0)
    async with platform(
        seed, store=store, snapshot_every_turns=5, snapshot_every_s=0.0, idle_after_s=0.01, max_active=6
    ) as p:
        for _ in range(120):
            for _ in range(rng.randrange(8)):
                device = rng.choice(devices)
                sent[device] += 1
                p.send(device, sent[device], outcomes)
            match rng.randrange(14):
                case 0:
                    p.launcher.current[f"host-{rng.randrange(2)}"].kill()
                case 1:
                    store.fail_before = rng.randrange(3)
                case 2:
                    store.fail_after = rng.randrange(3)
                case 3:
                    store.down = True
                case 4 | 5 | 6:
                    store.down = False
                case 7:
                    process = p.launcher.current[f"host-{rng.randrange(2)}"]
                    store.stalled[process.thing.incarnation] = asyncio.Event()
                    for _ in range(10):
                        await asyncio.sleep(0)
                    process.cut()
                case 8:
                    for stall in store.stalled.values():
                        stall.set()
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.3, 2.0)))
        store.down = False
        store.fail_before = store.fail_after = 0
        await p.router.drained(1)
        p.router.check()
        for stall in store.stalled.values():
            stall.set()
        await asyncio.sleep(1.0)
        assert len(outcomes) == sum(sent.values())
        assert_log_is_sound(store, outcomes)
        for device in devices:
            if sent[device]:
                latest = await p.router.ask(GetLatest(device))
                assert latest["metrics"]["temperature"]["value"] == float(sent[device])
        for process in p.launcher.launched:
            process.end()
    assert_log_is_sound(store, outcomes)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_acknowledged_is_lost_and_nothing_is_stored_twice(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No device of the storm has a timer: looking for them ten times a second would be a third of the work.
    monkeypatch.setattr(ticker_module, "TICK_S", 5.0)
    run_virtually(partial(storm, seed, MemoryStore()), seed)


async def zombie(store: MemoryStore) -> None:
    """A host is paused in its commit and cut off, its successor takes over, then it wakes up and commits."""
    outcomes: dict[tuple[str, int], Any] = {}
    async with platform(hosts=1, store=store) as p:
        process = p.launcher.current["host-0"]
        stall = store.stalled[process.thing.incarnation] = asyncio.Event()
        p.send("a", 1, outcomes)
        await asyncio.sleep(1.0)
        assert not outcomes
        process.cut()
        await p.router.drained(1)
        assert len(store.readings) == 1
        stall.set()
        await asyncio.sleep(1.0)
        process.end()
    assert_log_is_sound(store, outcomes)


def test_a_host_that_wakes_up_too_late_commits_nothing() -> None:
    run_virtually(partial(zombie, MemoryStore()), 0)


def test_without_the_fence_it_would_store_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the tests above can fail."""
    monkeypatch.setattr(MemoryStore, "_check_fence", lambda store, incarnation: None)
    monkeypatch.setattr(MemoryStore, "_check_epochs", lambda store, epochs: None)
    with pytest.raises(AssertionError, match="stored twice"):
        run_virtually(partial(zombie, MemoryStore()), 0)
