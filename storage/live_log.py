"""The log as it grows: what has been committed since a position, seconds or an hour ago. Stores nothing.

Not a projection: it has no durable cursor and may be closed at any time. It reads only while it is asked.
Commits become visible out of the order of their times. So it looks again at those of the last moments,
leaving out what it has given (see `live_cursor`), as far back as a transaction may still be under way.
"""

import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from sensorium.actors.messages import Quality, ReadingFlag, Value, quality_of
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import EPOCH_2000_MS, connect, translated
from sensorium.storage.encode import decode_values
from sensorium.storage.known_devices import KnownDevices
from sensorium.storage.live_cursor import Position
from sensorium.storage.projection import LogEntry
from sensorium.storage.projection_reader import SETTLED

if TYPE_CHECKING:
    Dedicated = asyncpg.Connection[asyncpg.Record]

SLACK_MS: Final = 1_000
"""Between a transaction's time and the moment when others can see that it is under way."""
PAGE_ENTRIES: Final = 5_000
FIRST_WINDOW_MS: Final = 2_000
MAX_WINDOW_MS: Final = 60_000
"""Of commit time, read in one statement when catching up: bounds what it has to sort."""

_EPOCH_2000_US: Final = EPOCH_2000_MS * 1000
# A generic plan would compare each row with the whole list of commits. The planner knows little of a table
# that grows so fast, and takes all of it for new: without these it reads all of it, with several processes.
_SESSION: Final = """
SET plan_cache_mode = force_custom_plan; SET jit = off;
SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0
"""
# The index on commit times knows nothing of the newest pages until somebody has it summarize them, which the
# server does once a minute: until then each look reads all of them.
_SUMMARIZE: Final = """
SELECT brin_summarize_new_values(i.relid)
FROM (SELECT * FROM pg_partition_tree('readings_committed_at')
      UNION ALL SELECT * FROM pg_partition_tree('events_committed_at')) i JOIN pg_class c ON c.oid = i.relid
WHERE i.isleaf
    AND c.relname LIKE '%' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') || '%'
"""
SUMMARIZE_EVERY_S: Final = 3.0
_SUMMARIZE_LOCK: Final = "SET LOCAL lock_timeout = '20ms'"
"""Who holds the lock, a vacuum, summarizes by itself; waiting would make it give up."""
_READINGS: Final = """
    SELECT shard, log_offset, device, time, key, flags, metric_set, numbers, texts,
           NULL::text AS kind, NULL::jsonb AS body, committed_at FROM readings
"""
_EVENTS: Final = """
    SELECT shard, log_offset, device, time, NULL, NULL, NULL, NULL, NULL, kind, body, committed_at FROM events
"""
_NEW: Final = "device <> 0 AND committed_at >= $1 AND committed_at <> ALL($2::timestamptz[])"
_OF: Final = "($3::bigint[] IS NULL OR device = ANY($3::bigint[]))"
_PART: Final = (
    "device <> 0 AND committed_at >= $4 AND committed_at < $5"
    " AND (committed_at, shard, log_offset) > ($6, $7, $8)"
    " AND (committed_at < $9 OR committed_at = ANY($10::timestamptz[]))"
)
_ORDER: Final = "ORDER BY committed_at, shard, log_offset LIMIT "


class Change(NamedTuple):
    """A row of the log for people: a reading's `values`, or an event's `kind` and `body`."""

    shard: int
    offset: int
    device_id: str
    device_type: str
    time_ms: int
    committed_ms: int
    values: dict[str, Value] | None = None
    late: bool = False
    kind: str | None = None
    body: Any = None
    quality: Quality = Quality.GOOD


