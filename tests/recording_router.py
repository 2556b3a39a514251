"""A router that keeps what it is given and commits when told, or as it comes."""

import asyncio
from typing import Any, NamedTuple

from sensorium.actors.errors import Unavailable
from sensorium.actors.messages import ACCEPTED, DeadLetter, Message, Outcome, Value
from sensorium.ingest.pipeline import Done


class Routed(NamedTuple):
    device_id: str
    time_ms: int
    received_ms: int
    key: int
    names: tuple[str, ...]
    values: list[Value]
    flags: int


class RecordingRouter:
    """`commits`: whether what it is given is committed in the next turn of the loop."""

    def __init__(self, *, commits: bool = False) -> None:
        self.commits = commits
        self.readings: list[Routed] = []
        self.messages: list[Message] = []
        self._open: list[tuple[Done, Any]] = []
        self._changed = asyncio.Event()

    @property
    def letters(self) -> list[DeadLetter]:
        """The dead letters among the messages."""
        return [message for message in self.messages if isinstance(message, DeadLetter)]

    def reading(
        self,
        device_id: str,
        time_ms: int,
        received_ms: int,
        key: int,
        names: tuple[str, ...],
        values: list[Value],
        flags: int,
        done: Done,
        token: Any,
    ) -> None:
        self.readings.append(Routed(device_id, time_ms, received_ms, key, names, values, flags))
        self._accept(done, token)

    def message(self, message: Message, done: Done, token: Any) -> None:
        self.messages.append(message)
        self._accept(done, token)

    def _accept(self, done: Done, token: Any) -> None:
        self._open.append((done, token))
        if self.commits:
            asyncio.get_running_loop().call_soon(self.commit)

    def commit(self, *outcomes: Outcome) -> None:
        """All that is pending is done: with `outcomes` in order, the rest accepted."""
        finished, self._open = self._open, []
        for index, (done, token) in enumerate(finished):
            done(token, outcomes[index] if index < len(outcomes) else ACCEPTED)
        self._changed.set()

    @property
    def pending(self) -> int:
        return len(self._open)

    @property
    def load(self) -> int:
        return self.pending

    async def eased(self, below: int) -> None:
        await self.drained(below)

    async def drained(self, below: int) -> None:
        while self.pending >= below:
            self._changed.clear()
            await self._changed.wait()

    def failing(self, device_id: str) -> Unavailable | None:
        return None

    async def ask(self, message: Message, timeout_s: float = 1.0) -> Any:
        raise AssertionError("nobody answers questions here")
