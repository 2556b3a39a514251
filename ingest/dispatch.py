"""From a command that is ready to a device that is told: claimed there, told once, by whatever protocol.

Each protocol has a dispatcher of its own over one `Carrier`, so that none waits for another's broker.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import msgspec

from sensorium.actors.errors import Refused
from sensorium.actors.messages import (
    Answer,
    ClaimCommand,
    ClaimTwin,
    CommandUndelivered,
    Message,
    Outcome,
    Telling,
    TwinTelling,
    TwinTold,
    TwinUntold,
)
from sensorium.actors.twin import TWIN
from sensorium.ingest.errors import Disconnected
from sensorium.ingest.pipeline import Router

TELL_TIMEOUT_S: Final = 10.0
"""How long a carrier may take with a command; whether the device has it is unknown then."""
MAX_UNDER_WAY: Final = 1_000
"""Commands between their claim and the carrier's answer; the rest waits where it is, in the database."""

Ready = tuple[str, str, int]
"""What may be sent: device id, command id, attempt. Of a twin `TWIN` and 0."""


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


class TwinCarrier(Protocol):
    """One way of telling devices what is desired of them."""

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """As `Carrier.tell`, but a device may be told again, and what is older than it has is void."""
        ...


class Dispatcher:
    """Claims what is ready and tells it. It must be drained before the carrier is closed.

    A command is told once. A twin is told at least once: what nobody knows of is found again.

    Args:
        twins: tells of twins; None: devices of this protocol are not told of theirs.
    """

    def __init__(
        self,
        router: Router,
        sources: Sequence[ReadyCommands],
        carrier: Carrier,
        twins: TwinCarrier | None = None,
    ) -> None:
        self._router = router
        self._sources = sources
        self._carrier = carrier
        self._twins = twins
        self._under_way: dict[Ready, asyncio.Semaphore] = {}
        """Each with the room that it takes."""
        self._changed: set[Ready] = set()
        """Twins that are under way and were said to be ready once more."""
        self._share = max(1, MAX_UNDER_WAY // max(1, len(sources)))
        self._rooms = [asyncio.Semaphore(self._share) for _ in sources]
        """One a source: what waits for a database that is away leaves the others theirs."""
        self._unasked = asyncio.Semaphore(self._share)
        """The room of what is claimed without a source."""
        self._counts: Counter[str] = Counter()

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Dispatch from every source until cancelled; what is under way goes on in `tasks`."""
        self._tasks = tasks
        async with asyncio.TaskGroup() as ours:
            for source, room in zip(self._sources, self._rooms, strict=True):
                ours.create_task(self._dispatch(source, room))

    async def drained(self) -> None:
        """Return once nothing is under way. Bound it, and cancel `run` before."""
        for room in (*self._rooms, self._unasked):
            for _ in range(self._share):
                await room.acquire()

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and how many are under way."""
        names = ("published", "unreached", "refused", "unanswered", "not_claimed")
        return {"under_way": len(self._under_way), **{name: self._counts[name] for name in names}}

    async def _dispatch(self, source: ReadyCommands, room: asyncio.Semaphore) -> None:
        async for batch in source.watch():
            for ready in batch:
                device_id, command_id, attempt = ready
                if ready in self._under_way:
                    if command_id == TWIN:
                        self._changed.add(ready)
                    continue
                if command_id == TWIN and self._twins is None:
                    continue
                # While there is no way to the device, commands stay queued.
                await self._carrier.ready()
                await room.acquire()
                self._under_way[ready] = room
                claim: Message = ClaimTwin(device_id)
                if command_id != TWIN:
                    claim = ClaimCommand(device_id, command_id, attempt)
                self._router.message(claim, self._claimed, ready)

    async def claim(self, ready: Ready, downlink: str) -> None:
        """Claim a command without looking whether it is ready, and tell it if it was; `run` before.

        Submitted right behind its `SendCommand` this shares its commit. Without room, nothing is done.

        Args:
            downlink: the protocol of the carrier; a device that is told by another is not told here.
        """
        room = self._unasked
        if ready in self._under_way or room.locked():
            return
        await room.acquire()
        self._under_way[ready] = room
        self._router.message(ClaimCommand(*ready, downlink), self._claimed, ready)

    def _claimed(self, ready: Ready, outcome: Outcome) -> None:
        if isinstance(outcome, Answer) and outcome.value is not None:
            self._tasks.create_task(self._tell(ready, outcome.value))
        else:
            self._counts["not_claimed"] += 1
            self._leave(ready, outcome)

    def _leave(self, ready: Ready, _: Outcome | None = None) -> None:
        if ready in self._changed:
            # It was perhaps changed after its claim: ask once more instead of waiting for the next look.
            self._changed.discard(ready)
            self._router.message(ClaimTwin(ready[0]), self._claimed, ready)
            return
        self._under_way.pop(ready).release()

    async def _tell(self, ready: Ready, value: Any) -> None:
        said: Message | None = None
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                said = await (self._tell_twin if ready[1] == TWIN else self._tell_command)(ready, value)
        except (TimeoutError, Disconnected):
            self._counts["unanswered"] += 1
        else:
            self._counts["published"] += said is None or isinstance(said, TwinTold)
        finally:
            if said is None:
                self._leave(ready)
        if said is not None:
            # Until that is committed, it would be found again.
            self._router.message(said, self._leave, ready)

    async def _tell_command(self, ready: Ready, value: Any) -> Message | None:
        """What the device is told of what became of it, if anything."""
        device_id, command_id, attempt = ready
        try:
            await self._carrier.tell(device_id, msgspec.convert(value, Telling))
        except Untold as error:
            self._counts[error.count] += 1
            return CommandUndelivered(device_id, command_id, attempt, str(error), error.final)
        return None

    async def _tell_twin(self, ready: Ready, value: Any) -> Message:
        telling = msgspec.convert(value, TwinTelling)
        assert self._twins is not None
        try:
            await self._twins.tell_twin(ready[0], telling)
        except Untold as error:
            self._counts[error.count] += 1
            return TwinUntold(ready[0], telling.version, error.final)
        return TwinTold(ready[0], telling.version)
