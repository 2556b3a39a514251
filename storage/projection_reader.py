"""Reads the log in commit order, from a cursor for each shard. Only reads: storing cursors is the runner's.

There is no index on offsets. Rows stand in about the order of their commits, so a scan from a commit time on
finds what is new. Two things make that exact: a transaction that is still under way holds the time back, and
what a gap in a shard's offsets hides is looked for everywhere, or known to be gone with a dropped partition.
A day that is compacted is read by shard (see `compacted_log`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sensorium.actors.placement import ALL_SHARDS
from sensorium.storage._readings_sql import readings
from sensorium.storage.compacted_log import CompactedDay, day_of, is_compacted
from sensorium.storage.database import GRACE_S, Connection
from sensorium.storage.log_entries import EVENT_ENTRY, READING_ENTRY
from sensorium.storage.projection import LogEntry, is_erased

SLACK_MS: Final = 1_000
"""Between a transaction's time and the moment when others can see that it is under way."""
FIRST_WINDOW_MS: Final = 1_000
MAX_WINDOW_MS: Final = 600_000
"""Of commit time, read in one statement: bounds what it has to sort."""
SCAN_TIMEOUT_S: Final = 300.0
"""Of the two statements that may read all of the log; the session must allow it."""
ALWAYS_MS: Final = 253_402_300_799_000

_BEHIND_CURSOR: Final = "r.log_offset > ($1::bigint[])[r.shard + 1]"
PAGE: Final = f"""
SELECT {READING_ENTRY} FROM readings r WHERE r.committed_at >= $2 AND r.committed_at < $3 AND {_BEHIND_CURSOR}
UNION ALL
SELECT {EVENT_ENTRY} FROM events r WHERE r.committed_at >= $2 AND r.committed_at < $3 AND {_BEHIND_CURSOR}
ORDER BY committed_at, shard, log_offset LIMIT $4
"""
"""Of a day that is not compacted."""
_MISSING: Final = f"r.shard = ANY($2::smallint[]) AND {_BEHIND_CURSOR}"
_FIRST: Final = "ORDER BY r.shard, r.log_offset LIMIT $3"
MISSED: Final = f"""
{readings(READING_ENTRY, _MISSING, chunks="c.last_offset > ($1::bigint[])[c.shard + 1]", end=_FIRST)}
UNION ALL
(SELECT {EVENT_ENTRY} FROM events r WHERE {_MISSING} {_FIRST})
ORDER BY shard, log_offset LIMIT $3
"""

# A transaction's rows bear the time at which it began.
SETTLED: Final = """
SELECT least(min(xact_start), clock_timestamp()) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'sensorium-host-%' AND xact_start IS NOT NULL
"""

OLDEST_PARTITION: Final = """
SELECT min(right(c.relname, 8)) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('readings'::regclass, 'events'::regclass, 'reading_chunks'::regclass)
"""

_SINCE: Final = readings(
    "r.shard, r.log_offset",
    "r.committed_at >= $1",
    chunks="c.committed_at < $1 AND c.committed_at >= $1::timestamptz - interval '1 day'",
)
FIRST_SINCE: Final = f"""
SELECT shard, min(log_offset) AS log_offset FROM (
    {_SINCE}
    UNION ALL SELECT shard, (SELECT min(o) FROM unnest(coalesce(offsets, ARRAY[last_offset])) o)
        FROM reading_chunks WHERE committed_at >= $1
    UNION ALL SELECT shard, log_offset FROM events WHERE committed_at >= $1) AS since GROUP BY shard
"""


class Place(NamedTuple):
    """Where a reader stands: an offset for each shard, and the commit time from which on it has to look."""

    read_from_ms: int
    cursors: list[int]


