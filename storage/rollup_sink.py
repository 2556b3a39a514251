"""The projection into the rollup tables: exactly once, because it writes in the cursor's transaction."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Final

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import MetricSet
from sensorium.storage import partitions
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Connection
from sensorium.storage.projection import LogEntry, ProjectionSettings, erased_at
from sensorium.storage.retention_classes import DEFAULT, classes_of, kind_of
from sensorium.storage.rollup import LEVELS, Collected, Key, Level, Rollup, check

NAME: Final = "rollups"
SETTINGS: Final = ProjectionSettings(NAME, page_entries=10_000, flush_every_s=60.0)
"""A minute's readings of a device become one row: writing earlier would write the same rows again."""

CHUNK: Final = 5_000
"""Rows of one statement. Between chunks, the process answers its pings."""

_COLUMNS: Final = (
    *("device", "bucket", "first_at", "last_at", "total", "squares", "least", "most", "first", "last"),
    *("metric", "n", "class", "sketch", "first_text", "last_text"),
)
_METRIC: Final = (
    'INSERT INTO rollup_metrics (name, kind) VALUES ($1, $2::text::"char") ON CONFLICT DO NOTHING'
)
_METRICS: Final = "SELECT name, kind::text, id FROM rollup_metrics"
_KEPT_FROM: Final = "SELECT kind, kept_from FROM retention"
_HAS_CLASSES: Final = "SELECT EXISTS (SELECT FROM retention_class_types WHERE until IS NULL)"
_FORGET: Final = "DELETE FROM {table} WHERE device = ANY($1::bigint[])"
_STAGE: Final = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS rollup_stage ON COMMIT DELETE ROWS
AS SELECT {", ".join(_COLUMNS)} FROM rollups_1m WITH NO DATA
"""


def _stored(leaf: str) -> str:
    return f"""
        SELECT device, metric, bucket, first_at, last_at, total, squares, least, most, first, last, n, sketch,
               first_text, last_text
        FROM unnest($1::bigint[], $2::int[], $3::timestamptz[]) AS asked (device, metric, bucket)
        JOIN "{leaf}" USING (device, metric, bucket)
    """


def _replace(leaf: str) -> str:
    others = ", ".join(
        f"{name} = s.{name}" for name in _COLUMNS if name not in ("device", "bucket", "metric", "class")
    )
    return f"""
        UPDATE "{leaf}" r SET {others} FROM rollup_stage s
        WHERE r.device = s.device AND r.metric = s.metric AND r.bucket = s.bucket
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
        minutes: dict[Key, Rollup] = {}
        for number, (key, rollup) in enumerate(collected.minutes(), 1):
            there = minutes.get(key)
            if there is None:
                minutes[key] = rollup
            else:
                there.merge(rollup)
            if number % CHUNK == 0:
                await asyncio.sleep(0)
        coarse = [await _coarser(minutes, LEVELS[1])]
        for level in LEVELS[2:]:
            coarse.append(await _coarser(coarse[-1], level))
        await self._know_metrics(transaction, {key[1:3] for key in coarse[-1]})
        classes: dict[int, int] = {}
        if await transaction.fetchval(_HAS_CLASSES):
            classes = await classes_of(transaction, {key[0] for key in coarse[-1]})
        for level, rollups in zip(LEVELS, (minutes, *coarse), strict=True):
            places = _Places(level, kept_from, await partitions.leaves(transaction, level.table))
            by_place: dict[Place, list[Key]] = {}
            for key in rollups:
                if (place := places.of(key[3], classes.get(key[0], DEFAULT))) is not None:
                    by_place.setdefault(place, []).append(key)
            for place, keys in sorted(by_place.items()):
                leaf = await places.leaf(transaction, place)
                # In the order of the index: neighbours stand on one page.
                for chunk in _chunks(sorted(keys)):
                    await self._write(transaction, leaf, place[1], {key: rollups[key] for key in chunk})

    async def _write(
        self, transaction: Connection, leaf: str, retention_class: int, rollups: dict[Key, Rollup]
    ) -> None:
        ids = self._metric_ids
        by_id = {(device, ids[name, kind], bucket): r for (device, name, kind, bucket), r in rollups.items()}
        columns = [list(column) for column in zip(*by_id, strict=True)]
        merged = []
        for row in await transaction.fetch(_stored(leaf), *columns):
            key = (row[0], row[1], row[2])
            stored = _rollup(row)
            stored.merge(by_id.pop(key))
            merged.append(_record(key, stored, retention_class))
        if merged:
            await transaction.copy_records_to_table("rollup_stage", records=merged, columns=_COLUMNS)
            await transaction.execute(_replace(leaf))
            await transaction.execute("TRUNCATE rollup_stage")
        if by_id:
            fresh = [_record(key, rollup, retention_class) for key, rollup in by_id.items()]
            await transaction.copy_records_to_table(leaf, records=fresh, columns=_COLUMNS)

    async def _know_metrics(self, transaction: Connection, used: set[Any]) -> None:
        if missing := sorted(used - self._metric_ids.keys()):
            await transaction.executemany(_METRIC, missing)
            self._metric_ids = {
                (name, kind): found for name, kind, found in await transaction.fetch(_METRICS)
            }

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """As the port says: only all of it can come again, and only while the log still has all of it."""
        if await transaction.fetchval(
            "SELECT EXISTS (SELECT FROM retention WHERE kind ~ '^(log$|reading_chunks/)')"
        ):
            raise InvalidMessage("retention has removed readings that the rollups still count")
        if to_ms > 0:
            raise InvalidMessage("rollups are rewound to the beginning only: to time 0")
        await transaction.execute(f"TRUNCATE {', '.join(level.table for level in LEVELS)}")

    async def close(self) -> None:
        """As the port says."""
        self._collected = Collected()
        self._connection = None


