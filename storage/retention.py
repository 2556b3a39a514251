"""Keeps the database at its size: partitions made ahead and dropped when old, and how much there is."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sensorium.actors.errors import SensoriumError
from sensorium.storage import audit_chain
from sensorium.storage.audit_chain import RETENTION
from sensorium.storage.audit_trail import record
from sensorium.storage.bulk_jobs import forget_jobs
from sensorium.storage.compaction import CompactionSettings, Compactor
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.disk import DiskSpace, disk_space
from sensorium.storage.erasures import carry_on
from sensorium.storage.partitions import (
    CHUNKS,
    TABLES,
    drop_classes,
    drop_partitions,
    ensure_partitions,
    midnight,
)
from sensorium.storage.retention_classes import DEFAULT, KEPT_FOR_EVER, KEPT_FROM, Days, longest, stored
from sensorium.storage.rollup import LEVELS

_log = logging.getLogger(__name__)

DROP_EVERY_S: Final = 3_600.0
"""Partitions fall due once a day; looking more often makes up for a database that was away."""
LOOK_EVERY_S: Final = 60.0
ERASE_EVERY_S: Final = 2.0
"""How often to look whether a device's data are to be deleted."""
READINGS: Final = "readings"
EVENTS: Final = "events"
_ALWAYS: Final = datetime(9999, 12, 31, tzinfo=UTC)
FORGET_PAGE: Final = 5_000
FORGET_AT_ONCE: Final = 10_000_000
"""Commands deleted in one statement, and in one round: more than an hour's worth of them."""

_READ_FROM: Final = "SELECT min(read_from), count(*) FROM projections WHERE name = ANY($1::text[])"
_FORGET_COMMANDS: Final = """
DELETE FROM commands WHERE command_id IN
    (SELECT command_id FROM commands WHERE created_at < $1 AND NOT open
     ORDER BY created_at, command_id LIMIT $2)
"""
_FORGET_ANOMALIES: Final = """
DELETE FROM anomalies WHERE anomaly_id IN
    (SELECT anomaly_id FROM anomalies WHERE start_at < $1 AND end_at < $1
     ORDER BY start_at, anomaly_id LIMIT $2)
"""
_FORGET_ALARMS: Final = """
DELETE FROM alarms WHERE alarm_id IN
    (SELECT alarm_id FROM alarms
     WHERE device_type = $2 AND start_at < $1 AND state = 'CLEARED' AND end_at < $1
     ORDER BY start_at, alarm_id LIMIT $3)
"""
_TYPES_OF_ALARMS: Final = """
WITH RECURSIVE types AS (
    (SELECT device_type FROM alarms ORDER BY 1 LIMIT 1)
    UNION ALL
    SELECT (SELECT device_type FROM alarms a WHERE a.device_type > t.device_type ORDER BY 1 LIMIT 1)
    FROM types t WHERE t.device_type IS NOT NULL
) SELECT device_type FROM types WHERE device_type IS NOT NULL
"""
"""Each by a look into the index, whatever their number."""
_SIZES: Final = """
SELECT regexp_replace(coalesce(root.relname, child.relname), '^compacting_\\d+$', 'reading_chunks') AS kind,
       CASE WHEN above.partstrat = 'l'
            THEN substring(pg_get_expr(child.relpartbound, child.oid) FROM '[0-9]+')::int END AS class,
       sum(pg_total_relation_size(child.oid))::bigint AS bytes
FROM pg_class child
LEFT JOIN pg_class root ON root.oid = pg_partition_root(child.oid)
LEFT JOIN pg_inherits i ON i.inhrelid = child.oid
LEFT JOIN pg_partitioned_table above ON above.partrelid = i.inhparent
WHERE child.relkind = 'r' AND child.relnamespace = 'public'::regnamespace GROUP BY 1, 2 ORDER BY 1, 2
"""