class LogReader:
    """Gives the entries behind `place`, page by page. `lost` counts offsets that no entry is left for."""

    def __init__(self, place: Place, page_entries: int) -> None:
        self._cursors = list(place.cursors)
        self._from_ms = place.read_from_ms
        self._page_entries = page_entries
        self._window_ms = FIRST_WINDOW_MS
        self._compacted: CompactedDay | None = None
        self.lost = 0
        self.at_end = False
        """Whether the last page reached the end of the log."""

    @property
    def place(self) -> Place:
        """Behind everything given so far."""
        return Place(self._from_ms, list(self._cursors))

    async def page(self, connection: Connection) -> list[LogEntry]:
        """The next entries, about `page_entries` at most; none when there are none yet."""
        if self._compacted is not None:
            return await self._of_compacted(connection, self._compacted)
        settled_ms = await connection.fetchval(SETTLED) - SLACK_MS
        until_ms = self._from_ms + self._window_ms
        last_window = until_ms >= settled_ms
        # Only days that are over are compacted, and not all at once with what is new.
        old = settled_ms - self._from_ms > MAX_WINDOW_MS
        day, day_end_ms = day_of(self._from_ms)
        if old:
            until_ms = min(until_ms, day_end_ms)
        rows = await connection.fetch(
            PAGE,
            self._cursors,
            self._from_ms,
            ALWAYS_MS if last_window else until_ms,
            self._page_entries,
        )
        if old and await is_compacted(connection, day):
            # What was found may lack the readings.
            self._compacted = CompactedDay(day, self._page_entries)
            return await self._of_compacted(connection, self._compacted)
        entries = [LogEntry(*row) for row in rows]
        full = len(entries) == self._page_entries
        taken, more_missed = await self._without_gaps(connection, entries)
        self.at_end = last_window and not full and not more_missed
        if more_missed:
            return taken
        if full:
            # Rows of one commit share their time; those that did not fit are behind the cursors still.
            self._from_ms = max(self._from_ms, min(entries[-1].committed_ms, settled_ms))
            self._window_ms = max(self._window_ms // 4, FIRST_WINDOW_MS)
        else:
            self._from_ms = max(self._from_ms, settled_ms if last_window else until_ms)
            self._window_ms = min(self._window_ms * 2, MAX_WINDOW_MS)
        return taken

    async def _of_compacted(self, connection: Connection, day: CompactedDay) -> list[LogEntry]:
        """As `page`; what its gaps hide was dropped by retention."""
        entries = await day.page(connection, self._cursors)
        for entry in entries:
            self.lost += entry.offset - self._cursors[entry.shard] - 1
            self._cursors[entry.shard] = entry.offset
        if day.at_end:
            self._from_ms, self._compacted = max(self._from_ms, day.end_ms), None
        self.at_end = False
        return [entry for entry in entries if not is_erased(entry)]

    async def _without_gaps(
        self, connection: Connection, entries: Sequence[LogEntry]
    ) -> tuple[list[LogEntry], bool]:
        """What can be given, and whether gaps hide more than was read of them."""
        cursors = self._cursors
        taken, gaps = [], set()
        for entry in entries:
            if entry.offset == cursors[entry.shard] + 1:
                cursors[entry.shard] = entry.offset
                if not is_erased(entry):
                    taken.append(entry)
            else:
                gaps.add(entry.shard)
        if not gaps:
            return taken, False
        missed = await self._missed(connection, sorted(gaps))
        return taken + missed, len(missed) == self._page_entries

    async def _missed(self, connection: Connection, shards: list[int]) -> list[LogEntry]:
        """What a gap hides: entries that became visible late, or nothing, when their partition is gone."""
        rows = await connection.fetch(
            MISSED, self._cursors, shards, self._page_entries, timeout=SCAN_TIMEOUT_S + GRACE_S
        )
        found = [LogEntry(*row) for row in rows]
        for entry in found:
            self.lost += entry.offset - self._cursors[entry.shard] - 1
            self._cursors[entry.shard] = entry.offset
        return [entry for entry in found if not is_erased(entry)]


async def beginning(connection: Connection) -> Place:
    """Before everything that the log holds."""
    day = await connection.fetchval(OLDEST_PARTITION)
    oldest = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
    return Place(int(oldest.timestamp() * 1000), [0] * ALL_SHARDS)


async def since(connection: Connection, place: Place, to_ms: int) -> Place:
    """The place before the first entry of each shard that was committed at `to_ms` or later.

    Shards without one stay where `place` has them.
    """
    start = await beginning(connection)
    if to_ms <= start.read_from_ms:
        return start
    cursors = list(place.cursors)
    for shard, offset in await connection.fetch(FIRST_SINCE, to_ms, timeout=SCAN_TIMEOUT_S + GRACE_S):
        cursors[shard] = min(cursors[shard], offset - 1)
    return Place(min(place.read_from_ms, to_ms), cursors)
