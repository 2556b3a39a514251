"""The projection into the rollup tables: exactly once, because it writes in the cursor's transaction."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Final

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import MetricSet
from sensorium.storage import partitions
from sensorium.storage._fold_py import Folded
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Connection, copy_in
from sensorium.storage.encode_rollups import COLUMNS, FOLDED, encode_rollups
from sensorium.storage.projection import LogEntry, ProjectionSettings, erased_at
from sensorium.storage.retention_classes import DEFAULT, classes_of, kind_of
from sensorium.storage.rollup import LEVELS, Collected, Level, check, merged

NAME: Final = "rollups"
SETTINGS: Final = ProjectionSettings(NAME, page_entries=10_000, flush_every_s=60.0)
"""A minute's readings of a device become one row: writing earlier would write the same rows again."""

CHUNK: Final = 5_000
"""Rows of one statement. Between chunks, the process answers its pings."""

_Key = tuple[int, int, int]
"""Device, metric and the start of the bucket."""
_METRIC: Final = (
    'INSERT INTO rollup_metrics (name, kind) VALUES ($1, $2::text::"char") ON CONFLICT DO NOTHING'
)
_METRICS: Final = "SELECT name, kind::text, id FROM rollup_metrics"
_KEPT_FROM: Final = "SELECT kind, kept_from FROM retention"
_HAS_CLASSES: Final = "SELECT EXISTS (SELECT FROM retention_class_types WHERE until IS NULL)"
_FORGET: Final = "DELETE FROM {table} WHERE device = ANY($1::bigint[])"
_STAGE: Final = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS rollup_stage ON COMMIT DELETE ROWS
AS SELECT {", ".join(COLUMNS)} FROM rollups_1m WITH NO DATA
"""


def _stored(leaf: str) -> str:
    return f"""
        SELECT device, metric, {", ".join(FOLDED)}
        FROM unnest($1::bigint[], $2::int[], $3::timestamptz[]) AS asked (device, metric, bucket)
        JOIN "{leaf}" USING (device, metric, bucket)
    """


def _replace(leaf: str) -> str:
    others = ", ".join(
        f"{name} = s.{name}" for name in COLUMNS if name not in ("device", "bucket", "metric", "class")
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
        used = {
            (n, k) for s in collected.series for n, k in zip(s.metrics.names, s.metrics.kinds, strict=True)
        }
        await self._know_metrics(transaction, used)
        classes: dict[int, int] = {}
        if await transaction.fetchval(_HAS_CLASSES):
            classes = await classes_of(transaction, {series.device for series in collected.series})
        for level in LEVELS:
            places = _Places(level, kept_from, await partitions.leaves(transaction, level.table))
            by_place = await self._by_place(collected, places, classes)
            for place, rollups in sorted(by_place.items()):
                leaf = await places.leaf(transaction, place)
                # In the order of the index: neighbours stand on one page.
                for keys in _chunks(sorted(rollups)):
                    await self._write(transaction, leaf, place[1], {key: rollups[key] for key in keys})

    async def _by_place(
        self, collected: Collected, places: "_Places", classes: Mapping[int, int]
    ) -> dict["Place", dict[_Key, Folded]]:
        """The rollups of a level, by the table that they go into. Yields in between."""
        by_place: dict[Place, dict[_Key, Folded]] = {}
        folded = 0
        for series in collected.series:
            device, retention_class = series.device, classes.get(series.device, DEFAULT)
            for name, kind, buckets in series.folded(places.level.width_ms):
                metric = self._metric_ids[name, kind]
                for bucket in buckets:
                    place = places.of(bucket[0], retention_class)
                    if place is None:
                        continue
                    rollups = by_place.get(place)
                    if rollups is None:
                        rollups = by_place[place] = {}
                    key = (device, metric, bucket[0])
                    # A device has the same metric in another set, too.
                    rollups[key] = merged(rollups[key], bucket) if key in rollups else bucket
                folded += len(series.times_ms)
                if folded >= CHUNK:
                    folded = 0
                    await asyncio.sleep(0)
        return by_place

    async def _write(
        self, transaction: Connection, leaf: str, retention_class: int, rollups: dict[_Key, Folded]
    ) -> None:
        columns = [list(column) for column in zip(*rollups, strict=True)]
        changed: list[tuple[int, int, Folded]] = []
        for device, metric, *stored in await transaction.fetch(_stored(leaf), *columns):
            figures = merged(tuple(stored), rollups.pop((device, metric, stored[0])))
            changed.append((device, metric, figures))
        if changed:
            await copy_in(transaction, "rollup_stage", COLUMNS, encode_rollups(changed, retention_class))
            await transaction.execute(_replace(leaf))
            await transaction.execute("TRUNCATE rollup_stage")
        if rollups:
            fresh = ((key[0], key[1], figures) for key, figures in rollups.items())
            await copy_in(transaction, leaf, COLUMNS, encode_rollups(fresh, retention_class))

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


def _chunks(keys: Iterable[_Key]) -> Iterator[list[_Key]]:
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
        self.level = level
        self._width_ms = level.partition_days * 86_400_000
        self._kept_from = kept_from
        self._names = {(leaf.day, leaf.retention_class): leaf.name for leaf in leaves}
        self._floors: dict[int, int] = {}
        self._places: dict[tuple[int, int], Place] = {}

    def of(self, bucket_ms: int, retention_class: int) -> Place | None:
        """Where a bucket of a device of that class is; None: retention has removed it."""
        floor_ms = self._floors.get(retention_class)
        if floor_ms is None:
            table = self.level.table
            kinds = (table, kind_of(table, retention_class))
            floor_ms = self._floors[retention_class] = max(self._kept_from.get(kind, 0) for kind in kinds)
        if bucket_ms < floor_ms:
            return None
        key = (bucket_ms // self._width_ms, retention_class)
        place = self._places.get(key)
        if place is None:
            day = partition_start(self.level, bucket_ms).date()
            place = self._places[key] = (day, DEFAULT if (day, None) in self._names else retention_class)
        return place

    async def leaf(self, transaction: Connection, place: Place) -> str:
        """The table's name."""
        day, number = place
        if (day, None) in self._names:
            return self._names[day, None]
        if place not in self._names:
            level = self.level
            name = f"{level.table}_{day:%Y%m%d}"
            if await transaction.fetchval("SELECT to_regclass($1) IS NULL", name):
                await partitions.create(transaction, level.table, day, level.partition_days, {number})
            else:
                await partitions.create_class(transaction, name, number)
            self._names[place] = f"{name}_c{number}"
        return self._names[place]
