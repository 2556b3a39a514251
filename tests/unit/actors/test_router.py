"""A router before hosts that do not answer."""

import asyncio
from typing import Any

import msgspec
import pytest

from sensorium.actors import router as router_module
from sensorium.actors.messages import ACCEPTED, BatchReply, Outcome
from sensorium.actors.placement import SHARDS
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
