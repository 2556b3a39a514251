"""Readings and their aggregates over several databases (see `spread`)."""

import asyncio
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sensorium.storage._history_sql import PERCENTILES
from sensorium.storage.archive import Archive
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import Pool
from sensorium.storage.history import Bucket, Buckets, History, Point, TypeBucket, type_buckets
from sensorium.storage.pages import Page
from sensorium.storage.spread import database_of_device


class _TypeRow(NamedTuple):
    """A row of `_history_sql.type_aggregate`."""

    bucket: int
    kind: str
    number: float | None
    text: str | None
    devices: int
    source: int
    n: int
    at: int | None


_NUMBER: Final[dict[str, Callable[[float, float], float]]] = {
    "min": min,
    "max": max,
    "sum": operator.add,
    "count": operator.add,
}


class SpreadHistory:
    """`History` over a pool for each database: a device's are in one, a type's are merged."""

    def __init__(
        self,
        pools: Sequence[Pool],
        archive: Archive | None = None,
        days: Sequence[CompactedDays] | None = None,
    ) -> None:
        of_each = days or [CompactedDays() for _ in pools]
        self._parts = [History(pool, archive, known) for pool, known in zip(pools, of_each, strict=True)]

    async def readings(self, device_id: str, *which: Any, **named: Any) -> Page[Point]:
        """As `History.readings`."""
        return await self._of(device_id).readings(device_id, *which, **named)

    async def kinds(self, device_ids: Sequence[str], *which: Any) -> list[tuple[str, str]]:
        """As `History.kinds`."""
        of_each = self._by_database(device_ids)
        found = await asyncio.gather(
            *(part.kinds(ids, *which) for part, ids in zip(self._parts, of_each, strict=True))
        )
        return sorted({pair for pairs in found for pair in pairs})

    async def newest_kinds(self, device_ids: Sequence[str]) -> list[tuple[str, str]]:
        """As `History.newest_kinds`."""
        of_each = self._by_database(device_ids)
        found = await asyncio.gather(
            *(part.newest_kinds(ids) for part, ids in zip(self._parts, of_each, strict=True))
        )
        return sorted({pair for pairs in found for pair in pairs})

    async def aggregate(self, device_id: str, *which: Any, **named: Any) -> Buckets[Bucket]:
        """As `History.aggregate`."""
        return await self._of(device_id).aggregate(device_id, *which, **named)

    async def aggregate_type(
        self,
        device_type: str,
        metric: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        aggregation: str = "mean",
        interval_s: float | None = None,
        zone: str | None = None,
        device_ids: Sequence[str] | None = None,
    ) -> Buckets[TypeBucket]:
        """As `History.aggregate_type`. A mean is that of the databases' means, each by its weight."""
        asked = (device_type, metric, start_ms, end_ms, aggregation, interval_s, zone)
        of_each: Sequence[list[str] | None] = [None] * len(self._parts)
        if device_ids is not None:
            of_each = self._by_database(device_ids)
        found = await asyncio.gather(
            *(part.type_rows(*asked, ids) for part, ids in zip(self._parts, of_each, strict=True))
        )
        rows = [tuple(row) for part in found for row in part]
        if interval_s is None and rows:
            # One bucket, which starts at the first reading of all.
            start = min(row[0] for row in rows)
            rows = [(start, *row[1:]) for row in rows]
        rows.sort(key=lambda row: row[0])
        if aggregation not in PERCENTILES:
            rows = list(_by_bucket(aggregation, rows))
        return await type_buckets(rows, aggregation)

    def _by_database(self, device_ids: Iterable[str]) -> list[list[str]]:
        parts: list[list[str]] = [[] for _ in self._parts]
        for device_id in device_ids:
            parts[database_of_device(device_id, len(parts))].append(device_id)
        return parts

    def _of(self, device_id: str) -> History:
        return self._parts[database_of_device(device_id, len(self._parts))]


def _by_bucket(aggregation: str, rows: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    merged: dict[int, _TypeRow] = {}
    for row in map(_TypeRow._make, rows):
        there = merged.get(row.bucket)
        merged[row.bucket] = row if there is None else _joined(aggregation, there, row)
    return merged.values()


def _joined(aggregation: str, one: _TypeRow, other: _TypeRow) -> _TypeRow:
    kept, number, n = one, one.number, one.n + other.n
    if aggregation in ("first", "last"):
        assert one.at is not None
        assert other.at is not None
        kept = other if (other.at < one.at if aggregation == "first" else other.at > one.at) else one
        number = kept.number
    else:
        assert one.number is not None
        assert other.number is not None
        if aggregation == "mean":
            number = (one.number * one.n + other.number * other.n) / n
        else:
            number = _NUMBER[aggregation](one.number, other.number)
    devices, source = one.devices + other.devices, one.source | other.source
    return kept._replace(number=number, devices=devices, source=source, n=n)
