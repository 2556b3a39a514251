"""Hosts, router and coordinator together, with crashes: what is acknowledged is stored, once and in order."""

import asyncio
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from sensorium.actors import compartment as compartment_module
from sensorium.actors import coordinator as coordinator_module
from sensorium.actors import passivation as passivation_module
from sensorium.actors import router as router_module
from sensorium.actors import supervision as supervision_module
from sensorium.actors import ticker as ticker_module
from sensorium.actors.activations import ActivationSettings
from sensorium.actors.coordinator import Coordinator, RuntimeSpec, ServiceSpec
from sensorium.actors.errors import DeviceConflict, DeviceNotFound, InvalidMessage, LogUnavailable
from sensorium.actors.host import HostSettings
from sensorium.actors.messages import (
    Accepted,
    Batch,
    Duplicate,
    GetDevice,
    GetLatest,
    Patch,
    Refusal,
    Register,
    batch_encoder,
)
from sensorium.actors.placement import device_key
from sensorium.actors.router import Router
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import NoData, RuleSpec
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.local import LocalLauncher, LocalTransport

NAMES = ("temperature", "humidity")
NOW_MS = 1_700_000_000_000


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(router_module, "RETRY_MOST_S", 0.01)
    monkeypatch.setattr(supervision_module, "PING_EVERY_S", 0.005)
    for module in (supervision_module, coordinator_module):
        monkeypatch.setattr(module, "RETRY_S", 0.005)
    monkeypatch.setattr(coordinator_module, "BALANCE_EVERY_S", 0.02)
    monkeypatch.setattr(coordinator_module, "NEWER_TABLE_WAIT_S", 0.02)
    monkeypatch.setattr(passivation_module, "SWEEP_EVERY_S", 0.005)
    monkeypatch.setattr(compartment_module, "SAVE_PAUSE_S", 0.0)
    monkeypatch.setattr(compartment_module, "IDLE_S", 0.005)


class Platform:
    def __init__(self, store: MemoryStore, coordinator: Coordinator, launcher: LocalLauncher, router: Router):
        self.store, self.coordinator, self.launcher, self.router = store, coordinator, launcher, router

    def send(self, device_id: str, number: int, outcomes: dict[tuple[str, int], Any]) -> None:
        """Send the reading `number` of a device; its outcome lands in `outcomes` under (device, number)."""
        self.router.reading(
            device_id,
            NOW_MS + number * 1000,
            NOW_MS,
            number,
            NAMES,
            [float(number), 50.0],
            0,
            outcomes.__setitem__,
            (device_id, number),
        )


@asynccontextmanager
async def platform(seed: int = 0, hosts: int = 2, store: MemoryStore | None = None, **activation: Any) -> Any:
    store = store or MemoryStore()
    launcher = LocalLauncher(seed)
    settings = HostSettings(auto_register_as="generic", activation=ActivationSettings(**activation))
    spec = RuntimeSpec(hosts, store.ports, store.membership, settings)
    coordinator = Coordinator(spec, launcher)
    await coordinator.start()
    async with Router("test", LocalTransport(coordinator)) as router:
        yield Platform(store, coordinator, launcher, router)
    await coordinator.stop()


def abandon(coordinator: Coordinator) -> None:
    """What a coordinator's sudden death is for the others: it does nothing more."""
    hosts = (host.task for host in coordinator._hosts.values() if host.task is not None)
    for task in [*coordinator._tasks, *hosts]:
        task.cancel()


async def _drain(router: Router) -> None:
    waiting = asyncio.ensure_future(router.drained(1))
    async with asyncio.timeout(20):
        while not waiting.done():
            router.check()
            await asyncio.wait({waiting}, timeout=0.1)