_CLASSES: Final = """
SELECT class AS retention_class, raw_days, event_days, rollup_1m_days, rollup_1h_days, rollup_1d_days,
       array(SELECT device_type FROM retention_class_types t
             WHERE t.class = c.class AND until IS NULL ORDER BY 1) AS device_types
FROM retention_classes c ORDER BY class
"""


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """For how many days what is kept; None: for ever.

    Attributes:
        days: of the types without a retention of their own; those of the others are in the database. Commands
            and anomalies that have ended are kept as long as readings, by when they were given and ended.
        hot_days: readings alone, where something else has them by then; the sooner of both counts.
        wait_for: the projections that must have read a day of the log before it goes. One that has yet to
            run for the first time has read nothing.
        audit_days: entries of the audit log.
        alarms: those that have ended.
        compaction: which days' readings are kept in chunks.
    """

    days: Days = KEPT_FOR_EVER
    wait_for: tuple[str, ...] = ()
    hot_days: int | None = None
    audit_days: int | None = None
    alarms: "AlarmRetention" = field(default_factory=lambda: AlarmRetention())
    compaction: CompactionSettings = field(default_factory=CompactionSettings)


@dataclass(frozen=True, slots=True)
class AlarmRetention:
    """For how many days alarms are kept after their end: by device type, and those of all others."""

    days: int | None = None
    by_type: tuple[tuple[str, int], ...] = ()


async def apply(connection: Connection, settings: RetentionSettings, now: datetime) -> list[str]:
    """Create the partitions that are due and drop those that are too old.

    Returns:
        The names of those dropped.
    """
    await ensure_partitions(connection, now)
    dropped = []
    classes = {**await stored(connection), DEFAULT: settings.days}
    for table in TABLES:
        if table == EVENTS:
            continue
        kept = longest(days.raw for days in classes.values())
        if table == READINGS and settings.hot_days is not None:
            kept = settings.hot_days if kept is None else min(kept, settings.hot_days)
        if kept is not None:
            dropped += await _drop_log(connection, settings, table, now - timedelta(days=kept))
    for table, kept_days in (
        (EVENTS, {n: days.events for n, days in classes.items()}),
        (CHUNKS, {n: days.raw for n, days in classes.items()}),
    ):
        dropped += await _drop_of_log(connection, settings, table, kept_days, now)
    if settings.days.raw is not None:
        await forget_commands(connection, now - timedelta(days=settings.days.raw))
        await forget_jobs(connection, now - timedelta(days=settings.days.raw))
        await forget_anomalies(connection, now - timedelta(days=settings.days.raw))
    await forget_alarms(connection, settings.alarms, now)
    for level in LEVELS:
        by_class = {number: days.rollups(level.name) for number, days in classes.items()}
        before, of_all = _ends(by_class, now)
        dropped += await drop_classes(connection, level.table, before, of_all, level.partition_days)
    if settings.audit_days is not None:
        await audit_chain.forget(connection, round((now.timestamp() - settings.audit_days * 86_400) * 1000))
    if dropped:
        async with connection.transaction():
            await record(connection, "retention.drop", "partitions", origin=RETENTION, dropped=dropped)
    return dropped


async def _drop_log(
    connection: Connection, settings: RetentionSettings, table: str, before: datetime
) -> list[str]:
    """Drop what is older and was read by all that have to."""
    read = await _read_from(connection, settings)
    if read is None:
        return []
    day = min(before, read).astimezone(UTC).date()
    tables = [table, CHUNKS] if table == READINGS else [table]
    async with connection.transaction():
        gone = await drop_partitions(connection, day, tables)
        if gone and table == READINGS:
            await connection.execute(KEPT_FROM, "log", int(midnight(day).timestamp() * 1000))
    return gone


async def _drop_of_log(
    connection: Connection,
    settings: RetentionSettings,
    table: str,
    days: Mapping[int, int | None],
    now: datetime,
) -> list[str]:
    """Drop by class what is older and was read by all that have to. Readings have classes once compacted."""
    read = await _read_from(connection, settings)
    if read is None:
        return []
    return await drop_classes(connection, table, *_ends(days, now, read))


