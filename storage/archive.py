"""History that the log no longer has: what is asked of an archive, where it ends and the log begins.

A reading is committed at most a day before its event time. So where retention has dropped what was committed
before `kept_from`, every reading with an event time from a day after that on is in the log. All older ones
are in the archive, because retention waits for its projection, or in the log behind that projection's cursor.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from sensorium.actors.messages import Value
from sensorium.storage.influx_lines import SUB_MS

FUTURE_MS: Final = 25 * 3_600_000
"""How far a reading's event time may lie after its commit, and an hour."""
NEVER_NS: Final = -9_214_560_000_000_000_000
"""1678: before every point."""
MAX_ROWS: Final = 500_000
"""Of one answer of the archive."""


class ArchivedPoint(NamedTuple):
    """A reading, or those of its metrics that were asked for. `ns` is as `influx_lines.point_ns` has it."""

    ns: int
    values: dict[str, Value]
    flags: int


class Question(NamedTuple):
    """What is to be aggregated: of a device, or of all devices of a type, by intervals or as a whole.

    `metrics` None is all. `aggregation` is one of `_history_sql.AGGREGATIONS`. `every_ns` None: no interval.
    """

    device_id: str | None
    device_type: str | None
    metrics: Sequence[str] | None
    aggregation: str
    every_ns: int | None


class ArchivedRow(NamedTuple):
    """Figures of values of one metric in one interval, as far as the aggregation needs them.

    Of one interval there may be several rows. `bucket_ms` is None without intervals. `kind` is that of
    `actors.metrics`; numbers and bools (as 0 and 1) have a `total`, texts have none.
    """

    device_id: str
    bucket_ms: int | None
    first_at_ms: int
    last_at_ms: int
    name: str
    kind: str
    n: int = 0
    total: float | None = None
    least: float | None = None
    most: float | None = None
    first: float | None = None
    last: float | None = None
    first_text: str | None = None
    last_text: str | None = None


class Archive(Protocol):
    """Holds every reading that its projection has taken. Every call raises `Unavailable` when it is away."""

    @property
    def projection(self) -> str:
        """The projection's name."""
        ...

    async def points(
        self,
        device_id: str,
        start_ns: int,
        end_ns: int,
        metrics: Sequence[str] | None,
        limit: int,
        newest_first: bool,
    ) -> list[ArchivedPoint]:
        """The first `limit` points with one of the metrics in the range, in order; its end is not in it."""
        ...

    async def aggregate(self, question: Question, start_ms: int, end_ms: int) -> list[ArchivedRow]:
        """Figures of the values in the range; its end is not in it. For percentiles: a row for each value.

        Raises:
            InvalidMessage: they would be more than `MAX_ROWS`.
        """
        ...


class Seam(NamedTuple):
    """Event times before `at_ms` are the archive's, but for what the log has behind `cursors`."""

    at_ms: int
    read_from_ms: int
    cursors: list[int]


def merged(
    log: Sequence[ArchivedPoint], archive: Sequence[ArchivedPoint], limit: int, newest_first: bool
) -> list[ArchivedPoint]:
    """The first `limit` of both in order; what both have, once."""
    by_ns = {point.ns: point for point in (*archive, *log)}
    return sorted(by_ns.values(), key=lambda point: point.ns, reverse=newest_first)[:limit]


def range_ns(
    start_ms: int | None,
    end_ms: int | None,
    seam_ms: int,
    after: tuple[int | None, int | None],
    newest_first: bool,
) -> tuple[int, int]:
    """The part of the range before the seam, behind the place `after` (time, nanoseconds) in this order."""
    start_ns = NEVER_NS if start_ms is None else start_ms * SUB_MS
    end_ns = (seam_ms if end_ms is None else min(end_ms, seam_ms)) * SUB_MS
    time_ms, sub_ns = after
    if time_ms is not None and sub_ns is not None:
        place_ns = time_ms * SUB_MS + sub_ns
        if newest_first:
            end_ns = min(end_ns, place_ns)
        else:
            start_ns = max(start_ns, place_ns + 1)
    return start_ns, end_ns