def assert_log_is_sound(store: MemoryStore, outcomes: dict[tuple[str, int], Any]) -> None:
    stored = Counter((row.device, row.key) for row in store.readings)
    twice = [identity for identity, count in stored.items() if count > 1]
    lost = [k for k, o in outcomes.items() if (device_key(k[0]), k[1]) not in stored]
    assert not twice, f"stored twice: {twice[:5]}"
    assert not lost, f"acknowledged and lost: {lost[:5]}"
    by_shard: dict[int, list[int]] = defaultdict(list)
    for row in [*store.readings, *store.events]:
        by_shard[row.shard].append(row.offset)
    for shard, offsets in by_shard.items():
        assert sorted(offsets) == list(range(1, len(offsets) + 1)), f"gaps in shard {shard}"
    # As they were committed, and within a shard as their offsets say.
    for rows in (store.readings, sorted(store.readings, key=lambda r: (r.shard, r.offset))):
        last: dict[tuple[int, int], int] = {}
        for row in rows:
            place = (row.device, 0 if rows is store.readings else row.shard)
            assert last.get(place, -1) < row.key, f"out of order: {row}"
            last[place] = row.key


async def test_registers_answers_and_refuses() -> None:
    async with platform() as p:
        info = await p.router.ask(Register("a", "climate", None, {"site": "x"}))
        assert info["device_type"] == "climate"
        with pytest.raises(DeviceConflict):
            await p.router.ask(Register("a", "climate"))
        with pytest.raises(DeviceNotFound):
            await p.router.ask(GetLatest("nobody"))
        outcomes: dict[tuple[str, int], Any] = {}
        p.send("a", 1, outcomes)
        p.send("a", 1, outcomes)
        await p.router.drained(1)
        latest = await p.router.ask(GetLatest("a"))
        assert latest["metrics"]["temperature"] == {
            "value": 1.0,
            "time_ms": NOW_MS + 1000,
            "quality": "good",
        }
        assert len(p.store.readings) == 1
        patched = await p.router.ask(Patch("a", metadata={"site": None, "floor": 2}))
        assert patched["metadata"] == {"floor": 2}


async def test_a_duplicate_is_told_apart() -> None:
    async with platform() as p:
        seen: list[Any] = []
        for _ in range(2):
            p.router.reading("a", NOW_MS, NOW_MS, 7, NAMES, [1.0, 2.0], 0, lambda _, o: seen.append(o), None)
            await p.router.drained(1)
        assert [type(o) for o in seen] == [Accepted, Duplicate]