async def _coarser(finer: Mapping[Key, Rollup], level: Level) -> dict[Key, Rollup]:
    """The same in wider buckets. Yields in between."""
    found: dict[Key, Rollup] = {}
    width_ms = level.width_ms
    for number, ((device, name, kind, bucket_ms), rollup) in enumerate(finer.items(), 1):
        key = (device, name, kind, bucket_ms - bucket_ms % width_ms)
        there = found.get(key)
        if there is None:
            found[key] = rollup.copy()
        else:
            there.merge(rollup)
        if number % CHUNK == 0:
            await asyncio.sleep(0)
    return found


def _rollup(row: Any) -> Rollup:
    made = Rollup()
    (_, _, _, made.first_ms, made.last_ms, made.total, made.squares, made.least, made.most, *rest) = row
    made.first, made.last, made.n, packed, made.first_text, made.last_text = rest
    made.bins = sketch.decode(packed or b"")
    return made


def _record(key: tuple[int, int, int], rollup: Rollup, retention_class: int) -> tuple[Any, ...]:
    device, metric, bucket_ms = key
    return (
        *(device, bucket_ms, rollup.first_ms, rollup.last_ms, rollup.total, rollup.squares, rollup.least),
        *(rollup.most, rollup.first, rollup.last, metric, rollup.n, retention_class),
        *(sketch.encode(rollup.bins) or None, rollup.first_text, rollup.last_text),
    )


def _chunks(keys: Iterable[Key]) -> Iterator[list[Key]]:
    rest = iter(keys)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def partition_start(level: Level, bucket_ms: int) -> datetime:
    """The first moment of the partition that holds the bucket."""
    width_ms = level.partition_days * 86_400_000
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=bucket_ms // width_ms * width_ms)


Place = tuple[date, int]
"""The first day of a range of time, and a retention class."""


class _Places:
    """The tables of a level that rows go into: one for each range and class, and made when there is none."""

    def __init__(self, level: Level, kept_from: Mapping[str, int], leaves: Sequence[partitions.Leaf]) -> None:
        self._level = level
        self._kept_from = kept_from
        self._names = {(leaf.day, leaf.retention_class): leaf.name for leaf in leaves}
        self._starts: dict[int, date] = {}

    def of(self, bucket_ms: int, retention_class: int) -> Place | None:
        """Where a bucket of a device of that class is; None: retention has removed it."""
        width_ms = self._level.partition_days * 86_400_000
        number = bucket_ms // width_ms
        if (day := self._starts.get(number)) is None:
            day = self._starts[number] = partition_start(self._level, bucket_ms).date()
        kinds = (self._level.table, kind_of(self._level.table, retention_class))
        if bucket_ms < max(self._kept_from.get(kind, 0) for kind in kinds):
            return None
        return day, DEFAULT if (day, None) in self._names else retention_class

    async def leaf(self, transaction: Connection, place: Place) -> str:
        """The table's name."""
        day, number = place
        if (day, None) in self._names:
            return self._names[day, None]
        if place not in self._names:
            level = self._level
            name = f"{level.table}_{day:%Y%m%d}"
            if await transaction.fetchval("SELECT to_regclass($1) IS NULL", name):
                await partitions.create(transaction, level.table, day, level.partition_days, {number})
            else:
                await partitions.create_class(transaction, name, number)
            self._names[place] = f"{name}_c{number}"
        return self._names[place]
