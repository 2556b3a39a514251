"""Shards move between living hosts: under load, to hosts that join, from hosts that leave."""

import asyncio
import random
from functools import partial
from typing import Any

import pytest

from sensorium.actors import holdings as holdings_module
from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable, Moved
from sensorium.actors.lease import LEASE_S, Lease
from sensorium.actors.messages import Accepted, GetLatest
from sensorium.actors.placement import SHARDS, Node, device_key, shard_of
from sensorium.actors.ports import Filter, Wanted
from sensorium.actors.supervision import PING_TIMEOUT_S
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.test_runtime import (
    Platform,
    _fast_retries,
    abandon,
    assert_log_is_sound,
    platform,
)
from tests.unit.actors.virtual import run_virtually

__all__ = ["_fast_retries"]  # the fixture, used by name

DEVICES = [f"device-{n}" for n in range(40)]


class Load:
    """Devices that send all the time; `outcomes` tells what was acknowledged."""

    def __init__(self, platform: Platform, every_s: float = 0.002) -> None:
        self.outcomes: dict[tuple[str, int], Any] = {}
        self.sent = dict.fromkeys(DEVICES, 0)
        self._platform = platform
        self._every_s = every_s
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for device in random.sample(DEVICES, 10):
                self.sent[device] += 1
                self._platform.send(device, self.sent[device], self.outcomes)
            await asyncio.sleep(self._every_s)

    async def ended(self) -> None:
        """Stop, and check that all of it was stored once and in order."""
        self._task.cancel()
        await self._platform.router.drained(1)
        self._platform.router.check()
        store = self._platform.store
        assert len(self.outcomes) == sum(self.sent.values())
        assert all(isinstance(outcome, Accepted) for outcome in self.outcomes.values())
        assert_log_is_sound(store, self.outcomes)
        latest = {row.device: row.key for row in store.readings}
        assert latest == {device_key(d): n for d, n in self.sent.items() if n}


def owners(p: Platform) -> dict[str, int]:
    """How many shards each host owns, by what the store says."""
    names = [p.store.hosts[owner][0] for owner, _, _ in p.store.owners if owner is not None]
    return {name: names.count(name) for name in set(names)}


async def _grow_and_shrink() -> None:
    async with platform(snapshot_every_s=0.0) as p:
        load = Load(p)
        await asyncio.sleep(0.1)
        for hosts in (3, 5, 1, 2):
            await p.coordinator.scale(hosts)
            assert await p.coordinator.balanced()
            assert sum(owners(p).values()) == SHARDS
            assert len(owners(p)) == hosts
            await asyncio.sleep(0.05)
        assert p.store._wanted == Wanted(2)
        statistics = await p.coordinator.statistics()
        assert statistics["replaced"] == {}
        assert sum(host["shards_owned"] for host in statistics["hosts"]) == SHARDS
        assert statistics["moves"]["handed_over"] > SHARDS / 2
        await load.ended()
        assert not any(isinstance(o, Fenced) for o in load.outcomes.values())


def test_hosts_join_and_leave_under_load() -> None:
    run_virtually(_grow_and_shrink, 1)


async def _restart_in_between() -> None:
    async with platform(hosts=2) as p:
        load = Load(p)
        await p.coordinator.scale(3)
        async with asyncio.timeout(10):
            while p.coordinator._moves["handed_over"] < 100:
                await asyncio.sleep(0.001)
        abandon(p.coordinator)
        anew = type(p.coordinator)(p.coordinator._spec, p.launcher)
        p.router._transport._coordinator = anew
        await anew.start()
        assert await anew.balanced()
        assert len(owners(p)) == 3
        await load.ended()
        p.coordinator = anew
        await anew.stop()


def test_a_coordinator_made_anew_goes_on_with_the_move() -> None:
    run_virtually(_restart_in_between, 2)


