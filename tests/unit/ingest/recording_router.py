"""A router that keeps what it is given and commits when told."""

from typing import Any, NamedTuple

from sensorium.actors.messages import ACCEPTED, Message, Outcome, Value
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
    def __init__(self) -> None:
        self.readings: list[Routed] = []
        self.messages: list[Message] = []
        self._open: list[tuple[Done, Any]] = []

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
        self._open.append((done, token))

    def message(self, message: Message, done: Done, token: Any) -> None:
        self.messages.append(message)
        self._open.append((done, token))

    def commit(self, *outcomes: Outcome) -> None:
        """All that is pending is done: with `outcomes` in order, the rest accepted."""
        finished, self._open = self._open, []
        for index, (done, token) in enumerate(finished):
            done(token, outcomes[index] if index < len(outcomes) else ACCEPTED)

    @property
    def pending(self) -> int:
        return len(self._open)

    async def drained(self, below: int) -> None:
        assert self.pending < below, "the test must commit before it waits"
