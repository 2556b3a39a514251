"""Compacts days of the log that are over: their readings move from rows into chunks, a third of the size.

A day is copied step by step into tables that nobody reads. In one transaction these become part of
`reading_chunks` and the day's rows go, so a reader finds each reading once. What was cut off is gone on with.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import asyncpg

from sensorium.actors.errors import SensoriumError
from sensorium.actors.placement import ALL_SHARDS
from sensorium.storage._readings_sql import pack
from sensorium.storage.database import GRACE_S, STATEMENT_TIMEOUT_S, Connection, connect, translated
from sensorium.storage.partitions import BACKUP_KEY, CHUNKS, LOCK_KEY, attached, create_class, midnight
from sensorium.storage.projection_reader import SETTLED
from sensorium.storage.retention_classes import DEFAULT

_log = logging.getLogger(__name__)

CLOSED_AFTER: Final = timedelta(hours=2)
"""After a day's end: longer than a transaction lasts, and than a live feed can be resumed after."""
STEP_READINGS: Final = 1_000_000
"""Copied in one transaction, about."""
MAX_STEPS: Final = 64
"""Of a day, each of which reads all of it: from 64 million readings on, steps are longer instead."""
ROW_BYTES: Final = 150
PAUSE: Final = 3.0
"""Times as long as a step takes, before the next one: a quarter of one core at most."""
STEP_TIMEOUT_S: Final = 3_600.0
STEP_MEMORY: Final = "64MB"
"""Of the sort in a step, before the server turns to its disk."""
LOCK_TIMEOUT: Final = "200ms"
"""Commits and readers may have to wait so long for a swap that waits for another reader."""
LOOK_EVERY_S: Final = 60.0

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended('sensorium-compaction', 0))"
_READ_FROM: Final = """
SELECT count(*) = cardinality($1::text[]) AND coalesce(bool_and(read_from >= $2 AND rewind_to IS NULL), true)
FROM projections WHERE name = ANY($1::text[])
"""
_ERASING: Final = "SELECT EXISTS (SELECT FROM erasures WHERE state = 'ERASING' OR committed_at >= $1)"
# What such a transaction has seen of the log is without the last step.
_OLDER: Final = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
               AND backend_type = 'client backend' AND backend_xmin IS NOT NULL AND xact_start < $1)
"""
_LEAVES: Final = """
SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = $1::text::regclass
"""
_CLASSES: Final = "SELECT DISTINCT class FROM retention_class_types WHERE until IS NULL"
_EVENT_DAYS: Final = """
SELECT DISTINCT (u.time AT TIME ZONE 'UTC')::date FROM {table} c CROSS JOIN LATERAL unnest(
    CASE WHEN (c.first_time AT TIME ZONE 'UTC')::date = (c.last_time AT TIME ZONE 'UTC')::date
         THEN ARRAY[c.first_time] ELSE c.times END) AS u (time)
"""
_COMPACTED: Final = "INSERT INTO compacted_days SELECT $1, unnest($2::date[]) ON CONFLICT DO NOTHING"
_DEVICES: Final = """
INSERT INTO compacted_devices AS known SELECT DISTINCT device, $1::date, $1::date FROM {table} ORDER BY device
ON CONFLICT (device) DO UPDATE SET first_day = least(known.first_day, excluded.first_day),
    last_day = greatest(known.last_day, excluded.last_day)
"""
_DROPPED: Final = (
    """
    DELETE FROM compacted_days
    WHERE to_regclass('reading_chunks_' || to_char(day, 'YYYYMMDD')) IS NULL
    """,
    "DELETE FROM compacted_devices WHERE last_day < (SELECT min(day) FROM compacted_days)",
)
_OF_SHARDS: Final = """
SELECT r.*, coalesce(t.class, 0)::smallint AS class FROM {table} r
LEFT JOIN devices d ON d.device = r.device
LEFT JOIN retention_class_types t ON t.device_type = d.device_type AND t.until IS NULL
WHERE r.shard >= {begin:d} AND r.shard < {end:d}
"""


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """When a day is compacted.

    Attributes:
        enabled: whether any is. What was compacted stays so.
        after_days: how many days after its end, and `CLOSED_AFTER`.
    """

    enabled: bool = True
    after_days: int = 0


Pause = Callable[[float], Awaitable[None]]
"""Waits so many seconds."""


class NotNow(SensoriumError):
    """Something is at work that a day's swap would disturb; it is tried again."""


class _Outdated(NotNow):
    """Data were deleted since copying began, so that it has to begin anew."""


