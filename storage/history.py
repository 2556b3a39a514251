"""Readings and their aggregates by event time, from the log and its rollups. Start is included, end not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import lru_cache, partial, reduce
from math import inf
from operator import or_
from typing import Any, Final, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import asyncpg

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage, LogUnavailable
from sensorium.actors.messages import Quality, Value
from sensorium.actors.metrics import BOOL, MetricSet
from sensorium.actors.placement import device_key
from sensorium.storage import _history_sql as sql
from sensorium.storage._history_plan import ALWAYS_MS, NEVER_MS, Segment, segments
from sensorium.storage._known_sets import KnownSets
from sensorium.storage._projected import KNOWN_S, LastProjected, Projected, projected
from sensorium.storage._readings_sql import of_quality
from sensorium.storage.archive import (
    FUTURE_MS,
    Archive,
    ArchivedPoint,
    Question,
    Seam,
    merged,
    range_ns,
)
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import Connection, Pool, acquired, borrowed
from sensorium.storage.encode import decode_values
from sensorium.storage.influx_lines import SUB_MS, point_ns
from sensorium.storage.pages import Page, check_limit, cursor
from sensorium.storage.retention_classes import floors, others_until
from sensorium.storage.rollup import LEVELS

MAX_BUCKETS: Final = 10_000
NEWEST: Final = 20
"""Readings that say which metrics a device has: its set only grows."""
YIELD_EVERY_ROWS: Final = 1_000
DAY_S: Final = 86_400
HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
Whose = tuple[Sequence[int] | None, str | None]
"""Devices by key, or all of a type."""
ALL: Final = 1 << 62
NO_LEVEL_MS: Final = 1
"""A grain that no rollup fits."""
_B = TypeVar("_B")


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


class Buckets(list[_B]):
    """Buckets in order of time, and where they come from: "raw", "1m", "1h", "1d", "influxdb" or "mixed".

    `approximate` says that the values are estimates, within `sketch.RELATIVE_ERROR` each.
    """

    def __init__(self, items: Iterable[_B] = (), source: str = "raw", approximate: bool = False) -> None:
        super().__init__(items)
        self.source = source
        self.approximate = approximate


class History:
    """Reads the log, and what it no longer has from the archive, if there is one.

    `days` is what is known of the database; other readers may share it.
    Every call raises `Unavailable` when the database, or the archive that it needs, does not answer in time.
    """

    def __init__(self, pool: Pool, archive: Archive | None = None, days: CompactedDays | None = None) -> None:
        self._pool = pool
        self._archive = archive
        self._sets = KnownSets()
        self._days = days or CompactedDays()
        self._projected = LastProjected()

    async def readings(
        self,
        device_id: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        metrics: Sequence[str] | None = None,
        limit: int = 1000,
        order: str = "asc",
        after: Any | None = None,
        quality: Quality | None = None,
    ) -> Page[Point]:
        """A device's readings in the order ("asc" or "desc") of their times.

        With `metrics`, those readings that have one of them, cut down to them; with `quality`, those of it.

        Raises:
            InvalidMessage: `limit`, `order` or `after` (the `next` of the page before) is out of its range,
                or a part of what is asked by quality is in the archive only.
        """
        check_limit(limit)
        place = (None, None) if after is None else cursor(after, tuple[int, int])
        shape = (_order(order), metrics is not None, self._archive is not None, quality)
        async with borrowed(self._pool) as connection:
            rows = await self._rows(
                connection, shape, device_key(device_id), (start_ms, end_ms), place, limit + 1, metrics
            )
            sets = await self._sets.find(connection, {row["metric_set"] for row in rows})
        wanted = None if metrics is None else frozenset(metrics)
        if self._archive is not None and (seam := await self._seam()) is not None:
            newest_first = order == "desc"
            start_ns, end_ns = range_ns(start_ms, end_ms, seam.at_ms, place, newest_first)
            if start_ns < end_ns:
                if quality is not None:
                    raise _not_of_archive(seam.at_ms)
                older = await self._archive.points(
                    device_id, start_ns, end_ns, metrics, limit + 1, newest_first
                )
                known = [_archived(row, sets[row["metric_set"]], wanted) for row in rows]
                return _page(merged(known, older, limit + 1, newest_first), limit)
        items = [_point(row, sets[row["metric_set"]], wanted) for row in rows[:limit]]
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(items, None if last is None else [last["time"], last["log_offset"]])

    async def _rows(
        self,
        connection: Connection,
        shape: tuple[str, bool, bool, Quality | None],
        device: int,
        within: tuple[int | None, int | None],
        place: tuple[int | None, int | None],
        limit: int,
        metrics: Sequence[str] | None,
    ) -> list[asyncpg.Record]:
        """The first so many in their order, behind the place."""
        await self._days.refresh(connection)
        order, start_ms, end_ms = shape[0], *within
        if place[0] is not None:
            # What is at the place's time itself is compared by offset, too.
            if order == "asc":
                start_ms = max(place[0], place[0] if start_ms is None else start_ms)
            else:
                end_ms = min(place[0] + 1, place[0] + 1 if end_ms is None else end_ms)
        names = [] if metrics is None else [list(metrics)]
        found: list[asyncpg.Record] = []
        for from_ms, until_ms in self._days.windows(order, start_ms, end_ms):
            statement = sql.readings(*shape, self._days.committed(from_ms, until_ms))
            wanted = limit - len(found)
            # Of any readings the first so many are enough; of those with some metrics, who knows.
            among = [wanted] if metrics is None else [wanted * 8, wanted * 512, ALL]
            rows: list[asyncpg.Record] = []
            for looked_at in among:
                rows = await connection.fetch(
                    statement, device, from_ms, until_ms, *place, wanted, looked_at, *names
                )
                if len(rows) == wanted:
                    break
            found += rows
            if len(found) == limit:
                break
        return found

    async def kinds(
        self, device_ids: Sequence[str], start_ms: int | None = None, end_ms: int | None = None
    ) -> list[tuple[str, str]]:
        """The metrics that occur in the devices' readings, each with its kind ("n", "b" or "t").

        A name comes once for each kind that it has. What only an archive holds is not seen.
        """
        keys = [device_key(device_id) for device_id in device_ids]
        async with borrowed(self._pool) as connection:
            await self._days.refresh(connection)
            statement = sql.kinds(self._days.committed(start_ms, end_ms))
            rows = await connection.fetch(statement, keys, start_ms, end_ms)
        return [(row["name"], row["kind"]) for row in rows]

    async def newest_kinds(self, device_ids: Sequence[str]) -> list[tuple[str, str]]:
        """All metrics that these devices have sent up to their newest readings; far cheaper than `kinds`."""
        left = {device_key(device_id): NEWEST for device_id in device_ids}
        sets: set[int] = set()
        async with borrowed(self._pool) as connection:
            await self._days.refresh(connection)
            for from_ms, until_ms in self._days.windows("desc", None, None):
                statement = sql.newest_sets(self._days.committed(from_ms, until_ms))
                for device, set_id, count in await connection.fetch(
                    statement, list(left), NEWEST, from_ms, until_ms
                ):
                    sets.add(set_id)
                    left[device] -= count
                left = {device: count for device, count in left.items() if count > 0}
                if not left:
                    break
            rows = await connection.fetch(sql.KINDS_OF_SETS, list(sets))
        return [(row["name"], row["kind"]) for row in rows]

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
        zone: str | None = None,
        quality: Quality | None = None,
    ) -> Buckets[Bucket]:
        """A device's metrics by intervals that are aligned to 1970 UTC, the first `limit` that have values.

        With `zone`, such as "Europe/Berlin", `interval_s` is a number of days as that place has them: from
        midnight to midnight, which is 23 or 25 hours when its clocks change.

        Without `interval_s`, one bucket that starts at `start_ms`, or else at the first reading. Booleans
        count as 0 and 1. Texts have "count", "first" and "last" only; the other aggregations leave them out.
        "p50", "p95" and "p99" are approximate (see `Buckets`).

        Read from the coarsest rollups that give the same as the readings, and from readings at the edges of
        the range and behind what the rollups count: the answer is always complete. With `quality` from the
        readings alone, since rollups count all of them.

        Raises:
            InvalidMessage: `aggregation`, `interval_s`, `limit` or `order` is out of its range.
        """
        check_limit(limit)
        _order(order)
        begin = partial(
            sql.Parts,
            f"r.device = $1 {of_quality(quality)[0]}",
            "($2::text[] IS NULL OR s.name = ANY($2))",
            *_shape(interval_s, zone),
        )
        names = None if metrics is None else list(metrics)
        asked = (device_key(device_id), names, limit, start_ms, *_every(interval_s, zone))
        whose = ([device_key(device_id)], None)
        grain_ms = _grain_ms(interval_s, zone) if quality is None else NO_LEVEL_MS
        question = (
            None if zone or quality else Question(device_id, None, names, aggregation, _every_ns(interval_s))
        )
        if _aggregation(aggregation) in sql.PERCENTILES:
            make = partial(sql.sketches, interval_s is not None, order)
            rows = await self._fetch(begin(), make, asked, whose, start_ms, end_ms, grain_ms, question)
            return await _device_percentiles(rows, sql.PERCENTILES[aggregation])
        few = _buckets_at_most(start_ms, end_ms, interval_s, zone) <= limit
        make = partial(sql.device_aggregate, aggregation, interval_s is not None, order, few)
        found = await self._at_once(begin(), make, asked, start_ms, end_ms, grain_ms)
        if found is None:
            found = await self._fetch(begin(), make, asked, whose, start_ms, end_ms, grain_ms, question)
        return _device_buckets(found, aggregation, order)

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
        """One metric over all devices that are of the type now, in order of time; otherwise as `aggregate`.

        With `device_ids` over these instead, of whatever type.

        Raises:
            InvalidMessage: as `aggregate`, and there are more than `MAX_BUCKETS` intervals with values.
        """
        rows = await self.type_rows(
            device_type, metric, start_ms, end_ms, aggregation, interval_s, zone, device_ids
        )
        return await type_buckets(rows, aggregation)

    async def type_rows(
        self,
        device_type: str,
        metric: str,
        start_ms: int | None,
        end_ms: int | None,
        aggregation: str,
        interval_s: float | None,
        zone: str | None,
        device_ids: Sequence[str] | None,
    ) -> list[asyncpg.Record]:
        """What `type_buckets` makes the answer of `aggregate_type` from."""
        of_type = "r.device IN (SELECT device FROM devices WHERE device_type = $1)"
        which: Any = device_type
        if device_ids is not None:
            of_type, which = "r.device = ANY($1::bigint[])", [device_key(d) for d in device_ids]
        parts = sql.Parts(of_type, "s.name = $2", *_shape(interval_s, zone))
        asked = (which, metric, MAX_BUCKETS + 1, start_ms, *_every(interval_s, zone))
        whose = (None, device_type) if device_ids is None else (which, None)
        grain_ms = _grain_ms(interval_s, zone)
        question = None
        if device_ids is None and zone is None:
            question = Question(None, device_type, [metric], aggregation, _every_ns(interval_s))
        if _aggregation(aggregation) in sql.PERCENTILES:
            make = partial(sql.sketches, interval_s is not None, "asc")
        else:
            make = partial(sql.type_aggregate, aggregation, interval_s is not None)
        one_row_ms = grain_ms if zone is None and aggregation in sql.SUMMED else None
        return await self._fetch(parts, make, asked, whose, start_ms, end_ms, grain_ms, question, one_row_ms)

    async def _at_once(
        self,
        parts: sql.Parts,
        make: Callable[[sql.Parts], str],
        asked: tuple[Any, ...],
        start_ms: int | None,
        end_ms: int | None,
        grain_ms: int | None,
    ) -> list[asyncpg.Record] | None:
        """Read the parts in one way to the server and back; None: that cannot be done.

        Planned by what was so a moment ago. One statement sees the database as of one moment, and tells what
        is so then: if that makes another plan, its answer counts for nothing.
        """
        if self._archive is not None:
            return None
        async with borrowed(self._pool) as connection:
            known = await self._projected.get(connection)
            if known is None or known.by_class:
                return None
            planned = segments(start_ms, end_ms, grain_ms, known.kept_from)
            if any(segment.level is None for segment in planned):
                await self._days.refresh(connection)
            self._add(parts, planned, known)
            rows = await connection.fetch(sql.told_beside(make(parts)), *asked, *parts.arguments)
        told = Projected.of(rows[0]) if rows else None
        self._projected.know(told)
        if told is None or not known.held_until(told):
            return None
        return [row for row in rows if row["name"] is not None]

    def _add(
        self,
        parts: sql.Parts,
        planned: Sequence[Segment],
        known: Projected | None,
        one_row_ms: int | None = None,
        from_ms: int = NEVER_MS,
    ) -> None:
        """Add what is planned, with what the rollups have not read; readings from `from_ms` on."""
        for level, start_ms, end_ms in planned:
            if level is not None:
                whole = level.width_ms == one_row_ms
                parts.rollups(level.table, 2 << LEVELS.index(level), start_ms, end_ms, whole)
            elif end_ms > from_ms:
                start_ms = max(start_ms, from_ms)
                parts.readings(start_ms, end_ms, self._days.committed(start_ms, end_ms))
        rolled = [segment for segment in planned if segment.level is not None]
        if rolled and known is not None:
            until_ms = known.now_ms + round(KNOWN_S * 1000)
            parts.newer(rolled[0].start_ms, rolled[-1].end_ms, known.read_from_ms, until_ms)

    async def _fetch(
        self,
        parts: sql.Parts,
        make: Callable[[sql.Parts], str],
        asked: tuple[Any, ...],
        whose: Whose,
        start_ms: int | None,
        end_ms: int | None,
        grain_ms: int | None,
        question: Question | None,
        one_row_ms: int | None = None,
    ) -> list[asyncpg.Record]:
        """Plan the parts and read them, all of the database as of one moment.

        `grain_ms`: every bucket is a whole number of these. `question` None: an archive cannot answer it.
        `one_row_ms`: the buckets' width, where it matters whether a device has one row in each.
        """
        seam = await self._seam()
        if seam is not None:
            # What the log lacks is asked for before: no transaction waits for the archive.
            async with acquired(self._pool) as connection:
                _, planned = await _planned(connection, whose, start_ms, end_ms, grain_ms)
            await self._older(parts, planned, seam, question)
        async with acquired(self._pool) as connection, _one_moment(connection):
            await self._days.refresh(connection)
            known, now_planned = await _planned(connection, whose, start_ms, end_ms, grain_ms)
            if self._archive is not None and _place(await self._seam_in(connection)) != _place(seam):
                raise LogUnavailable("retention has dropped readings in between; ask again")
            if seam is None:
                planned = now_planned
            elif planned != now_planned:
                raise LogUnavailable("retention has dropped rollups in between; ask again")
            if not await _of_one_row(connection, one_row_ms, asked[1], whose, planned):
                one_row_ms = None
            self._add(parts, planned, known, one_row_ms, NEVER_MS if seam is None else seam.at_ms)
            return await connection.fetch(make(parts), *asked, *parts.arguments)

    async def _older(
        self, parts: sql.Parts, planned: Sequence[Segment], seam: Seam, question: Question | None
    ) -> None:
        """Add what is read as readings and is older than the seam."""
        assert self._archive is not None
        for level, start_ms, end_ms in planned:
            end_ms = min(end_ms, seam.at_ms)
            if level is None and start_ms < end_ms:
                if question is None:
                    raise _not_of_archive(seam.at_ms)
                if rows := await self._archive.aggregate(question, start_ms, end_ms):
                    parts.archived(rows)
                parts.behind(start_ms, end_ms, seam)

    async def _seam(self) -> Seam | None:
        """Where the archive ends and the log begins; None while the log has everything."""
        if self._archive is None:
            return None
        async with acquired(self._pool) as connection:
            return await self._seam_in(connection)

    async def _seam_in(self, connection: Connection) -> Seam | None:
        assert self._archive is not None
        row = await connection.fetchrow(sql.SEAM, self._archive.projection)
        if row is None or row["kept_from"] is None:
            return None
        return Seam(row["kept_from"] + FUTURE_MS, row["read_from"], row["cursors"])


def _not_of_archive(from_ms: int) -> InvalidMessage:
    return InvalidMessage(
        "a part of the range is in InfluxDB only, which is asked neither for time zones nor for chosen"
        f" devices or a quality: begin at {from_ms} (epoch ms) or later"
    )


def _place(seam: Seam | None) -> int | None:
    return None if seam is None else seam.at_ms


@asynccontextmanager
async def _one_moment(connection: Connection) -> AsyncIterator[None]:
    """A transaction that sees the database as of one moment, begun in one round trip.

    A statement has a plan of its own for its parameters: that lets partitions go early.
    """
    await connection.execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan"
    )
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


async def _planned(
    connection: Connection, whose: Whose, start_ms: int | None, end_ms: int | None, grain_ms: int | None
) -> tuple[Projected | None, list[Segment]]:
    """How far the rollups have read, and what is to be read from which level."""
    known = await projected(connection)
    if known is None:
        return None, [Segment(None, *_ends(start_ms, end_ms))]
    kept_from = dict(known.kept_from)
    if known.by_class:
        for kind, floor_ms in (await floors(connection, *whose)).items():
            kept_from[kind] = max(floor_ms, kept_from.get(kind, floor_ms))
    return known, segments(start_ms, end_ms, grain_ms, kept_from)


async def _of_one_row(
    connection: Connection, width_ms: int | None, metric: str, whose: Whose, planned: Sequence[Segment]
) -> bool:
    """Whether each device has one row at most in each rollup of this width: of one kind, and of one class."""
    starts = [segment.start_ms for segment in planned if segment.level and segment.level.width_ms == width_ms]
    if not starts or await connection.fetchval(sql.KINDS_OF_NAME, metric) != 1:
        return False
    until_ms = await others_until(connection, *whose)
    return until_ms is None or until_ms <= starts[0]


def _device_buckets(rows: Sequence[Any], aggregation: str, order: str) -> Buckets[Bucket]:
    """The answer of `aggregate` from what `sql.device_aggregate` gives."""
    buckets: dict[int, dict[str, Value]] = {}
    sources = 0
    for row in rows:
        name, kind = row["name"], row["kind"]
        sources |= row["source"]
        if aggregation in sql.SUMMED:
            for at_ms, number in zip(row["buckets"], row["numbers"], strict=True):
                buckets.setdefault(at_ms, {})[name] = number
        else:
            for at_ms, number, text in zip(row["buckets"], row["numbers"], row["texts"], strict=True):
                buckets.setdefault(at_ms, {})[name] = _value(aggregation, kind, number, text)
    in_order = sorted(buckets, reverse=order == "desc")
    return Buckets((Bucket(at_ms, buckets[at_ms]) for at_ms in in_order), _source(sources))


async def _device_percentiles(rows: Sequence[asyncpg.Record], q: float) -> Buckets[Bucket]:
    bins, sources = await _bins(rows)
    buckets: dict[int, dict[str, Value]] = {}
    for (bucket_ms, name), found in bins.items():
        buckets.setdefault(bucket_ms, {})[name] = sketch.quantile(found, q)
    items = (Bucket(at_ms, values) for at_ms, values in buckets.items())
    return Buckets(items, _source(sources), approximate=True)


async def type_buckets(rows: Sequence[Any], aggregation: str) -> Buckets[TypeBucket]:
    """The answer of `aggregate_type` from rows in order of time.

    Raises:
        InvalidMessage: there are more than `MAX_BUCKETS` intervals with values.
    """
    if aggregation in sql.PERCENTILES:
        found = await _type_percentiles(rows, sql.PERCENTILES[aggregation])
    else:
        found = Buckets(source=_source(reduce(or_, (row[5] for row in rows), 0)))
        for bucket_ms, kind, number, text, devices, *_ in rows:
            found.append(TypeBucket(bucket_ms, _value(aggregation, kind, number, text), devices))
    if len(found) > MAX_BUCKETS:
        raise InvalidMessage(
            f"more than {MAX_BUCKETS} intervals: choose a longer interval or a shorter range"
        )
    return found


async def _type_percentiles(rows: Sequence[Any], q: float) -> Buckets[TypeBucket]:
    devices: dict[int, set[int]] = {}
    for bucket_ms, _, device, *_ in rows:
        devices.setdefault(bucket_ms, set()).add(device)
    bins, sources = await _bins(rows)
    items = (
        TypeBucket(bucket_ms, sketch.quantile(found, q), len(devices[bucket_ms]))
        for (bucket_ms, _), found in bins.items()
    )
    return Buckets(items, _source(sources), approximate=True)


async def _bins(rows: Sequence[Any]) -> tuple[dict[tuple[int, str], sketch.Bins], int]:
    """The merged sketch of each bucket and metric, in the order of the rows. Yields in between."""
    merged: dict[tuple[int, str], sketch.Bins] = {}
    sources = 0
    for number, (bucket_ms, name, _, packed, bin_, n, source) in enumerate(rows, 1):
        sources |= source
        into = merged.setdefault((bucket_ms, name), {})
        sketch.merge(into, {bin_: n} if packed is None else sketch.decode(packed))
        if number % YIELD_EVERY_ROWS == 0:
            await asyncio.sleep(0)
    return merged, sources


def _ends(start_ms: int | None, end_ms: int | None) -> tuple[int, int]:
    return NEVER_MS if start_ms is None else start_ms, ALWAYS_MS if end_ms is None else end_ms


def _shape(interval_s: float | None, zone: str | None) -> tuple[bool, bool]:
    """Whether there is an interval, and whether it is one of a time zone."""
    by_interval = _interval(interval_s)
    if zone is not None and (interval_s is None or interval_s % DAY_S):
        raise InvalidMessage("a time zone goes with an interval of whole days")
    return by_interval, zone is not None


def _grain_ms(interval_s: float | None, zone: str | None) -> int | None:
    """What every bucket is a whole number of; None: anything. No level fits into 1 ms."""
    if interval_s is None:
        return None
    if zone is not None:
        # Wherever summer time begins or ends, and by how much; since 1972 offsets are whole minutes.
        return HOUR_MS if _whole_hours(zone) else MINUTE_MS
    interval_ms = round(interval_s * 1000)
    return interval_ms if interval_ms == interval_s * 1000 else 1


@lru_cache(maxsize=1024)
def _whole_hours(zone: str) -> bool:
    try:
        there = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidMessage(f"{zone!r} is no time zone, such as Europe/Berlin") from None
    quarters = ((year, month) for year in range(1972, 2100) for month in (1, 4, 7, 10))
    offsets = (datetime(year, month, 1, tzinfo=there).utcoffset() for year, month in quarters)
    return not any(offset and offset % timedelta(hours=1) for offset in offsets)


def _source(sources: int) -> str:
    return sql.SOURCES.get(sources, "mixed") if sources else "raw"


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


def _archived(row: asyncpg.Record, metrics: MetricSet, wanted: frozenset[str] | None) -> ArchivedPoint:
    point = _point(row, metrics, wanted)
    return ArchivedPoint(point_ns(point.time_ms, row["log_offset"]), point.values, point.flags)


def _page(points: list[ArchivedPoint], limit: int) -> Page[Point]:
    """Of one point more than fit, if there are so many."""
    items = [Point(point.ns // SUB_MS, point.values, point.flags) for point in points[:limit]]
    return Page(items, list(divmod(points[limit - 1].ns, SUB_MS)) if len(points) > limit else None)


def _buckets_at_most(
    start_ms: int | None, end_ms: int | None, interval_s: float | None, zone: str | None
) -> float:
    """How many intervals a range touches."""
    if interval_s is None:
        return 1
    if start_ms is None or end_ms is None or zone is not None:
        return inf
    return (end_ms - start_ms) / (interval_s * 1000) + 2


def _every_ns(interval_s: float | None) -> int | None:
    return None if interval_s is None else round(interval_s * 1e9)


def _every(interval_s: float | None, zone: str | None) -> list[float | str]:
    return [given for given in (interval_s, zone) if given is not None]