async def test_one_bad_message_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that raises, and a row that the log refuses, become dead letters; the neighbours are stored."""
    async with platform() as p:
        outcomes: dict[tuple[str, int], Any] = {}
        for number in range(1, 20):
            p.send("good", number, outcomes)
            # A list is no metric value: the wire would not carry it, so it stands for a fault of ours.
            p.router.reading(
                f"bad-{number}",
                NOW_MS,
                NOW_MS,
                number,
                ("x",),
                ["\0"],
                0,
                outcomes.__setitem__,
                ("bad", number),
            )
        await p.router.drained(1)
        assert all(isinstance(outcomes["good", n], Accepted) for n in range(1, 20))
        bad = [outcomes["bad", n] for n in range(1, 20)]
        assert all(isinstance(o, Refusal) and o.dead_lettered for o in bad)
        assert len(p.store.dead_letters) == 19
        good = {k: v for k, v in outcomes.items() if k[0] == "good"}
        assert_log_is_sound(p.store, good)


async def test_a_fenced_host_is_replaced_and_what_it_held_goes_on() -> None:
    async with platform(hosts=1) as p:
        outcomes: dict[tuple[str, int], Any] = {}
        p.send("a", 1, outcomes)
        await p.router.drained(1)
        old = next(i for i, (_, alive) in p.store.hosts.items() if alive)
        await p.store.fence(old)
        for number in range(2, 10):
            p.send("a", number, outcomes)
        async with asyncio.timeout(10):
            await p.router.drained(1)
        assert_log_is_sound(p.store, outcomes)
        assert len(p.store.readings) == 9
        assert (await p.coordinator.statistics())["replaced"] == {"host-0": 1}


async def test_while_the_log_is_down_askers_are_told_and_readings_wait() -> None:
    async with platform() as p:
        await p.router.ask(Register("a", "climate"))
        p.store.down = True
        outcomes: dict[tuple[str, int], Any] = {}
        p.send("a", 1, outcomes)
        async with asyncio.timeout(10):
            while p.router.failing("a") is None:
                await asyncio.sleep(0.001)
        with pytest.raises(LogUnavailable):
            await p.router.ask(GetDevice("a"))
        assert not outcomes
        p.store.down = False
        async with asyncio.timeout(10):
            await p.router.drained(1)
        assert isinstance(outcomes["a", 1], Accepted)
        assert (await p.router.ask(GetDevice("a")))["device_id"] == "a"


async def test_a_table_that_tells_anything_new_is_a_later_one() -> None:
    """Else a router that was told of a host without an address would ask for a later one for ever."""
    async with platform() as p:
        await p.coordinator.table()
        host = p.coordinator._hosts["host-0"]
        host.serving = False
        await p.coordinator._look()
        without = p.coordinator._table
        host.serving = True
        await p.coordinator._look()
        with_it = p.coordinator._table
        await p.coordinator._look()
        assert (without.addresses.keys(), with_it.addresses.keys()) == ({"host-1"}, {"host-0", "host-1"})
        assert with_it.version > without.version
        assert p.coordinator._table.version == with_it.version


async def test_an_asker_is_not_told_of_a_host_that_was_replaced() -> None:
    async with platform() as p:
        await p.router.ask(Register("a", "climate"))
        before = (await p.coordinator.table()).addresses
        for host in list(p.launcher.current.values()):
            host.kill()
        async with asyncio.timeout(10):
            while any(now is before[name] for name, now in (await p.coordinator.table()).addresses.items()):
                await asyncio.sleep(0.001)
        # The router learns of it by the first of these; those that come meanwhile wait with it.
        first = asyncio.create_task(p.router.ask(GetDevice("a")))
        while not (p.router.statistics()["retries"] or first.done()):  # it may have learned of it before
            await asyncio.sleep(0)
        assert (await p.router.ask(GetDevice("a")))["device_id"] == "a"
        assert (await first)["device_id"] == "a"


async def test_a_clean_stop_saves_every_device() -> None:
    store = MemoryStore()
    outcomes: dict[tuple[str, int], Any] = {}
    async with platform(store=store) as p:
        for number in range(1, 4):
            p.send("a", number, outcomes)
            p.send("b", number, outcomes)
        await p.router.drained(1)
    assert {s.device for s in store.snapshots.values()} == {device_key("a"), device_key("b")}
    async with platform(store=store) as p:
        p.send("a", 3, outcomes)
        await p.router.drained(1)
        assert isinstance(outcomes["a", 3], Duplicate)


async def test_services_are_kept_running() -> None:
    class Service:
        started = 0

        async def start(self) -> None:
            Service.started += 1

        async def ping(self) -> None: ...

        def statistics(self) -> dict[str, Any]:
            return {"name": "service"}

        async def stop(self) -> None: ...

    store, launcher = MemoryStore(), LocalLauncher()
    spec = RuntimeSpec(1, store.ports, store.membership, HostSettings(), [ServiceSpec("svc", Service)])
    coordinator = Coordinator(spec, launcher)
    await coordinator.start()
    assert [s["name"] for s in (await coordinator.statistics())["services"]] == ["service"]
    launcher.current["svc"].kill()
    async with asyncio.timeout(10):
        while Service.started < 2:
            await asyncio.sleep(0.001)
    await coordinator.stop()


async def test_a_service_that_fails_in_any_way_is_replaced() -> None:
    class Service:
        made: ClassVar[list["Service"]] = []

        def __init__(self) -> None:
            self.broken = False
            Service.made.append(self)

        async def start(self) -> None:
            if len(Service.made) == 2:
                raise ZeroDivisionError("the second one does not even start")

        async def ping(self) -> None:
            if self.broken:
                raise KeyError("a fault of ours")

        def statistics(self) -> dict[str, Any]:
            return {}

        async def stop(self) -> None:
            raise IndexError("and stops badly")

    store = MemoryStore()
    spec = RuntimeSpec(1, store.ports, store.membership, HostSettings(), [ServiceSpec("svc", Service)])
    coordinator = Coordinator(spec, LocalLauncher())
    await coordinator.start()
    Service.made[0].broken = True
    async with asyncio.timeout(10):
        while len(Service.made) < 3:
            await asyncio.sleep(0.001)
    await coordinator.stop()


async def test_a_coordinator_made_anew_takes_over() -> None:
    outcomes: dict[tuple[str, int], Any] = {}
    async with platform() as p:
        for number in range(1, 4):
            p.send("a", number, outcomes)
        await p.router.drained(1)
        left_behind = dict(p.launcher.current)
        version = (await p.coordinator.table()).version
        owned = [owner[:2] for owner in p.store.owners]
        # Killed: nobody stops its hosts, which serve on; whoever asks the new one waits for its start.
        abandon(p.coordinator)
        anew = Coordinator(p.coordinator._spec, p.launcher)
        p.router._transport._coordinator = anew
        p.send("a", 4, outcomes)
        await p.router.drained(1)
        waiting = asyncio.ensure_future(anew.table())
        assert {*(await anew.statistics())["down"]} == {"host-0", "host-1"}
        assert not waiting.done()
        await anew.start()
        assert {*(await waiting).addresses} == {"host-0", "host-1"}
        for number in range(3, 40):
            p.send("a", number, outcomes)
        await _drain(p.router)
        assert (await anew.table()).version > version
        assert [owner[:2] for owner in p.store.owners] == owned
        assert p.launcher.current == left_behind
        assert_log_is_sound(p.store, outcomes)
        assert len([r for r in p.store.readings if r.device == device_key("a")]) == 39
        await anew.stop()


async def test_a_mapped_function_sees_committed_state_only() -> None:
    async with platform() as p:
        outcomes: dict[tuple[str, int], Any] = {}
        for i in range(30):
            await p.router.ask(Register(f"d{i}", "climate" if i % 2 else "tank"))
            p.send(f"d{i}", 1, outcomes)
        await p.router.drained(1)
        from sensorium.actors.ports import Filter

        parts = [
            await p.launcher.current[f"host-{h}"].thing.map(
                Filter("climate"), lambda v: v.values["temperature"]
            )
            for h in range(2)
        ]
        merged = {**parts[0], **parts[1]}
        assert len(merged) == 15
        assert set(merged.values()) == {1.0}


def test_rule_books_are_cheap_to_share() -> None:
    assert RuleBook().covering("a", "b") == []


async def test_timers_come_due_after_passivation_crash_and_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A no-data rule finds devices that are in no memory, once each, whatever happens meanwhile."""
    monkeypatch.setattr(ticker_module, "TICK_S", 0.005)
    monkeypatch.setattr(ticker_module, "RETRY_S", 0.005)
    monkeypatch.setattr(compartment_module, "IDLE_S", 0.005)
    store = MemoryStore()
    silent = RuleSpec(name="silent", condition=NoData(1.0))
    async with platform(store=store, idle_after_s=0.0, snapshot_every_s=0.0) as p:
        for i in range(20):
            await p.router.ask(Register(f"d{i}", "climate"))
        await store.create(silent)
        async with asyncio.timeout(10):
            while len(store.timers) + len(store.alarms) < 20:
                await asyncio.sleep(0.005)
        p.launcher.current["host-0"].kill()
        store.down = True
        await asyncio.sleep(0.05)
        store.down = False
        async with asyncio.timeout(20):
            while sum(a.state == "ACTIVE" for a in store.alarms.values()) < 20:
                await asyncio.sleep(0.01)
        assert len(store.alarms) == 20
        assert sorted(a.device_id for a in store.alarms.values()) == sorted(f"d{i}" for i in range(20))
        outcomes: dict[tuple[str, int], Any] = {}
        p.send("d3", 1, outcomes)
        await p.router.drained(1)
        assert sum(a.state == "CLEARED" for a in store.alarms.values()) == 1
        assert_log_is_sound(store, outcomes)


async def test_a_batch_that_comes_after_the_next_one_is_not_run() -> None:
    """Its sender has gone on: what it asks for would undo what was asked for since."""

    def asks(number: int, sequence: int, sender: str = "s") -> bytes:
        return batch_encoder.encode(Batch(sender, sequence, [], [Patch("a", metadata={"n": number})]))

    async with platform(hosts=1) as p:
        await p.router.ask(Register("a", "climate"))
        host = p.launcher.current["host-0"].thing
        for sequence in (1, 2, 2):
            await host.deliver(asks(sequence, sequence))
        with pytest.raises(InvalidMessage, match="too late"):
            await host.deliver(asks(1, 1))
        assert (await p.router.ask(GetDevice("a")))["metadata"] == {"n": 2}
        await host.deliver(asks(7, 1, "another"))
        assert (await p.router.ask(GetDevice("a")))["metadata"] == {"n": 7}
