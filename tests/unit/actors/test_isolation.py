"""Devices get a process of their own and go back, under load, through deaths and without room for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from sensorium.actors import coordinator as coordinator_module
from sensorium.actors.activations import ActivationSettings
from sensorium.actors.coordinator import Coordinator, RuntimeSpec
from sensorium.actors.errors import IsolationLimit, Moved
from sensorium.actors.host import HostSettings
from sensorium.actors.isolation import Rehome, isolated_in, plan_isolation, process_of
from sensorium.actors.messages import GetDevice, GetLatest, Patch, Register
from sensorium.actors.placement import (
    ALL_SHARDS,
    DEDICATED_SHARDS,
    SHARDS,
    database_of,
    dedicated_shards,
    device_key,
    shard_of,
)
from sensorium.actors.ports import Filter
from sensorium.actors.profile import ProcessNeeds, Profile, Profiles
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.local import LocalLauncher, LocalProcess, LocalTransport
from tests.unit.actors.test_hand_over import DEVICES, Load
from tests.unit.actors.test_runtime import Platform, _fast_retries, abandon, assert_log_is_sound
from tests.unit.actors.virtual import run_virtually

__all__ = ["_fast_retries"]  # the fixture, used by name

DEVICE = DEVICES[0]
OWN = process_of(DEVICE)
GPU = ProcessNeeds(num_gpus=1)
PROFILES = Profiles(by_type={"press": Profile(isolation="process", isolation_resources=GPU)})


@asynccontextmanager
async def platform(store: MemoryStore | None = None, max_isolated: int = 3) -> Any:
    """As `test_runtime.platform`, with profiles that isolate."""
    store = store or MemoryStore()
    launcher = LocalLauncher()
    activation = ActivationSettings(snapshot_every_s=0.0, max_active=30)
    settings = HostSettings(PROFILES, "generic", activation)
    spec = RuntimeSpec(2, store.ports, store.membership, settings, max_isolated=max_isolated)
    coordinator = Coordinator(spec, launcher)
    await coordinator.start()
    async with Router("test", LocalTransport(coordinator)) as router:
        present = Platform(store, coordinator, launcher, router)
        yield present
    await present.coordinator.stop()


async def until(condition: Callable[[], Awaitable[object] | object], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.005)


async def isolate(p: Platform, device: str, isolation: str) -> None:
    """Ask for it, and wait until it is so."""
    await p.router.ask(Patch(device, isolation=isolation))
    own = process_of(device) if isolation == "process" else None

    async def there() -> bool:
        info = await p.router.ask(GetDevice(device))
        return bool(info["process"] == own)

    await until(there)
    # The last step of the way back is that it gives up its dedicated shard.
    await until(lambda: (device in p.store.homes) == (own is not None))


async def _there_and_back() -> None:
    async with platform() as p:
        load = Load(p)
        await until(lambda: load.sent[DEVICE] > 5)
        for _ in range(2):
            await isolate(p, DEVICE, "process")
            assert p.launcher.current[OWN].thing.name == OWN
            # Its own process serves it and nobody else; the others never stopped.
            host = p.launcher.current[OWN].thing
            await until(lambda h=host: h.statistics()["readings_committed"] > 3)  # type: ignore[misc]
            assert host.statistics()["shards_owned"] == host.statistics()["devices_active"] == 1
            await isolate(p, DEVICE, "shared")
            await until(lambda: p.launcher.current[OWN].dead)
        await load.ended()
        numbers = [row.key for row in p.store.readings if row.device == device_key(DEVICE)]
        assert numbers == list(range(1, load.sent[DEVICE] + 1))
        bodies = [event.body for event in p.store.events if event.kind == "isolation"]
        assert bodies == [b'{"isolation":"process"}', b'{"isolation":"shared"}'] * 2
        # One dedicated shard has served all the time, and its offsets go on.
        assert len({event.shard for event in p.store.events if event.shard >= SHARDS}) == 1
        statistics = await p.coordinator.statistics()
        assert (statistics["moves"]["isolated"], statistics["moves"]["shared"]) == (2, 2)
        assert statistics["isolated"] == []


def test_there_and_back_under_load() -> None:
    run_virtually(_there_and_back, 1)


async def _keeps_everything() -> None:
    async with platform() as p:
        outcomes: dict[tuple[str, int], Any] = {}
        p.send(DEVICE, 1, outcomes)
        await p.router.drained(1)
        for turn, isolation in enumerate(("process", "shared", "process")):
            await isolate(p, DEVICE, isolation)
            p.send(DEVICE, 1, outcomes)  # known from before
            p.send(DEVICE, turn + 2, outcomes)
            await p.router.drained(1)
            latest = await p.router.ask(GetLatest(DEVICE))
            assert latest["metrics"]["temperature"]["value"] == turn + 2
        assert len(p.store.readings) == 4
        assert_log_is_sound(p.store, outcomes)
        [snapshot] = [s for d, s in p.store.snapshots.items() if d == device_key(DEVICE)]
        assert snapshot.shard == p.store.homes[DEVICE]


def test_it_keeps_what_it_remembers() -> None:
    run_virtually(_keeps_everything, 2)


async def _dies() -> None:
    async with platform() as p:
        load = Load(p)
        await until(lambda: load.sent[DEVICE] > 5)
        await isolate(p, DEVICE, "process")
        for _ in range(3):
            before, sent = p.launcher.current[OWN], load.sent[DEVICE]
            before.end()
            await until(
                lambda s=sent: load.outcomes.get((DEVICE, s + 1)) is not None,  # type: ignore[misc]
                within_s=3.0,
            )
            assert p.launcher.current[OWN] is not before
        abandon(p.coordinator)
        anew = Coordinator(p.coordinator._spec, p.launcher)
        p.router._transport._coordinator = anew
        before = p.launcher.current[OWN]
        await anew.start()
        p.coordinator = anew
        assert await anew.balanced()
        assert p.launcher.current[OWN] is before
        assert not before.dead
        assert (await anew.statistics())["isolated"] == [
            {"device_id": DEVICE, "process": OWN, "state": "own"}
        ]
        await load.ended()


def test_its_process_and_the_coordinator_die() -> None:
    run_virtually(_dies, 3)


async def _no_room() -> None:
    async with platform() as p:
        p.launcher.room[process_of("press-1")] = False
        await p.router.ask(Register("press-1", "press"))
        await until(lambda: p.launcher.room and process_of("press-1") in p.coordinator._hosts)
        # There is none for its own process, so it is served where it was.
        assert (await p.router.ask(GetDevice("press-1")))["process"] is None
        statistics = await p.coordinator.statistics()
        assert statistics["isolated"][0]["state"] == "starting"
        assert statistics["down"] == []
        assert await p.coordinator.balanced()
        p.launcher.room.clear()
        await until(lambda: process_of("press-1") in p.launcher.needs)
        assert p.launcher.needs[process_of("press-1")] == GPU

        async def own() -> bool:
            return (await p.router.ask(GetDevice("press-1")))["process"] is not None

        await until(own)
        # It dies, and this time there is no room for another: after a while the others take it in.
        p.launcher.room[process_of("press-1")] = False
        p.launcher.current[process_of("press-1")].end()
        began_s = asyncio.get_running_loop().time()
        assert (await p.router.ask(GetDevice("press-1"), 60.0))["process"] is None
        assert asyncio.get_running_loop().time() - began_s >= coordinator_module.COMING_S
        assert "press-1" in p.store.homes
        # Nobody wants it any more: the process that never came is given up.
        await p.router.ask(Patch("press-1", isolation="shared"))
        await until(lambda: not p.store.homes and process_of("press-1") not in p.coordinator._hosts)


def test_without_room_for_its_process_it_is_served_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "COMING_S", 0.5)
    run_virtually(_no_room, 4)


class Waiting:
    """In the place of a host for which Ray finds no node: it answers nothing."""

    async def start(self) -> None:
        await asyncio.get_running_loop().create_future()

    stop = start


async def _stopped_while_it_waits() -> None:
    async with platform() as p:
        launch = p.launcher.launch

        def launched(name: str, *args: Any, **needs: Any) -> LocalProcess:
            process = launch(name, *args, **needs)
            if name == process_of("press-1"):
                process.thing = Waiting()
            return process

        p.launcher.launch = launched
        await p.router.ask(Register("press-1", "press"))
        await until(lambda: process_of("press-1") in p.launcher.current)
        began_s = asyncio.get_running_loop().time()
        await p.coordinator.stop()
        assert asyncio.get_running_loop().time() - began_s < 1.0
        assert all(process.dead for process in p.launcher.launched)


def test_a_stop_does_not_wait_for_a_process_that_waits_for_room() -> None:
    run_virtually(_stopped_while_it_waits, 6)


async def _bound() -> None:
    async with platform(max_isolated=2) as p:
        for n in range(4):
            await p.router.ask(Register(f"d{n}", "generic", isolation="process" if n < 3 else None))
        await until(lambda: len(p.store.homes) == 2)
        await until(lambda: p.coordinator._balanced)
        assert p.store.homes.keys() == {"d0", "d1"}
        assert (await p.coordinator.statistics())["isolated_beyond"]
        await p.coordinator.room_for("d1")
        with pytest.raises(IsolationLimit, match="max_isolated_devices"):
            await p.coordinator.room_for("d3")
        # The place of one that goes back is the next one's.
        await isolate(p, "d0", "shared")
        await until(lambda: p.store.homes.keys() == {"d1", "d2"})


def test_no_more_than_the_bound() -> None:
    run_virtually(_bound, 5)


async def _looked_at() -> None:
    async with platform() as p:
        for device in ("a", "b"):
            await p.router.ask(Register(device, "generic"))
        await isolate(p, "a", "process")
        [shared] = [
            process.thing
            for name, process in p.launcher.current.items()
            if name != process_of("a") and shard_of("a") in process.thing._shards
        ]
        own = p.launcher.current[process_of("a")].thing
        home = p.store.homes["a"]
        asked = [shard_of("a"), shard_of("b")]

        def ids(view: Any) -> str:
            return str(view.id)

        assert set(await shared.map(Filter(), ids, [shard_of("a")], [home])) == set()
        assert set(await own.map(Filter(), ids, [home], [home])) == {"a"}
        # Who asks by a table from before would miss it.
        with pytest.raises(Moved):
            await shared.map(Filter(), ids, [shard_of("a")], [])
        with pytest.raises(Moved):
            await shared.clone(Filter(), 9, [shard_of("a")], [])
        assert asked


def test_who_looks_at_all_devices_leaves_none_out() -> None:
    run_virtually(_looked_at, 6)


# --- the plan -------------------------------------------------------------------------------------------


def owners(of_shards: str | None = "host-0", **dedicated: str | None) -> list[tuple[str | None, int]]:
    """Every shard at epoch 1, and dedicated ones at 2."""
    found: list[tuple[str | None, int]] = [(of_shards, 1)] * SHARDS + [(None, 0)] * DEDICATED_SHARDS
    for name, owner in dedicated.items():
        found[int(name.removeprefix("s"))] = (owner, 2)
    return found


plan = partial(plan_isolation, serving={"host-0", "device:d"}, coming=set())


def test_the_way_there() -> None:
    assert plan(owners(), {}, ["d"]).rehomes == [Rehome("host-0", "d", SHARDS, {shard_of("d"): 1, SHARDS: 0})]
    at_host = plan(owners(s1024="host-0"), {"d": SHARDS}, ["d"])
    assert (at_host.moves, at_host.rehomes) == ([("host-0", "device:d", SHARDS)], [])
    there = plan(owners(s1024="device:d"), {"d": SHARDS}, ["d"])
    assert (there.claims, there.moves, there.rehomes) == ({}, [], [])


def test_the_way_back() -> None:
    assert plan(owners(s1024="device:d"), {"d": SHARDS}, []).moves == [("device:d", "host-0", SHARDS)]
    assert plan(owners(s1024="host-0"), {"d": SHARDS}, []).rehomes == [
        Rehome("host-0", "d", shard_of("d"), {shard_of("d"): 1, SHARDS: 2})
    ]


def test_nothing_begins_before_its_process_serves() -> None:
    waiting = plan(owners(), {}, ["d"], serving={"host-0"}, coming={"device:d"})
    assert waiting == plan(owners(), {}, [])
    nobody = plan(owners(of_shards=None), {}, ["d"])
    assert nobody.rehomes == []


def test_what_is_nobodys_is_left_to_a_process_that_comes() -> None:
    homes = {"d": SHARDS}
    assert plan(owners(s1024=None), homes, ["d"]).claims == {"device:d": [SHARDS]}
    assert plan(owners(s1024=None), homes, ["d"], serving=set(), coming={"device:d"}).claims == {}
    assert plan(owners(s1024=None), homes, ["d"], serving=set()).claims == {"host-0": [SHARDS]}
    assert plan(owners(s1024=None), homes, [], coming={"device:d"}).claims == {"host-0": [SHARDS]}


def test_two_of_one_shard_go_one_after_the_other_and_to_different_ones() -> None:
    other = next(f"e{n}" for n in range(100_000) if shard_of(f"e{n}") == shard_of("d"))
    serving = {"host-0", "device:d", process_of(other)}
    first = plan(owners(), {}, ["d", other], serving=serving)
    assert len(first.rehomes) == 1
    second = plan(owners(s1024="device:d"), {"d": SHARDS}, ["d", other], serving=serving)
    assert [(step.device_id, step.to) for step in second.rehomes] == [(other, SHARDS + 1)]


def test_without_a_dedicated_shard_in_its_database_it_waits() -> None:
    taken = {f"x{shard}": shard for shard in dedicated_shards(shard_of("d"), DEDICATED_SHARDS)}
    found = plan(owners(), taken, ["d", *taken], databases=DEDICATED_SHARDS)
    assert (found.rehomes, found.crowded) == ([], ["d"])


@pytest.mark.parametrize("databases", [1, 2, 3, 7, 256])
def test_each_database_has_dedicated_shards_of_its_own(databases: int) -> None:
    found: list[int] = []
    for position in range(databases):
        shards = [s for s in range(SHARDS) if database_of(s, databases) == position]
        own = list(dedicated_shards(shards[0], databases))
        assert own == list(dedicated_shards(shards[-1], databases))
        assert {database_of(shard, databases) for shard in own} == {position}
        found += own
    assert found == list(range(SHARDS, ALL_SHARDS))


@pytest.mark.parametrize("device", ["a", "device:a", "x.1:2 *", "ä"])
def test_a_process_says_whose_it_is(device: str) -> None:
    assert isolated_in(process_of(device)) == device
    assert isolated_in("host-0") is None