async def due(
    connection: Connection, settings: CompactionSettings, wait_for: Sequence[str], now: datetime
) -> list[date]:
    """The days that can be compacted, oldest first.

    Args:
        wait_for: the projections that must have read them before. Others read them from chunks.
    """
    if not settings.enabled:
        return []
    settled = datetime.fromtimestamp(await connection.fetchval(SETTLED) / 1000, UTC)
    compacted = {day for day, _ in await attached(connection, CHUNKS)}
    days = []
    for day, _ in await attached(connection, "readings"):
        end = midnight(day) + timedelta(days=1)
        if end + timedelta(days=settings.after_days) + CLOSED_AFTER > now or end >= settled:
            break
        if day not in compacted and await _was_read(connection, wait_for, end):
            days.append(day)
    return days


async def compact(connection: Connection, day: date, wait_for: Sequence[str], pause: Pause) -> None:
    """Compact a day that is `due`. May be cut off anywhere, and goes on from there when called again.

    Raises:
        NotNow: a backup, a deletion or a reader is in the way.
    """
    await _begin(connection, day)
    await _copy(connection, day, pause)
    try:
        await _swap(connection, day, wait_for, pause)
    except _Outdated:
        await _forget(connection, day)
        raise


async def drop_emptied(connection: Connection) -> list[str]:
    """Drop the partitions of days whose rows have gone into chunks; their names."""
    compacted = {day for day, _ in await attached(connection, CHUNKS)}
    dropped = []
    for day, name in await attached(connection, "readings"):
        if day in compacted:
            async with connection.transaction():
                await _locked(connection)
                if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name})"):
                    continue
                await connection.execute(f"DROP TABLE {name}")
            dropped.append(name)
    return dropped


async def _was_read(connection: Connection, wait_for: Sequence[str], end: datetime) -> bool:
    end_ms = int(end.timestamp() * 1000)
    read: bool = await connection.fetchval(_READ_FROM, list(wait_for), end_ms)
    return read


async def _locked(connection: Connection) -> None:
    """Keep others from changing partitions until the transaction ends; wait for nobody for long."""
    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", BACKUP_KEY):
        raise NotNow("a backup is being made")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)


async def _begin(connection: Connection, day: date) -> None:
    """Go on with what was begun, unless that was of another day or is outdated."""
    for begun, at_ms in await connection.fetch("SELECT day, begun_at FROM compaction"):
        if begun != day or await connection.fetchval(_ERASING, at_ms):
            await _forget(connection, begun)
    if await connection.fetchval("SELECT EXISTS (SELECT FROM erasures WHERE state = 'ERASING')"):
        raise NotNow("a device's data are being deleted")
    name = _unfinished(day)
    async with connection.transaction():
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM compaction)"):
            await connection.execute("INSERT INTO compaction VALUES ($1, 0, now())", day)
            await connection.execute(
                f"CREATE TABLE {name} (LIKE {CHUNKS} INCLUDING ALL EXCLUDING INDEXES)"
                " PARTITION BY LIST (class)"
            )
        for number in {DEFAULT, *(row["class"] for row in await connection.fetch(_CLASSES))}:
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", f"{name}_c{number}"):
                await create_class(connection, name, number)


async def _forget(connection: Connection, day: date) -> None:
    async with connection.transaction():
        await connection.execute(f"DROP TABLE IF EXISTS {_unfinished(day)}")
        await connection.execute("DELETE FROM compaction WHERE day = $1", day)


