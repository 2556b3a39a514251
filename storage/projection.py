"""What a projection of the log is made of: entries, the sink that takes them, and how it is to be fed.

The reading is in `projection_reader`, the feeding in `projection_runner`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from sensorium.actors.erasure import EVENT as ERASED_EVENT
from sensorium.actors.errors import Unavailable
from sensorium.actors.messages import ReadingFlag
from sensorium.storage.database import Connection


class SinkUnavailable(Unavailable):
    """Where a projection writes to takes nothing now. `retry_after_s` is what it asked for, if it did."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LogEntry(NamedTuple):
    """A row of the log: a reading, or an event when `kind` is given. Times are epoch milliseconds.

    `numbers` and `texts` go with the metric set of the id `metric_set` (see `encode.decode_values`).
    """

    shard: int
    offset: int
    device: int
    time_ms: int
    key: int | None
    flags: int | None
    metric_set: int | None
    numbers: list[float | None] | None
    texts: list[str | None] | None
    kind: str | None
    body: Any
    committed_ms: int


ERASED_DEVICE: Final = 0
ERASED_KIND: Final = ""
"""What rows of the log have whose device's data were deleted: nobody's. Projections do not see them."""


def is_erased(entry: LogEntry) -> bool:
    """Whether only the entry's place is left."""
    return entry.device == ERASED_DEVICE and (entry.kind == ERASED_KIND or entry.flags == ReadingFlag.ERASED)


def erased_at(entries: Sequence[LogEntry]) -> dict[int, int]:
    """Devices whose data were deleted at one of these entries, with the index of the last such one."""
    return {entry.device: index for index, entry in enumerate(entries) if entry.kind == ERASED_EVENT}


class Sink(Protocol):
    """Where a projection writes. One runner calls it, one call at a time, in the order below.

    `open`, then any number of `take` and `flush`, then `close`; after an error `close` and `open` again, with
    the entries since the last flush that was committed. Each entry comes at least once, in order of its
    shard. Whatever fails for a while raises `Unavailable` or `OSError`: the runner waits and begins again.
    """

    async def open(self, connection: Connection) -> None:
        """Begin without anything taken. `connection` is the runner's own, to read with."""
        ...

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        """Take all of them or none; True asks for a flush at once, because no more fit.

        Raises:
            InvalidMessage: one of them can never be taken; none was. The runner finds out which.
        """
        ...

    async def flush(self, transaction: Connection) -> None:
        """Make durable what was taken. The cursor moves in `transaction`, after this returns.

        What is written in the same transaction is there exactly once, anything else at least once.
        """
        ...

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """Entries committed since `to_ms` come again: remove what they left, if twice would be wrong.

        Raises:
            InvalidMessage: it cannot be rewound so far; nothing happened.
        """
        ...

    async def close(self) -> None:
        """Give everything back; what was not flushed is forgotten."""
        ...


@dataclass(frozen=True, slots=True)
class ProjectionSettings:
    """How a projection is fed.

    Attributes:
        name: of the cursor, the lock and the metrics.
        page_entries: how many entries are in memory at once, beside what the sink keeps.
        flush_every_s: entries are flushed after so long; 0: each page.
        poll_s: how often to look for more at the end of the log.
    """

    name: str
    page_entries: int = 10_000
    flush_every_s: float = 0.0
    poll_s: float = 0.25


class ProjectionStatus(NamedTuple):
    """What the database knows of a projection. `lag_entries` counts up to what hosts have last saved."""

    name: str
    state: str
    read_from_ms: int
    updated_ms: int
    rewinding: bool
    lag_entries: int