class LiveLog:
    """Reads one database of the log. One call at a time; `close` it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Dedicated | None = None
        self._devices = KnownDevices()
        self._sets = KnownSets()
        self._summarized_s = float("-inf")

    async def here(self) -> Position:
        """Behind everything that is visible now. Raises `LogUnavailable`, as every call."""
        connection = await self._opened()
        with translated():
            floor_us = await connection.fetchval(SETTLED) - SLACK_MS * 1000
            floor_us -= floor_us % 1000
            rows = await connection.fetch(
                "SELECT committed_at FROM readings WHERE committed_at >= $1"
                " UNION SELECT committed_at FROM events WHERE committed_at >= $1",
                floor_us,
            )
        return Position(floor_us // 1000, frozenset(row[0] for row in rows))

    async def after(
        self, position: Position, readings: bool = True, devices: Collection[int] | None = None
    ) -> tuple[list[Change], Position, bool]:
        """What is visible behind `position`, where that leads to, and whether there is more at once.

        Whole commits, oldest first, about `PAGE_ENTRIES` rows. Without `readings` events alone; `devices` are
        keys of those that matter, None: all.
        """
        connection = await self._opened()
        floor_us, given = position.floor_ms * 1000, position.commits_us
        wanted = None if devices is None else list(devices)
        limit, more = PAGE_ENTRIES, False
        await self._summarize(connection)
        with translated():
            settled_us = await connection.fetchval(SETTLED) - SLACK_MS * 1000
            while True:
                rows = await connection.fetch(
                    _statement(readings, f"{_NEW} AND {_OF}", limit), floor_us, list(given), wanted
                )
                if len(rows) < limit:
                    break
                # The last commit may be cut, and is given whole or not at all.
                last_us = rows[-1]["committed_at"]
                if rows[0]["committed_at"] < last_us:
                    rows = [row for row in rows if row["committed_at"] < last_us]
                    settled_us = min(settled_us, last_us)
                    more = True
                    break
                limit *= 2
            changes = await self._changes(connection, rows)
        floor_us = max(floor_us, settled_us - settled_us % 1000)
        commits = given.union(row["committed_at"] for row in rows)
        kept = frozenset(commit_us for commit_us in commits if commit_us >= floor_us)
        return changes, Position(floor_us // 1000, kept), more

    async def between(
        self,
        start: Position,
        end: Position,
        readings: bool = True,
        devices: Collection[int] | None = None,
    ) -> AsyncGenerator[tuple[list[Change], Position], None]:
        """What is behind `start` and not behind `end`, in pages, each with the position that it leads to."""
        connection = await self._opened()
        wanted = None if devices is None else list(devices)
        statement = _statement(readings, f"{_NEW} AND {_OF} AND {_PART}", PAGE_ENTRIES)
        end_us = max([end.floor_ms * 1000, *(us + 1 for us in end.commits_us)])
        from_us, window_ms = start.floor_ms * 1000, FIRST_WINDOW_MS
        place = (from_us, -1, -1)
        while from_us < end_us:
            until_us = min(from_us + window_ms * 1000, end_us)
            with translated():
                rows = await connection.fetch(
                    statement,
                    *(start.floor_ms * 1000, list(start.commits_us), wanted),
                    *(from_us, until_us, *place, end.floor_ms * 1000, list(end.commits_us)),
                )
                changes = await self._changes(connection, rows)
            if len(rows) == PAGE_ENTRIES:
                last = rows[-1]
                place = (last["committed_at"], last["shard"], last["log_offset"])
                from_us, window_ms = place[0], FIRST_WINDOW_MS
            else:
                from_us = until_us
                place = (from_us - 1, 0, 0)
                window_ms = min(window_ms * 2, MAX_WINDOW_MS)
            if changes:
                # Not above what was settled at `end`: what became visible later has not been given.
                floor_ms = max(min(from_us // 1000, end.floor_ms), start.floor_ms)
                given = start.commits_us.union(us for us in end.commits_us if us < from_us)
                yield changes, Position(floor_ms, frozenset(us for us in given if us >= floor_ms * 1000))

    async def _summarize(self, connection: "Dedicated") -> None:
        if time.monotonic() - self._summarized_s < SUMMARIZE_EVERY_S:
            return
        self._summarized_s = time.monotonic()
        # Neither a lock that is taken nor a right that we lack is more than a matter of speed.
        with translated(), suppress(asyncpg.LockNotAvailableError, asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute(_SUMMARIZE_LOCK)
                await connection.execute(_SUMMARIZE)

    async def close(self) -> None:
        """Give the connection back; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _opened(self) -> "Dedicated":
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self._dsn, "sensorium-live")
            try:
                with translated():
                    # Positions tell commits apart by the microsecond.
                    await connection.set_type_codec(
                        "timestamptz",
                        schema="pg_catalog",
                        format="tuple",
                        encoder=lambda us: (us - _EPOCH_2000_US,),
                        decoder=lambda parts: parts[0] + _EPOCH_2000_US,
                    )
                    await connection.execute(_SESSION)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    async def _changes(self, connection: "Dedicated", rows: Sequence[asyncpg.Record]) -> list[Change]:
        entries = [LogEntry(*row) for row in rows]
        devices = await self._devices.of(connection, entries)
        sets = await self._sets.find(connection, {e.metric_set for e in entries if e.metric_set is not None})
        changes = []
        for entry in entries:
            device = devices.get(entry.device)
            if device is None:
                continue
            values = None
            if entry.metric_set is not None:
                metrics = sets[entry.metric_set]
                found = decode_values(metrics, entry.numbers, entry.texts)
                values = {name: v for name, v in zip(metrics.names, found, strict=True) if v is not None}
            flags = entry.flags or 0
            changes.append(
                Change(
                    entry.shard,
                    entry.offset,
                    device.device_id,
                    device.device_type,
                    entry.time_ms // 1000,
                    entry.committed_ms // 1000,
                    values,
                    bool(flags & ReadingFlag.LATE),
                    entry.kind,
                    entry.body,
                    quality_of(flags),
                )
            )
        return changes


def _statement(readings: bool, where: str, limit: int) -> str:
    events = f"{_EVENTS} WHERE {where}"
    if not readings:
        columns = "shard, log_offset, device, time, NULL::bigint AS key, NULL::smallint AS flags,"
        nulls = "NULL::bigint AS metric_set, NULL::float8[] AS numbers, NULL::text[] AS texts,"
        return f"SELECT {columns} {nulls} kind, body, committed_at FROM events WHERE {where} {_ORDER}{limit}"
    return f"{_READINGS} WHERE {where} UNION ALL {events} {_ORDER}{limit}"