def _ends(
    days: Mapping[int, int | None], now: datetime, at_most: datetime = _ALWAYS
) -> tuple[dict[int, date], date | None]:
    """By class, before when all is too old, and before when what has rows of all classes is."""
    before = {
        number: min(now - timedelta(days=kept), at_most).astimezone(UTC).date()
        for number, kept in days.items()
        if kept is not None
    }
    return before, min(before.values()) if len(before) == len(days) else None


async def _read_from(connection: Connection, settings: RetentionSettings) -> datetime | None:
    """Up to which commit all have read that have to; None: one of them has not begun."""
    row = await connection.fetchrow(_READ_FROM, list(settings.wait_for))
    assert row is not None
    read_from_ms, begun = row
    if begun < len(settings.wait_for):
        return None
    return _ALWAYS if read_from_ms is None else datetime.fromtimestamp(read_from_ms / 1000, UTC)


async def forget_alarms(connection: Connection, keep: AlarmRetention, now: datetime) -> int:
    """Delete alarms that ended too long ago, at most `FORGET_AT_ONCE` of a type in a call; how many.

    Row by row: what an alarm is kept by is not known when it is written, and open ones outlive any day.
    Type by type, so that no page goes through older ones of types that keep theirs for longer.
    What was sent about them, and what happened to them in the log, goes by its own rules.
    """
    days_of = dict(keep.by_type)
    forgotten = 0
    for (device_type,) in await connection.fetch(_TYPES_OF_ALARMS):
        days = days_of.get(device_type, keep.days)
        if days is None:
            continue
        before_ms = int((now - timedelta(days=days)).timestamp() * 1000)
        of_these = 0
        while of_these < FORGET_AT_ONCE:
            gone = await connection.execute(_FORGET_ALARMS, before_ms, device_type, FORGET_PAGE)
            of_these += (count := int(gone.removeprefix("DELETE ")))
            if count < FORGET_PAGE:
                break
        forgotten += of_these
    return forgotten


async def forget_commands(connection: Connection, before: datetime) -> int:
    """Delete commands that were given before then and have ended, at most `FORGET_AT_ONCE` in a call.

    Returns:
        How many.
    """
    before_ms = int(before.timestamp() * 1000)
    forgotten = 0
    while forgotten < FORGET_AT_ONCE:
        gone = await connection.execute(_FORGET_COMMANDS, before_ms, FORGET_PAGE)
        forgotten += (count := int(gone.removeprefix("DELETE ")))
        if count < FORGET_PAGE:
            break
    return forgotten


async def forget_anomalies(connection: Connection, before: datetime) -> int:
    """Delete anomalies that ended before then, at most `FORGET_AT_ONCE` in a call.

    Returns:
        How many.
    """
    before_ms = int(before.timestamp() * 1000)
    forgotten = 0
    while forgotten < FORGET_AT_ONCE:
        gone = await connection.execute(_FORGET_ANOMALIES, before_ms, FORGET_PAGE)
        forgotten += (count := int(gone.removeprefix("DELETE ")))
        if count < FORGET_PAGE:
            break
    return forgotten


async def sizes(connection: Connection) -> dict[str, dict[int | None, int]]:
    """Bytes by table, with its indexes and all partitions, and by class; None: of all classes or without."""
    found: dict[str, dict[int | None, int]] = {}
    for kind, retention_class, size in await connection.fetch(_SIZES):
        found.setdefault(kind, {})[retention_class] = size
    return found


