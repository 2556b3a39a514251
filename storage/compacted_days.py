"""Which days of the log a question about some time has to look into, worked out before the server plans it.

Planning costs a statement about 0.1 ms for each day that it may read, more than running it does. What was
committed on a day that is compacted stays as it is, so what is known of it is right however old it is; days
that nothing is known of are always looked into.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date
from typing import Final

from sensorium.storage._readings_sql import AHEAD_MS, DAY_MS, Committed
from sensorium.storage.database import Connection
from sensorium.storage.partitions import attached

REFRESH_S: Final = 60.0
FIRST_DAYS: Final = 4
"""Of events, in the first window; two of them may be partitions made ahead."""
GROWTH: Final = 4
MAX_RANGES: Final = 16
"""Of commit times in one statement; further ones are read with what lies between."""
_DAYS: Final = "SELECT day, event_day FROM compacted_days ORDER BY 1, 2"
_EPOCH: Final = date(1970, 1, 1).toordinal()

Range = tuple[int | None, int | None]
"""Days from the first up to the second, which is not included."""
Window = tuple[int | None, int | None]
"""Event times, from the first up to the second, which is not included."""


class CompactedDays:
    """What one database has. Days are counted from 1970."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._read_s = float("-inf")
        self._compacted: list[tuple[int, list[int]]] = []
        """Days in order, each with the days of its events."""
        self._events: list[int] = []
        """The days of all events, with those of commits that are not compacted."""

    async def refresh(self, connection: Connection) -> None:
        """Read what there is, unless that was done in the last `REFRESH_S`."""
        if self._now_s() - self._read_s < REFRESH_S:
            return
        compacted: dict[date, list[date]] = {}
        for day, event_day in await connection.fetch(_DAYS):
            compacted.setdefault(day, []).append(event_day)
        self.know(compacted, [day for day, _ in await attached(connection, "readings")])
        self._read_s = self._now_s()

    def know(self, compacted: Mapping[date, Collection[date]], others: Collection[date]) -> None:
        """The days that are compacted, each with those of its events, and the other days of commits."""
        days = {_number(day): sorted(map(_number, events)) for day, events in compacted.items()}
        self._compacted = sorted(days.items())
        self._events = sorted(set(map(_number, others)).union(*days.values()))

    def committed(self, start_ms: int | None, end_ms: int | None) -> Committed:
        """When readings with event times in the range can have been committed."""
        return Committed.of_days(*self.ranges(start_ms, end_ms))

    def ranges(self, start_ms: int | None, end_ms: int | None) -> tuple[int | None, list[Range]]:
        """The same as days: the first one of rows, and those of chunks."""
        first = None if start_ms is None else start_ms // DAY_MS
        last = None if end_ms is None else (end_ms - 1) // DAY_MS
        rows_from = None if start_ms is None else (start_ms - AHEAD_MS) // DAY_MS
        without = (day for day, events in self._compacted if not _overlap(events, first, last))
        return rows_from, _between(rows_from, without)

    def of_devices(self, spans: Collection[tuple[int, int]], since_ms: int | None) -> Committed:
        """When readings of devices can have been committed, from a time on.

        Args:
            spans: the first and the last compacted day of each that has one, read from `compacted_devices`
                after what is known here.
        """
        begin = None if since_ms is None else since_ms // DAY_MS
        without = (
            day for day, _ in self._compacted if not any(first <= day <= last for first, last in spans)
        )
        return Committed.of_days(begin, _between(begin, without))

    def windows(self, order: str, start_ms: int | None, end_ms: int | None) -> Iterator[Window]:
        """Windows that cover the range once, in the order ("asc" or "desc") of time, ever more days long.

        For whoever has enough after a few readings.
        """
        low = 0 if start_ms is None else bisect_left(self._events, start_ms // DAY_MS)
        high = len(self._events) if end_ms is None else bisect_left(self._events, -(-end_ms // DAY_MS))
        size = FIRST_DAYS
        if order == "asc":
            while high - low > size:
                low += size
                until_ms = self._events[low] * DAY_MS
                yield start_ms, until_ms
                start_ms, size = until_ms, size * GROWTH
        else:
            while high - low > size:
                high -= size
                from_ms = self._events[high] * DAY_MS
                yield from_ms, end_ms
                end_ms, size = from_ms, size * GROWTH
        yield start_ms, end_ms


def _between(begin: int | None, without: Iterable[int]) -> list[Range]:
    """The days from the first one on, as few ranges, but for some: these are in order."""
    ranges: list[Range] = []
    for day in without:
        if begin is None or day >= begin:
            if begin is None or day > begin:
                ranges.append((begin, day))
            begin = day + 1
    if len(ranges) >= MAX_RANGES:
        begin = ranges[MAX_RANGES - 1][0]
        del ranges[MAX_RANGES - 1 :]
    return [*ranges, (begin, None)]


def _overlap(days: list[int], first: int | None, last: int | None) -> bool:
    place = 0 if first is None else bisect_left(days, first)
    return place < len(days) and (last is None or days[place] <= last)


def _number(day: date) -> int:
    return day.toordinal() - _EPOCH