async def _node_drains() -> None:
    async with platform(hosts=2) as p:
        p.launcher.machines = [Node("a", 2), Node("b", 2)]
        load = Load(p)
        assert await p.coordinator.balanced()
        async with asyncio.timeout(20):
            while len(owners(p)) < 4:
                await asyncio.sleep(0.01)
        # Those that were there before the machines said what they are stay where they are.
        assert sorted(host.node for host in p.coordinator._hosts.values()) == ["", "", "a", "b"]
        p.launcher.machines = [Node("a", 2, draining=True), Node("b", 2)]
        await p.coordinator.rebalance()
        async with asyncio.timeout(20):
            while "a" in {host.node for host in p.coordinator._hosts.values()}:
                await asyncio.sleep(0.01)
        assert await p.coordinator.balanced()
        await p.coordinator.drain("b")
        p.launcher.machines = [Node("a", 1), Node("b", 2)]
        await p.coordinator.rebalance()
        async with asyncio.timeout(20):
            while "b" in {host.node for host in p.coordinator._hosts.values()}:
                await asyncio.sleep(0.01)
        assert await p.coordinator.balanced()
        assert len(owners(p)) == 1
        await load.ended()


def test_hosts_follow_the_machines() -> None:
    run_virtually(_node_drains, 3)


async def _outcome_unknown(store: MemoryStore, before: bool) -> None:
    """The transaction of a hand-over breaks off, before it was written or after."""
    hand_over = store.hand_over
    breaks = 3

    async def broken(incarnation: int, given: Any, to: int) -> Any:
        nonlocal breaks
        breaks -= 1
        if breaks >= 0 and before:
            raise LogUnavailable("broke off")
        went = await hand_over(incarnation, given, to)
        if breaks >= 0:
            raise LogUnavailable("broke off")
        return went

    store.hand_over = broken  # type: ignore[method-assign]
    async with platform(hosts=1, store=store) as p:
        load = Load(p)
        await p.coordinator.scale(2)
        assert await p.coordinator.balanced()
        await load.ended()


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_hand_over_of_unknown_outcome_loses_nothing(before: bool) -> None:
    run_virtually(partial(_outcome_unknown, MemoryStore(), before), 4)


async def _refuses_to_give() -> None:
    async with platform(hosts=1) as p:
        host = p.launcher.current["host-0"].thing

        async def stuck() -> None:
            raise LogUnavailable("stuck")

        host._compartments[0].drained = stuck
        load = Load(p, every_s=0.2)
        await p.coordinator.scale(2)
        async with asyncio.timeout(120):
            while len(owners(p)) < 2 or sum(owners(p).values()) < SHARDS:
                await asyncio.sleep(0.05)
        assert p.coordinator._moves["taken"] > 0
        assert (await p.coordinator.statistics())["replaced"] == {}
        await load.ended()


@pytest.mark.slow
def test_from_a_host_that_does_not_hand_over_shards_are_taken() -> None:
    run_virtually(_refuses_to_give, 5)


async def test_a_moved_device_is_refused_and_its_map_is_incomplete() -> None:
    async with platform(hosts=2) as p:
        outcomes: dict[tuple[str, int], Any] = {}
        for device in DEVICES:
            p.send(device, 1, outcomes)
        await p.router.drained(1)
        giver, receiver = (p.launcher.current[f"host-{n}"].thing for n in range(2))
        device = next(d for d in DEVICES if shard_of(d) in giver._shards)
        shard = shard_of(device)
        epoch = giver._compartments[0].holdings.owned.epochs[shard]
        before = giver._shards
        went = await giver.hand_over({shard: epoch}, receiver.incarnation)
        assert went == {shard: epoch + 1}
        with pytest.raises(Moved):
            await giver.ask(GetLatest(device))
        with pytest.raises(Moved):
            await giver.map(Filter(), lambda view: view.id, before)
        await receiver.refresh()
        assert (await receiver.answer(GetLatest(device))).metrics["temperature"].value == 1.0
        assert await giver.hand_over({shard: epoch}, receiver.incarnation) == {}