class RetentionKeeper:
    """Applies the settings hourly, measures tables each minute, carries deletions on; outlasts failures.

    `folder` is the database's, where it is on this machine: the room on its disk is told, too.
    """

    def __init__(self, dsn: str, settings: RetentionSettings, folder: Path | None = None) -> None:
        self._dsn = dsn
        self._settings = settings
        self._folder = folder
        self._disk: DiskSpace | None = None
        self._task: asyncio.Task[None] | None = None
        self._erasing: asyncio.Task[None] | None = None
        self._compactor = Compactor(dsn, settings.compaction, settings.wait_for)
        self._stopping = asyncio.Event()
        self._bytes: dict[str, dict[int | None, int]] = {}
        self._classes: list[dict[str, Any]] = []
        self._dropped = 0
        self._trouble = ""

    async def start(self) -> None:
        """Begin, and keep trying while the database is away."""
        self._task = asyncio.create_task(self._run(), name="retention")
        self._erasing = asyncio.create_task(self._erase(), name="erasures")
        await self._compactor.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did that trying again does not mend."""
        for task in (self._task, self._erasing):
            if task is not None and task.done():
                task.result()
        await self._compactor.ping()

    async def stop(self) -> None:
        """End after what is under way."""
        self._stopping.set()
        await self._compactor.stop()
        tasks = [task for task in (self._task, self._erasing) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Bytes by table and by class, room on the disk, partitions dropped, and why it cannot go on.

        Of `storage_class_bytes`, the tables that are kept by class; "" is what has rows of all classes.
        """
        return {
            "name": "retention",
            "storage_bytes": {kind: sum(of_kind.values()) for kind, of_kind in self._bytes.items()},
            "storage_class_bytes": {
                kind: {"" if number is None else str(number): size for number, size in of_kind.items()}
                for kind, of_kind in self._bytes.items()
                if of_kind.keys() != {None}
            },
            "retention_classes": list(self._classes),
            "disk": None if self._disk is None else {**self._disk._asdict(), "low": self._disk.low},
            "partitions_dropped": self._dropped,
            "compaction": self._compactor.statistics(),
            "trouble": self._trouble,
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while not self._stopping.is_set():
            try:
                await self._look(loop.time() >= due_s)
            except SensoriumError as error:
                self._trouble = str(error)
                _log.warning("retention: %s; again in %.0f s", error, LOOK_EVERY_S)
            else:
                self._trouble = ""
                if loop.time() >= due_s:
                    due_s = loop.time() + DROP_EVERY_S
            await self._wait(LOOK_EVERY_S)

    async def _erase(self) -> None:
        """Carry deletions of devices' data on."""
        while not self._stopping.is_set():
            try:
                connection = await connect(self._dsn, "sensorium-erasures")
                try:
                    while not self._stopping.is_set():
                        with translated():
                            more = await carry_on(connection)
                        if not more:
                            await self._wait(ERASE_EVERY_S)
                finally:
                    connection.terminate()
            except SensoriumError as error:
                _log.warning("deletions of devices' data: %s; again in %.0f s", error, LOOK_EVERY_S)
                await self._wait(LOOK_EVERY_S)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _look_at_disk(self) -> None:
        if self._folder is None:
            return
        try:
            found = disk_space(self._folder)
        except OSError as error:
            _log.warning("the database's folder cannot be looked at: %s", error)
            self._disk = None
            return
        if found.low and not (self._disk is not None and self._disk.low):
            _log.warning(
                "the database's disk is nearly full: %.1f of %.1f GB are free; commits stop when none is",
                *(found.free_bytes / 1e9, found.total_bytes / 1e9),
            )
        self._disk = found

    async def _look(self, due: bool) -> None:
        self._look_at_disk()
        connection = await connect(self._dsn, "sensorium-retention")
        try:
            with translated():
                if due:
                    now_s = await connection.fetchval("SELECT extract(epoch FROM now())::float8")
                    dropped = await apply(connection, self._settings, datetime.fromtimestamp(now_s, UTC))
                    self._dropped += len(dropped)
                self._bytes = await sizes(connection)
                self._classes = [dict(row) for row in await connection.fetch(_CLASSES)]
        finally:
            connection.terminate()
