"""Storms over a runtime whose log is in two databases, one of which goes away while the other serves on.

As in `test_storm`, but the databases fail one by one, by refusing or by hanging, and hosts lose one of them.
Besides what must hold there, what is in the database that answers is acknowledged in time, whatever else
happens to the runtime meanwhile.
"""

import asyncio
import os
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import pytest

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import GetLatest
from sensorium.actors.placement import ALL_SHARDS, database_of, shard_of
from sensorium.actors.ports import Filter, HostPorts, Isolated, Members, Membership
from sensorium.actors.router import Table, Way
from sensorium.storage.spread_members import SpreadMembership
from tests.unit.actors.test_runtime import abandon
from tests.unit.actors.test_storm import STEPS, World, recovered, turn_bad
from tests.unit.actors.virtual import run_virtually
from tests.unit.actors.weather import StormyDatabase, Weather
from tests.unit.actors.witness import Witness

STATEMENT_S: Final = 12.0
"""After which a call to a database that hangs is given up."""
AWAY_S: Final = 40.0
IN_TIME_S: Final = 2.0
REPLACED_S: Final = 10.0
"""In which what the other database has is acknowledged again when a host was killed meanwhile."""
FEW_SEEDS: Final = 4

_seed = os.environ.get("SENSORIUM_SEED")
SEEDS = [int(_seed)] if _seed else range(int(os.environ.get("SENSORIUM_SEEDS", FEW_SEEDS)))


