"""From what is ready to a device that is told: commands once, twins at least once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    ClaimTwin,
    Message,
    Outcome,
    Telling,
    TwinTelling,
    TwinTold,
    TwinUntold,
)
from sensorium.actors.twin import TWIN
from sensorium.ingest import dispatch
from sensorium.ingest.dispatch import Dispatcher, Untold
from sensorium.ingest.errors import Disconnected


class Device:
    """Answers claims of its twin; keeps what it is told of them."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.pending = 0

    def message(self, message: Message, done: Callable[[Any, Outcome], None], token: Any) -> None:
        if isinstance(message, ClaimTwin):
            done(token, Answer({"version": 3, "delta": {"a": 1}, "changed_ms": 5}))
        else:
            self.said.append(message)
            done(token, ACCEPTED)

    def reading(self, *_: Any) -> None:
        raise AssertionError("no reading is dispatched")

    async def drained(self, below: int) -> None:
        return


class Carrier:
    """Fails as often as it is told to, then tells."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.told: list[tuple[str, TwinTelling]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ready(self) -> None:
        return

    async def tell(self, device_id: str, telling: Telling) -> None:
        raise AssertionError("no command is ready")

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.told.append((device_id, telling))


class Source:
    def __init__(self) -> None:
        self.ready: asyncio.Queue[list[tuple[str, str, int]]] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[list[tuple[str, str, int]]]:
        while True:
            yield await self.ready.get()


@asynccontextmanager
async def dispatching(
    carrier: Carrier, *, twins: bool = True
) -> AsyncIterator[tuple[Device, Source, Dispatcher]]:
    device, source = Device(), Source()
    dispatcher = Dispatcher(device, [source], carrier, carrier if twins else None)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(dispatcher.run(tasks))
        yield device, source, dispatcher
        running.cancel()


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0)


async def test_what_nobody_knows_of_is_found_and_told_again() -> None:
    carrier = Carrier(Disconnected("cut off"))
    async with dispatching(carrier) as (device, source, dispatcher):
        for _ in range(2):
            source.ready.put_nowait([("d", TWIN, 0)])
            await until(lambda: source.ready.empty() and not dispatcher.statistics()["under_way"])
        await until(lambda: device.said)
    assert carrier.told == [("d", TwinTelling(3, {"a": 1}, 5))]
    assert device.said == [TwinTold("d", 3)]
    counts = dispatcher.statistics()
    assert (counts["unanswered"], counts["published"]) == (1, 1)


async def test_what_is_ready_again_while_it_is_told_is_told_at_once() -> None:
    carrier = Carrier()
    carrier.gate.clear()
    async with dispatching(carrier) as (device, source, dispatcher):
        source.ready.put_nowait([("d", TWIN, 0)])
        await until(lambda: dispatcher.statistics()["under_way"])
        for _ in range(3):
            source.ready.put_nowait([("d", TWIN, 0)])
        await until(source.ready.empty)
        for _ in range(10):
            await asyncio.sleep(0)
        carrier.gate.set()
        await until(lambda: not dispatcher.statistics()["under_way"])
    assert device.said == [TwinTold("d", 3)] * 2


async def test_who_was_not_told_hears_so() -> None:
    carrier = Carrier(Untold("nobody listens", final=False, count="unreached"), Untold("no", final=True))
    async with dispatching(carrier) as (device, source, _):
        source.ready.put_nowait([("d", TWIN, 0), ("e", TWIN, 0)])
        await until(lambda: len(device.said) == 2)
    assert device.said == [TwinUntold("d", 3), TwinUntold("e", 3, final=True)]


async def test_claims_that_wait_leave_other_sources_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_UNDER_WAY", 4)
    carrier, device, sources = Carrier(), Device(), [Source(), Source()]
    answered = device.message

    def message(message: Message, done: Callable[[Any, Outcome], None], token: Any) -> None:
        if not message.device_id.startswith("away"):
            answered(message, done, token)

    monkeypatch.setattr(device, "message", message)
    dispatcher = Dispatcher(device, sources, carrier, carrier)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(dispatcher.run(tasks))
        sources[0].ready.put_nowait([(f"away-{n}", TWIN, 0) for n in range(5)])
        await until(lambda: dispatcher.statistics()["under_way"] == 2)
        sources[1].ready.put_nowait([(f"d-{n}", TWIN, 0) for n in range(5)])
        await until(lambda: len(device.said) == 5)
        running.cancel()
    assert {device_id for device_id, _ in carrier.told} == {f"d-{n}" for n in range(5)}


async def test_a_protocol_that_knows_no_twins_passes_them_over() -> None:
    carrier = Carrier()
    async with dispatching(carrier, twins=False) as (device, source, dispatcher):
        source.ready.put_nowait([("d", TWIN, 0)])
        await until(source.ready.empty)
    assert (device.said, carrier.told, dispatcher.statistics()["under_way"]) == ([], [], 0)
