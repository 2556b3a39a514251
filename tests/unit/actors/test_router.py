"""A router before hosts that do not answer."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from sensorium.actors import router as router_module
from sensorium.actors.messages import ACCEPTED, BatchReply, Outcome, Reading, batch_decoder
from sensorium.actors.placement import DEDICATED_SHARDS, SHARDS
from sensorium.actors.router import Router, Table

SILENT_S = 0.02
DEADLINE_S = 5.0


class Wire:
    """One host by name, at an address that changes when it is replaced. `silent` do not answer."""

    def __init__(self) -> None:
        self.version = 1
        self.address = "first"
        self.silent = {"first"}
        self.delivered: list[str] = []
        self.asked = asyncio.Event()
        self.heard = asyncio.Event()

    def replace(self) -> None:
        self.version += 1
        self.address = "second"

    async def table(self, newer_than: int | None = None) -> Table:
        if newer_than is not None:
            self.asked.set()
        return Table(self.version, ["host-0"] * SHARDS, {"host-0": self.address})

    async def close(self) -> None:
        """Nothing is held."""

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """Nobody waits here."""
        return None

    async def deliver(self, address: Any, data: bytes) -> bytes:
        self.delivered.append(address)
        if address in self.silent:
            await self.heard.wait()
        return msgspec.msgpack.encode(BatchReply(len(self.delivered), {}, []))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "SILENT_S", SILENT_S)


def submit(router: Router) -> "asyncio.Future[Outcome]":
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    router.reading("d-1", 1, 1, 1, ("t",), [1.0], 0, lambda token, outcome: token.set_result(outcome), future)
    return future


async def broken_by(router: Router) -> None:
    """Raises what broke it."""
    while True:
        router.check()
        await asyncio.sleep(SILENT_S)


async def test_a_silent_host_is_given_up_when_another_is_in_its_place() -> None:
    wire = Wire()
    async with asyncio.timeout(DEADLINE_S), Router("test", wire) as router:
        outcome = submit(router)
        await wire.asked.wait()
        assert not outcome.done()
        wire.replace()
        assert await outcome == ACCEPTED
    assert wire.delivered == ["first", "second"]


async def test_a_slow_host_that_nobody_replaces_is_waited_for() -> None:
    wire = Wire()
    async with asyncio.timeout(DEADLINE_S), Router("test", wire) as router:
        outcome = submit(router)
        for _ in range(3):
            wire.asked.clear()
            await wire.asked.wait()
        wire.heard.set()
        assert await outcome == ACCEPTED
    assert wire.delivered == ["first"]


async def test_what_breaks_the_way_to_the_table_breaks_the_router() -> None:
    wire = Wire()
    async with asyncio.timeout(DEADLINE_S), Router("test", wire) as router:
        submit(router)

        async def broken(newer_than: int | None = None) -> Table:
            wire.asked.set()
            raise RuntimeError("a fault of ours")

        wire.table = broken  # type: ignore[method-assign]
        await wire.asked.wait()
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await broken_by(router)


class Ways:
    """Hosts that answer when they are told to; `delivered` has what each was given, in order."""

    def __init__(self, homes: dict[str, str]) -> None:
        self.table_now = self.tabled(1, homes)
        self.delivered: dict[str, list[tuple[str, int]]] = {}
        self.answers: dict[str, asyncio.Queue[list[int]]] = {}
        self.came = asyncio.Event()

    def tabled(self, version: int, homes: dict[str, str]) -> Table:
        """All at host-0 but the devices of `homes`, each with a dedicated shard at that host."""
        shards = {device: SHARDS + n for n, device in enumerate(sorted(homes))}
        hosts = ["host-0"] * SHARDS + [""] * DEDICATED_SHARDS
        for device, shard in shards.items():
            hosts[shard] = homes[device]
        return Table(version, hosts, {name: name for name in hosts}, shards)

    async def table(self, newer_than: int | None = None) -> Table:
        return self.table_now

    async def close(self) -> None:
        """Nothing is held."""

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """Nobody waits here."""
        return None

    async def deliver(self, address: str, data: bytes) -> bytes:
        batch = batch_decoder.decode(data)
        given = [(m.device_id, m.key) for m in batch.messages if isinstance(m, Reading)]
        self.delivered.setdefault(address, []).extend(given)
        self.came.set()
        moved = await self.answers.setdefault(address, asyncio.Queue()).get()
        if moved:
            del self.delivered[address][-len(given) :]
        return msgspec.msgpack.encode(BatchReply(batch.sequence, {}, moved))

    def answer(self, address: str, moved: Sequence[int] = ()) -> None:
        self.answers.setdefault(address, asyncio.Queue()).put_nowait(list(moved))

    async def until(self, address: str, given: list[tuple[str, int]]) -> None:
        """Return once that is what the host was given, and nothing else."""
        async with asyncio.timeout(DEADLINE_S):
            while self.delivered.get(address, []) != given:
                self.came.clear()
                await self.came.wait()


async def test_what_is_for_a_device_that_gets_a_shard_of_its_own_stays_in_order() -> None:
    ways = Ways({})
    outcomes: list[tuple[str, int]] = []

    def send(device: str, number: int) -> None:
        done = lambda token, _: outcomes.append(token)  # noqa: E731
        router.reading(device, 1, 1, number, ("t",), [1.0], 0, done, (device, number))

    async with Router("sender", ways) as router:
        send("d", 1)
        send("e", 1)
        await ways.until("host-0", [("d", 1), ("e", 1)])
        send("d", 2)
        send("e", 2)
        # The device goes from one shard to another and to another host at once, as far as this router sees.
        ways.table_now = ways.tabled(2, {"d": "device:d"})
        router._adopt(ways.table_now)
        send("d", 3)
        await asyncio.sleep(SILENT_S)
        assert "device:d" not in ways.delivered  # the first may have been committed, or come back
        ways.answer("host-0", moved=[0])
        await ways.until("device:d", [("d", 1), ("d", 2), ("d", 3)])
        await ways.until("host-0", [("e", 2)])
        ways.answer("host-0")
        ways.answer("device:d")
        await router.drained(1)
        assert sorted(outcomes) == [("d", 1), ("d", 2), ("d", 3), ("e", 1), ("e", 2)]

        send("d", 4)
        await ways.until("device:d", [("d", n) for n in (1, 2, 3, 4)])
        send("d", 5)
        ways.table_now = ways.tabled(3, {})
        router._adopt(ways.table_now)
        send("d", 6)
        # Its neighbours do not wait for it.
        send("e", 3)
        await ways.until("host-0", [("e", 2), ("e", 3)])
        ways.answer("host-0")
        ways.answer("device:d")
        await ways.until("host-0", [("e", 2), ("e", 3), ("d", 5), ("d", 6)])
        ways.answer("host-0")
        await router.drained(1)
        assert [number for device, number in outcomes if device == "d"] == [1, 2, 3, 4, 5, 6]
        router._adopt(ways.tabled(4, {}))
        assert router._lanes.keys() == {("host-0", 0)}


async def test_a_device_takes_along_what_waits_with_its_shard() -> None:
    """Its shard goes to another host while a batch is under way, and then it gets one of its own."""
    ways = Ways({})
    done: list[int] = []
    async with Router("sender", ways) as router:

        def send(number: int) -> None:
            router.reading("d", 1, 1, number, ("t",), [1.0], 0, lambda n, _: done.append(n), number)

        send(1)
        await ways.until("host-0", [("d", 1)])
        send(2)
        moved = ways.tabled(2, {})
        router._adopt(moved._replace(hosts=["host-1"] * len(moved.hosts), addresses={"host-1": "host-1"}))
        send(3)
        ways.table_now = ways.tabled(3, {"d": "device:d"})
        router._adopt(ways.table_now)
        send(4)
        await asyncio.sleep(SILENT_S)
        assert ways.delivered.keys() == {"host-0"}
        ways.answer("host-0")
        await ways.until("device:d", [("d", 2), ("d", 3), ("d", 4)])
        ways.answer("device:d")
        await router.drained(1)
        assert done == [1, 2, 3, 4]
