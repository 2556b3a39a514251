"""From a command that is ready to a device that is told: claimed there, told once, by whatever protocol.

Each protocol has a dispatcher of its own over one `Carrier`, so that none waits for another's broker.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import msgspec

from sensorium.actors.errors import Refused
from sensorium.actors.messages import Answer, ClaimCommand, CommandUndelivered, Outcome, Telling
from sensorium.ingest.errors import Disconnected
from sensorium.ingest.pipeline import Router

TELL_TIMEOUT_S: Final = 10.0
"""How long a carrier may take with a command; whether the device has it is unknown then."""
MAX_UNDER_WAY: Final = 1_000
"""Commands between their claim and the carrier's answer; the rest waits where it is, in the database."""

Ready = tuple[str, str, int]
"""A command that may be sent: device id, command id, attempt."""


class ReadyCommands(Protocol):
    """Where it stands which commands may be sent now by one protocol."""

    def watch(self) -> AsyncIterator[Sequence[Ready]]:
        """Soon after they become ready, and all there are again now and then."""
        ...


class Untold(Refused):
    """The device was certainly not told. `final`: it never can be told this."""

    code = "untold"

    def __init__(self, reason: str, *, final: bool, count: str = "refused") -> None:
        super().__init__(reason)
        self.final = final
        self.count = count


class Carrier(Protocol):
    """One way of telling devices."""

    async def ready(self) -> None:
        """Return once devices can be told. Until then commands stay queued, to expire or to be cancelled."""
        ...

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Tell a device, once; return when what lies between has taken it over.

        Raises:
            Untold: it was certainly not told.
            Disconnected: nobody knows.
        """
        ...


class Dispatcher:
    """Claims what is ready and tells it. It must be drained before the carrier is closed."""

    def __init__(self, router: Router, sources: Sequence[ReadyCommands], carrier: Carrier) -> None:
        self._router = router
        self._sources = sources
        self._carrier = carrier
        self._under_way: set[tuple[str, int]] = set()
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._counts: Counter[str] = Counter()

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Dispatch from every source until cancelled; what is under way goes on in `tasks`."""
        self._tasks = tasks
        async with asyncio.TaskGroup() as ours:
            for source in self._sources:
                ours.create_task(self._dispatch(source))

    async def drained(self) -> None:
        """Return once nothing is under way. Bound it, and cancel `run` before."""
        for _ in range(MAX_UNDER_WAY):
            await self._room.acquire()

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and how many are under way."""
        names = ("published", "unreached", "refused", "unanswered", "not_claimed")
        return {"under_way": len(self._under_way), **{name: self._counts[name] for name in names}}

    async def _dispatch(self, source: ReadyCommands) -> None:
        async for batch in source.watch():
            for device_id, command_id, attempt in batch:
                if (command_id, attempt) in self._under_way:
                    continue
                # While there is no way to the device, commands stay queued.
                await self._carrier.ready()
                await self._room.acquire()
                self._under_way.add((command_id, attempt))
                claim = ClaimCommand(device_id, command_id, attempt)
                self._router.message(claim, self._claimed, claim)

    def _claimed(self, claim: ClaimCommand, outcome: Outcome) -> None:
        if isinstance(outcome, Answer) and outcome.value is not None:
            telling = msgspec.convert(outcome.value, Telling)
            self._tasks.create_task(self._tell(claim, telling))
        else:
            self._counts["not_claimed"] += 1
            self._leave(claim)

    def _leave(self, claim: ClaimCommand) -> None:
        self._under_way.discard((claim.command_id, claim.attempt))
        self._room.release()

    async def _tell(self, claim: ClaimCommand, telling: Telling) -> None:
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self._carrier.tell(claim.device_id, telling)
        except (TimeoutError, Disconnected):
            self._counts["unanswered"] += 1
        except Untold as error:
            self._counts[error.count] += 1
            said = CommandUndelivered(
                claim.device_id, claim.command_id, claim.attempt, str(error), error.final
            )
            self._router.message(said, _nothing, None)
        else:
            self._counts["published"] += 1
        finally:
            self._leave(claim)


def _nothing(_: Any, __: Outcome) -> None:
    return None
