"""Readings and their aggregates by event time, straight from the log. Start is included, end is not."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, MetricSet
from sensorium.actors.placement import device_key
from sensorium.storage import _history_sql as sql
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Pool, acquired
from sensorium.storage.encode import decode_values
from sensorium.storage.pages import Page, check_limit, cursor

MAX_BUCKETS: Final = 10_000


class Point(NamedTuple):
    """One reading: what it measured, by metric. `flags` is a `ReadingFlag`."""

    time_ms: int
    values: dict[str, Value]
    flags: int


class Bucket(NamedTuple):
    """The aggregate of each metric that has values in the interval which starts at `start_ms`."""

    start_ms: int
    values: dict[str, Value]


class TypeBucket(NamedTuple):
    """The aggregate over all devices of a type, and how many of them have values in the interval."""

    start_ms: int
    value: Value
    devices: int


class History:
    """Reads the log. Every call raises `LogUnavailable` when the database does not answer in time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sets = KnownSets()

    async def readings(
        self,
        device_id: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        metrics: Sequence[str] | None = None,
        limit: int = 1000,
        order: str = "asc",
        after: Any | None = None,
    ) -> Page[Point]:
        """A device's readings in the order ("asc" or "desc") of their times.

        With `metrics`, those readings that have one of them, cut down to them.

        Raises:
            InvalidMessage: `limit`, `order` or `after` (the `next` of the page before) is out of its range.
        """
        check_limit(limit)
        statement = sql.READINGS[_order(order), metrics is not None]
        place = (None, None) if after is None else cursor(after, tuple[int, int])
        names = [] if metrics is None else [list(metrics)]
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                statement, device_key(device_id), start_ms, end_ms, *place, limit + 1, *names
            )
            sets = await self._sets.find(connection, {row["metric_set"] for row in rows})
        wanted = None if metrics is None else frozenset(metrics)
        items = [_point(row, sets[row["metric_set"]], wanted) for row in rows[:limit]]
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(items, None if last is None else [last["time"], last["log_offset"]])

    async def aggregate(
        self,
        device_id: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        metrics: Sequence[str] | None = None,
        aggregation: str = "mean",
        interval_s: float | None = None,
        limit: int = 1000,
        order: str = "asc",
    ) -> list[Bucket]:
        """A device's metrics by intervals that are aligned to 1970 UTC, the first `limit` that have values.

        Without `interval_s`, one bucket that starts at `start_ms`, or else at the first reading. Booleans
        count as 0 and 1. Texts have "count", "first" and "last" only; the other aggregations leave them out.

        Raises:
            InvalidMessage: `aggregation`, `interval_s`, `limit` or `order` is out of its range.
        """
        check_limit(limit)
        statement = sql.device_aggregate(_aggregation(aggregation), _interval(interval_s), _order(order))
        names = None if metrics is None else list(metrics)
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                statement, device_key(device_id), start_ms, end_ms, names, *_every(interval_s), limit
            )
        buckets: dict[int, dict[str, Value]] = {}
        for bucket_ms, name, kind, number, text in rows:
            values = buckets.setdefault(bucket_ms, {})
            values[name] = _value(aggregation, kind, number, text)
        return [Bucket(start_ms, values) for start_ms, values in buckets.items()]

    async def aggregate_type(
        self,
        device_type: str,
        metric: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        aggregation: str = "mean",
        interval_s: float | None = None,
    ) -> list[TypeBucket]:
        """One metric over all devices that are of the type now, in order of time; otherwise as `aggregate`.

        Raises:
            InvalidMessage: as `aggregate`, and there are more than `MAX_BUCKETS` intervals with values.
        """
        statement = sql.type_aggregate(_aggregation(aggregation), _interval(interval_s))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                statement, device_type, start_ms, end_ms, metric, *_every(interval_s), MAX_BUCKETS + 1
            )
        if len(rows) > MAX_BUCKETS:
            raise InvalidMessage(
                f"more than {MAX_BUCKETS} intervals: choose a longer interval or a shorter range"
            )
        return [
            TypeBucket(bucket_ms, _value(aggregation, kind, number, text), devices)
            for bucket_ms, kind, number, text, devices in rows
        ]


def _point(row: asyncpg.Record, metrics: MetricSet, wanted: frozenset[str] | None) -> Point:
    values = decode_values(metrics, row["numbers"], row["texts"])
    return Point(
        row["time"],
        {
            name: value
            for name, value in zip(metrics.names, values, strict=True)
            if value is not None and (wanted is None or name in wanted)
        },
        row["flags"],
    )


def _value(aggregation: str, kind: str, number: float | None, text: str | None) -> Value:
    if text is not None:
        return text
    assert number is not None
    return number != 0.0 if kind == BOOL and aggregation in ("first", "last") else float(number)


def _order(order: str) -> str:
    if order not in ("asc", "desc"):
        raise InvalidMessage(f"order is asc or desc, not {order!r}")
    return order


def _aggregation(aggregation: str) -> str:
    if aggregation not in sql.AGGREGATIONS:
        raise InvalidMessage(f"aggregation is one of {', '.join(sql.AGGREGATIONS)}, not {aggregation!r}")
    return aggregation


def _interval(interval_s: float | None) -> bool:
    if interval_s is not None and not 0.001 <= interval_s <= 366 * 86_400:
        raise InvalidMessage(f"an interval is 1 ms to 366 days long, not {interval_s} s")
    return interval_s is not None


def _every(interval_s: float | None) -> list[float]:
    return [] if interval_s is None else [interval_s]
