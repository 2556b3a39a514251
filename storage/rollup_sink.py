"""The projection into the rollup tables: exactly once, because it writes in the cursor's transaction."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import MetricSet
from sensorium.storage import partitions
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Connection
from sensorium.storage.projection import LogEntry, ProjectionSettings, erased_at
from sensorium.storage.rollup import LEVELS, Collected, Key, Level, Rollup, check

NAME: Final = "rollups"
SETTINGS: Final = ProjectionSettings(NAME, page_entries=10_000, flush_every_s=60.0)
"""A minute's readings of a device become one row: writing earlier would write the same rows again."""

CHUNK: Final = 5_000
"""Rows of one statement. Between chunks, the process answers its pings."""

_COLUMNS: Final = (
    *("device", "bucket", "first_at", "last_at", "total", "squares", "least", "most", "first", "last"),
    *("metric", "n", "sketch", "first_text", "last_text"),
)
_METRIC: Final = (
    'INSERT INTO rollup_metrics (name, kind) VALUES ($1, $2::text::"char") ON CONFLICT DO NOTHING'
)
_METRICS: Final = "SELECT name, kind::text, id FROM rollup_metrics"
_KEPT_FROM: Final = "SELECT kind, kept_from FROM retention"
_FORGET: Final = "DELETE FROM {table} WHERE device = ANY($1::bigint[])"
_STAGE: Final = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS rollup_stage ON COMMIT DELETE ROWS
AS SELECT {", ".join(_COLUMNS)} FROM rollups_1m WITH NO DATA
"""


def _stored(level: Level) -> str:
    return f"""
        SELECT device, metric, bucket, first_at, last_at, total, squares, least, most, first, last, n, sketch,
               first_text, last_text
        FROM unnest($1::bigint[], $2::int[], $3::timestamptz[]) AS asked (device, metric, bucket)
        JOIN {level.table} USING (device, metric, bucket)
    """


def _write(level: Level) -> str:
    others = ", ".join(
        f"{name} = excluded.{name}" for name in _COLUMNS if name not in ("device", "bucket", "metric")
    )
    return f"""
        INSERT INTO {level.table} ({", ".join(_COLUMNS)}) SELECT * FROM rollup_stage
        ON CONFLICT (device, metric, bucket) DO UPDATE SET {others}
    """


class RollupSink:
    """A `Sink`. The runner's lock makes it the tables' only writer, so it may read, merge and write."""

    def __init__(self) -> None:
        self._collected = Collected()
        self._sets = KnownSets()
        self._erased: set[int] = set()
        """Devices whose rollups the next flush removes before it writes."""
        self._metric_ids: dict[tuple[str, str], int] = {}
        self._connection: Connection | None = None

    async def open(self, connection: Connection) -> None:
        """As the port says."""
        self._connection = connection
        self._collected, self._erased = Collected(), set()
        self._metric_ids = {}
        await connection.execute(_STAGE)

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        """As the port says. Events leave nothing, but that a device's data were deleted."""
        assert self._connection is not None
        readings = [entry for entry in entries if entry.metric_set is not None]
        sets = await self._sets.find(
            self._connection, {e.metric_set for e in readings if e.metric_set is not None}
        )
        ready: list[tuple[LogEntry, MetricSet]] = []
        for entry in readings:
            metrics = sets[entry.metric_set]  # type: ignore[index]
            check(metrics, entry.numbers, entry.texts)
            ready.append((entry, metrics))
        add = self._collected.add
        erased = erased_at(entries)
        if erased:
            self._collected.forget(erased.keys())
            self._erased |= erased.keys()
            last = {device: entries[index].offset for device, index in erased.items()}
            # A device's entries are in one shard: those behind the event are in its order.
            ready = [(e, m) for e, m in ready if e.device not in last or e.offset > last[e.device]]
        for entry, metrics in ready:
            add(entry.device, entry.time_ms, metrics, entry.numbers, entry.texts)
        return self._collected.full

    async def flush(self, transaction: Connection) -> None:
        """As the port says. Buckets that retention has removed are not begun again."""
        collected, self._collected = self._collected, Collected()
        erased, self._erased = self._erased, set()
        if erased:
            for level in LEVELS:
                await transaction.execute(_FORGET.format(table=level.table), list(erased))
        kept_from = {row["kind"]: row["kept_from"] for row in await transaction.fetch(_KEPT_FROM)}
        coarse: list[dict[Key, Rollup]] = [{} for _ in LEVELS[1:]]
        minutes: dict[Key, Rollup] = {}
        for number, (key, rollup) in enumerate(collected.minutes(), 1):
            _fold(minutes, key, rollup)
            for level, into in zip(LEVELS[1:], coarse, strict=True):
                _fold(into, (*key[:3], key[3] // level.width_ms * level.width_ms), rollup)
            if number % CHUNK == 0:
                await asyncio.sleep(0)
        await self._know_metrics(transaction, {key[1:3] for key in coarse[-1]})
        for level, rollups in zip(LEVELS, (minutes, *coarse), strict=True):
            floor_ms = kept_from.get(level.table, 0)
            # In the order of the index: neighbours stand on one page.
            keys = sorted(key for key in rollups if key[3] >= floor_ms)
            await _ensure(transaction, level, {key[3] for key in keys})
            for chunk in _chunks(keys):
                await self._write(transaction, level, {key: rollups[key] for key in chunk})

    async def _write(self, transaction: Connection, level: Level, rollups: dict[Key, Rollup]) -> None:
        ids = self._metric_ids
        by_id = {(device, ids[name, kind], bucket): r for (device, name, kind, bucket), r in rollups.items()}
        columns = [list(column) for column in zip(*by_id, strict=True)]
        for row in await transaction.fetch(_stored(level), *columns):
            key = (row[0], row[1], row[2])
            stored = _rollup(row)
            stored.merge(by_id[key])
            by_id[key] = stored
        await transaction.copy_records_to_table(
            "rollup_stage", records=[_record(key, r) for key, r in by_id.items()], columns=_COLUMNS
        )
        await transaction.execute(_write(level))
        await transaction.execute("TRUNCATE rollup_stage")

    async def _know_metrics(self, transaction: Connection, used: set[Any]) -> None:
        if missing := sorted(used - self._metric_ids.keys()):
            await transaction.executemany(_METRIC, missing)
            self._metric_ids = {
                (name, kind): found for name, kind, found in await transaction.fetch(_METRICS)
            }

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """As the port says: only all of it can come again, and only while the log still has all of it."""
        if await transaction.fetchval("SELECT EXISTS (SELECT FROM retention WHERE kind = 'log')"):
            raise InvalidMessage("retention has removed readings that the rollups still count")
        if to_ms > 0:
            raise InvalidMessage("rollups are rewound to the beginning only: to time 0")
        await transaction.execute(f"TRUNCATE {', '.join(level.table for level in LEVELS)}")

    async def close(self) -> None:
        """As the port says."""
        self._collected = Collected()
        self._connection = None


def _fold(into: dict[Key, Rollup], key: Key, rollup: Rollup) -> None:
    there = into.get(key)
    if there is None:
        into[key] = rollup.copy()
    else:
        there.merge(rollup)


def _rollup(row: Any) -> Rollup:
    made = Rollup()
    (_, _, _, made.first_ms, made.last_ms, made.total, made.squares, made.least, made.most, *rest) = row
    made.first, made.last, made.n, packed, made.first_text, made.last_text = rest
    made.bins = sketch.decode(packed or b"")
    return made


def _record(key: tuple[int, int, int], rollup: Rollup) -> tuple[Any, ...]:
    device, metric, bucket_ms = key
    return (
        *(device, bucket_ms, rollup.first_ms, rollup.last_ms, rollup.total, rollup.squares, rollup.least),
        *(rollup.most, rollup.first, rollup.last, metric, rollup.n, sketch.encode(rollup.bins) or None),
        *(rollup.first_text, rollup.last_text),
    )


def _chunks(keys: Iterable[Key]) -> Iterator[list[Key]]:
    rest = iter(keys)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def partition_start(level: Level, bucket_ms: int) -> datetime:
    """The first moment of the partition that holds the bucket."""
    width_ms = level.partition_days * 86_400_000
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=bucket_ms // width_ms * width_ms)


async def _ensure(transaction: Connection, level: Level, buckets_ms: set[int]) -> None:
    wanted = {partition_start(level, bucket_ms) for bucket_ms in buckets_ms}
    have = {day for day, _ in await partitions.attached(transaction, level.table)}
    for start in sorted(wanted):
        if start.date() not in have:
            await partitions.create(transaction, level.table, start.date(), level.partition_days)