class HangingWitness(Witness):
    """One database, which can hang."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms)
        self.answers = asyncio.Event()
        self.answers.set()

    async def _turn(self) -> None:
        if not self.answers.is_set():
            try:
                async with asyncio.timeout(STATEMENT_S):
                    await self.answers.wait()
            except TimeoutError:
                raise LogUnavailable("the memory store hangs") from None
        await super()._turn()


class TwoStores:
    """Both databases, where the world looks at one."""

    def __init__(self, clock_ms: Callable[[], int], rng: random.Random) -> None:
        self.parts = [HangingWitness(clock_ms) for _ in range(2)]
        self._rng = rng

    def of(self, device_id: str) -> HangingWitness:
        """The device's."""
        return self.parts[database_of(shard_of(device_id), len(self.parts))]

    def check(self) -> None:
        """As `Witness` says."""
        for part in self.parts:
            part.check()

    def acknowledged(self, device_id: str, number: int, outcome: Any) -> None:
        """As `Witness` says."""
        self.of(device_id).acknowledged(device_id, number, outcome)

    def granted(self, wish: tuple[str, int], outcome: Any) -> None:
        """As `Witness` says."""
        self.of(wish[0]).granted(wish, outcome)

    def answered(self, device_id: str, known: int, value: float) -> None:
        """As `Witness` says."""
        self.of(device_id).answered(device_id, known, value)

    def __getattr__(self, name: str) -> Any:
        """What both have, by device or the like."""
        found = [getattr(part, name) for part in self.parts]
        return defaultdict(int, {key: value for part in found for key, value in part.items()})

    @property
    def hosts(self) -> Mapping[int, tuple[str, bool]]:
        """As the first one says."""
        return self.parts[0].hosts

    @property
    def owners(self) -> list[tuple[int | None, int, int | None]]:
        """Of each shard as its database says."""
        return [self.parts[database_of(shard, 2)].owners[shard] for shard in range(ALL_SHARDS)]

    async def read(self) -> Members:
        """As `Membership` says, whoever is away."""
        living = {incarnation for incarnation, (_, alive) in self.hosts.items() if alive}
        owners = [(owner if owner in living else None, epoch) for owner, epoch, _ in self.owners]
        return Members((), owners, 0.0, homes=self.homes)

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """As `Membership` says."""
        rows = [row for p in self.parts for row in await p.isolated_by_rank(by_type, otherwise, limit)]
        return [one for _, one in sorted(rows)][:limit]

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As `Membership` says."""
        for n, part in enumerate(self.parts):
            await part.take({s: epoch for s, epoch in epochs.items() if database_of(s, 2) == n})

    async def select(self, which: Filter, shards: Sequence[int] | None = None) -> list[str]:
        """As `Registry` says, of the databases that have the shards."""
        asked = {database_of(s, 2) for s in (range(ALL_SHARDS) if shards is None else shards)}
        return sorted([i for n in asked for i in await self.parts[n].select(which, shards)])

    @property
    def down(self) -> bool:
        """Whether one of them is."""
        return any(part.down for part in self.parts)

    @down.setter
    def down(self, down: bool) -> None:
        if down:
            self._rng.choice(self.parts).down = True
        else:
            for part in self.parts:
                part.down = False


class TwoStoresPorts:
    """The factories of hosts and coordinators over both."""

    def __init__(self, stores: TwoStores, weather: Weather) -> None:
        self._stores = stores
        self._weather = weather

    async def ports(self, incarnation: int) -> HostPorts:
        """A `HostPortsFactory`."""
        parts = self._stores.parts
        logs: list[Any] = [
            StormyDatabase(part.log(incarnation), self._weather, incarnation, n)
            for n, part in enumerate(parts)
        ]
        return HostPorts(logs, parts[0], self._stores, parts[0].close)

    async def membership(self) -> Membership:
        """A `MembershipFactory`."""
        parts = enumerate(self._stores.parts)
        return SpreadMembership([StormyDatabase(part, self._weather, 0, n) for n, part in parts])  # type: ignore[misc]


class TwoDatabases(World):
    """The world over both."""

    def _stored(self, clock_ms: Callable[[], int]) -> tuple[Any, Any]:
        stores = TwoStores(clock_ms, self.weather.rng)
        return stores, TwoStoresPorts(stores, self.weather)

    async def away(self, position: int, hangs: bool, for_s: float) -> None:
        """One of the databases does not answer, or refuses, for so long."""
        part = self.store.parts[position]
        if hangs:
            part.answers.clear()
        else:
            part.down = True
        await asyncio.sleep(for_s)
        part.answers.set()
        part.down = False


def turn_worse(world: TwoDatabases) -> None:
    """A database goes away for long, or a host loses one of them."""
    rng = world.rng
    host = rng.choice(world.hosts() or [None])
    if rng.random() < 0.5:
        world.later(world.away(rng.randrange(2), rng.random() < 0.5, rng.uniform(1.0, 20.0)))
    elif host is not None:
        world.weather.cut_off.add((host.incarnation, rng.randrange(2)))


async def storm(seed: int) -> None:
    """Bad weather, and good weather after it."""
    world = TwoDatabases(seed)
    await world.start()
    try:
        for _ in range(STEPS):
            world.go_on()
            if world.rng.random() < 0.7:
                await turn_bad(world)
            if world.rng.random() < 0.3:
                turn_worse(world)
            for _ in range(world.rng.randrange(3)):
                world.later(world.read())
            await asyncio.sleep(world.rng.choice((0.0, 0.05, 0.5, 1.5)))
            world.store.check()
        for part in world.store.parts:
            part.answers.set()
        await recovered(world)
    finally:
        await world.stop()
    world.store.check()


def run(main: Any, seed: int, **how: Any) -> None:
    """Run it; what fails names the seed."""
    try:
        run_virtually(partial(main, seed, **how), seed)
    except BaseException as error:
        error.add_note(f"again: SENSORIUM_SEED={seed} pytest tests/unit/actors/test_storm_databases.py")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_in_any_weather(seed: int) -> None:
    run(storm, seed)


async def outage(seed: int, position: int, hangs: bool, meanwhile: str) -> None:
    """The devices of the other database are served in time, and those of this one when it is back."""
    world = TwoDatabases(seed)
    await world.start()
    clock_s = asyncio.get_running_loop().time
    began_s: dict[tuple[str, int], float] = {}
    late: list[tuple[float, float, tuple[str, int]]] = []
    acknowledged = world.store.acknowledged

    def noted(device_id: str, number: int, outcome: Any) -> None:
        took_s = clock_s() - began_s.pop((device_id, number))
        if database_of(shard_of(device_id), 2) != position:
            late.append((took_s, clock_s(), (device_id, number)))
        acknowledged(device_id, number, outcome)

    world.store.acknowledged = noted
    try:
        for sent in world.sent:
            for device in sent:
                one_more(world, device, began_s)
        await asyncio.sleep(3.0)
        assert not began_s
        world.later(world.away(position, hangs, AWAY_S))
        end_s = clock_s() + AWAY_S - 1.0
        allowed_s = IN_TIME_S if meanwhile == "nothing" else REPLACED_S
        while clock_s() < end_s:
            if end_s - 30.0 < clock_s() <= end_s - 29.5 and meanwhile == "a host is killed":
                world.rng.choice(world.hosts()).end()
            if end_s - 30.0 < clock_s() <= end_s - 29.5 and meanwhile == "all is made anew":
                abandon(world.transport.present)
                world.transport.present = None
                world.rng.choice(world.hosts()).end()
                world.later(world.coordinator_anew())
            for sent in world.sent:
                for device in sent:
                    one_more(world, device, began_s)
            if meanwhile == "nothing":
                healthy = next(d for d in world.sent[0] if database_of(shard_of(d), 2) != position)
                latest = await world.routers[0].ask(GetLatest(healthy), 1.0)
                assert latest["metrics"]["value"]["value"] >= world.sent[0][healthy] - 4
            waiting = [at_s for (d, _), at_s in began_s.items() if database_of(shard_of(d), 2) != position]
            assert not waiting or clock_s() - min(waiting) < allowed_s
            await asyncio.sleep(0.5)
        assert began_s, "nothing waited for the database that was away"
        for router, sent in zip(world.routers, world.sent, strict=True):
            gone, there = (
                [d for d in sent if (database_of(shard_of(d), 2) == position) is away]
                for away in (True, False)
            )
            assert router.pending > 10 > router.load
            await router.eased(10)
            assert all(router.failing(device) for device in gone)
            assert not any(router.failing(device) for device in there)
        assert max(late)[0] < allowed_s
        await asyncio.sleep(2.0)
        await recovered(world)
        assert not began_s
    finally:
        await world.stop()
    world.store.check()


def one_more(world: TwoDatabases, device: str, began_s: dict[tuple[str, int], float]) -> None:
    """One more reading of the device."""
    n = 0 if device in world.sent[0] else 1
    number = world.sent[n][device] = world.sent[n][device] + 1
    began_s[device, number] = asyncio.get_running_loop().time()
    world.reading(n, device, number)


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
@pytest.mark.parametrize(
    ("position", "meanwhile"),
    [(0, "nothing"), (1, "nothing"), (1, "a host is killed"), (1, "all is made anew")],
    ids=["first", "second", "second-host-killed", "second-all-anew"],
)
def test_a_database_that_is_away_stops_what_is_in_it_only(position: int, hangs: bool, meanwhile: str) -> None:
    run(outage, 7, position=position, hangs=hangs, meanwhile=meanwhile)


def test_one_lane_for_both_databases_would_hold_back_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the tests above can fail."""
    monkeypatch.setattr(Table, "way_to", lambda table, host, shard: Way(host, 0))
    with pytest.raises(AssertionError):
        run(outage, 7, position=1, hangs=False, meanwhile="a host is killed")