async def test_nobody_has_no_host_or_too_many() -> None:
    async with platform() as p:
        for hosts in (0, 1025):
            with pytest.raises(InvalidMessage):
                await p.coordinator.scale(hosts)


def test_a_lease_ends_before_others_may_claim() -> None:
    lease = Lease()
    assert not lease.holds(0.0)
    lease.renewed(10.0)
    lease.renewed(9.0)
    assert lease.holds(10.0 + LEASE_S - 0.6)
    assert not lease.holds(10.0 + LEASE_S - 0.4)
    assert lease.age_s(12.0) == 2.0


async def _cut_off_from_the_database() -> None:
    async with platform(hosts=1) as p:
        outcomes: dict[tuple[str, int], Any] = {}
        p.send("a", 1, outcomes)
        await p.router.drained(1)
        host = p.launcher.current["host-0"].thing
        p.store.down = True
        await asyncio.sleep(3.0)
        assert (await host.answer(GetLatest("a"))).metrics["temperature"].value == 1.0
        await asyncio.sleep(2.5)
        with pytest.raises(Fenced):
            await host.answer(GetLatest("a"))
        with pytest.raises(Fenced):
            await host.rules_of("a")
        p.store.down = False
        await asyncio.sleep(1.5)
        assert (await p.router.ask(GetLatest("a")))["metrics"]["temperature"]["value"] == 1.0
        # Everybody was cut off, so nobody was replaced.
        assert (await p.coordinator.statistics())["replaced"] == {}


def test_without_the_database_a_host_answers_until_its_lease_is_over() -> None:
    run_virtually(_cut_off_from_the_database, 6)


async def _alone_cut_off() -> None:
    async with platform(hosts=2) as p:
        load = Load(p, every_s=0.05)
        await asyncio.sleep(1.0)
        host = p.launcher.current["host-0"].thing

        async def away(*_: Any) -> Any:
            raise LogUnavailable("cut off")

        for method in ("held", "claim", "hand_over", "commit", "save", "load", "open", "seen"):
            setattr(host._ports.logs[0], method, away)
        cut_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(60):
            while p.launcher.current["host-0"].thing is host or "host-0" not in owners(p):
                await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - cut_s < LEASE_S + 3.0
        await load.ended()


@pytest.mark.slow
def test_a_host_that_alone_is_cut_off_from_the_database_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings_module, "RENEW_EVERY_S", 1.0)
    run_virtually(_alone_cut_off, 7)


async def _node_lost(lost: str, left: str) -> None:
    async with platform(hosts=2) as p:
        p.launcher.machines = [Node("a", 1), Node("b", 1)]
        for host in list(p.coordinator._hosts.values()):
            assert host.process is not None
            host.process.end()
        async with asyncio.timeout(10):
            while {host.node for host in p.coordinator._hosts.values()} != {"a", "b"}:
                await asyncio.sleep(0.01)
        assert await p.coordinator.balanced()
        by_node = {host.node: host for host in p.coordinator._hosts.values()}
        stays = by_node[left]
        load = Load(p, 0.05)
        await asyncio.sleep(0.1)
        by_node[lost].process.cut()
        p.launcher.machines = [node for node in p.launcher.machines if node.node_id == left]
        async with asyncio.timeout(LEASE_S + PING_TIMEOUT_S):
            while owners(p) != {stays.name: SHARDS}:
                await asyncio.sleep(0.01)
        assert not stays.leaving
        assert p.coordinator._hosts[stays.name] is stays
        by_node[lost].process.end()
        await load.ended()


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "left"), [("a", "b"), ("b", "a")])
def test_the_hosts_that_stay_claim_what_was_lost_with_a_node(lost: str, left: str) -> None:
    """And none of them has to make room for the one that may be lost, as long as nobody knows."""
    run_virtually(lambda: _node_lost(lost, left), 4)