async def _copy(connection: Connection, day: date, pause: Pause) -> None:
    """Copy the shards that have not been yet, a step in a transaction."""
    table = f"readings_{day:%Y%m%d}"
    size_bytes = await connection.fetchval("SELECT pg_relation_size($1::text::regclass)", table)
    steps = min(MAX_STEPS, 1 + size_bytes // ROW_BYTES // STEP_READINGS)
    width = -(-ALL_SHARDS // steps)
    while (begin := await connection.fetchval("SELECT shard FROM compaction")) < ALL_SHARDS:
        began_s = time.monotonic()
        end = min(begin + width, ALL_SHARDS)
        async with connection.transaction():
            await connection.execute(
                f"SET LOCAL work_mem = '{STEP_MEMORY}'; SET LOCAL statement_timeout = '{STEP_TIMEOUT_S:.0f}s'"
            )
            await connection.execute(
                pack(_unfinished(day), _OF_SHARDS.format(table=table, begin=begin, end=end)),
                timeout=STEP_TIMEOUT_S + GRACE_S,
            )
            await connection.execute("UPDATE compaction SET shard = $1", end)
        await pause(PAUSE * (time.monotonic() - began_s))


async def _swap(connection: Connection, day: date, wait_for: Sequence[str], pause: Pause) -> None:
    """Have readers find the chunks instead of the rows, all at once."""
    name = _unfinished(day)
    # Built at once, an index is smaller than one that grows. They are those of the migration.
    await connection.execute(
        f"SET statement_timeout = '{STEP_TIMEOUT_S:.0f}s';"
        f" CREATE INDEX IF NOT EXISTS {name}_device ON {name} (device, first_time);"
        f" CREATE INDEX IF NOT EXISTS {name}_shard ON {name} USING brin (shard)"
        " WITH (pages_per_range = 8, autosummarize = on);"
        f" ANALYZE {name}",
        timeout=STEP_TIMEOUT_S + GRACE_S,
    )
    found = await connection.fetch(_EVENT_DAYS.format(table=name), timeout=STEP_TIMEOUT_S + GRACE_S)
    # Before the day is: who knows that it is compacted then finds whose readings are in it.
    await connection.execute(_DEVICES.format(table=name), day, timeout=STEP_TIMEOUT_S + GRACE_S)
    await connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S:.0f}s'")
    event_days = [row[0] for row in found]
    copied_ms = await connection.fetchval("SELECT clock_timestamp()")
    # Rows go from under a transaction that sees the log as it was before, and the chunks are too new for it.
    for _ in range(round(LOOK_EVERY_S)):
        if not await connection.fetchval(_OLDER, copied_ms + 1):
            break
        await pause(1.0)
    else:
        raise NotNow("a transaction has been open for long")
    with _waiting():
        async with connection.transaction():
            await _locked(connection)
            await connection.execute(f"LOCK TABLE readings_{day:%Y%m%d} IN ACCESS EXCLUSIVE MODE")
            begun_ms = await connection.fetchval("SELECT begun_at FROM compaction")
            if await connection.fetchval(_ERASING, begun_ms):
                raise _Outdated("a device's data were deleted in between")
            if not await _was_read(connection, wait_for, midnight(day) + timedelta(days=1)):
                raise NotNow("a projection was rewound")
            await _attach(connection, day)
            await connection.execute(_COMPACTED, day, event_days)
            await connection.execute(f"TRUNCATE readings_{day:%Y%m%d}")
            await connection.execute("DELETE FROM compaction")


async def _attach(connection: Connection, day: date) -> None:
    """Make the tables of a day, but for empty ones, part of those that are read."""
    unfinished, name = _unfinished(day), f"{CHUNKS}_{day:%Y%m%d}"
    for (leaf,) in await connection.fetch(_LEAVES, unfinished):
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {leaf})"):
            await connection.execute(f"ALTER TABLE {leaf} RENAME TO {leaf.replace(unfinished, name)}")
        else:
            await connection.execute(f"DROP TABLE {leaf}")
    await connection.execute(f"ALTER TABLE {unfinished} RENAME TO {name}")
    await connection.execute(
        f"ALTER TABLE {CHUNKS} ATTACH PARTITION {name}"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )


def _unfinished(day: date) -> str:
    """What a day's table is called until it is whole; nobody reads it, and backups leave it out."""
    return f"compacting_{day:%Y%m%d}"


@contextmanager
def _waiting() -> Iterator[None]:
    """Says `NotNow` of a lock that was not had in time."""
    try:
        yield
    except asyncpg.LockNotAvailableError as error:
        raise NotNow("a reader is in the way") from error


class Compactor:
    """Compacts what is due, one day after the other; outlasts failures."""

    def __init__(self, dsn: str, settings: CompactionSettings, wait_for: Sequence[str]) -> None:
        self._dsn = dsn
        self._wait_for = wait_for
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._days = 0
        self._at_work: date | None = None
        self._trouble = ""

    async def start(self) -> None:
        """Begin, and keep trying while the database is away."""
        self._task = asyncio.create_task(self._run(), name="compaction")

    async def ping(self) -> None:
        """Raise what broke it, if something did that trying again does not mend."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Cut off what is under way: it is gone on with."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Days compacted since the start, the one that is at present, and why it cannot go on."""
        return {
            "days": self._days,
            "day": "" if self._at_work is None else self._at_work.isoformat(),
            "trouble": self._trouble,
        }

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                self._trouble = ""
            except NotNow as error:
                self._trouble = str(error)
                _log.info("compaction waits: %s", error)
            except SensoriumError as error:
                self._trouble = str(error)
                _log.warning("compaction: %s; again in %.0f s", error, LOOK_EVERY_S)
            self._at_work = None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        """Compact what is due now."""
        connection = await connect(self._dsn, "sensorium-compaction")
        try:
            with translated():
                if not await connection.fetchval(_LOCK):
                    return
                with _waiting():
                    await drop_emptied(connection)
                for statement in _DROPPED:
                    await connection.execute(statement)
                now_ms = await connection.fetchval("SELECT now()")
                now = datetime.fromtimestamp(now_ms / 1000, UTC)
                for day in await due(connection, self._settings, self._wait_for, now):
                    self._at_work = day
                    await compact(connection, day, self._wait_for, asyncio.sleep)
                    self._days += 1
                    with _waiting():
                        await drop_emptied(connection)
        finally:
            connection.terminate()
