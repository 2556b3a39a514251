"""The statements of `history`. Only what stands here is ever put into them; all else is a parameter."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from sensorium.actors.messages import Quality
from sensorium.actors.placement import device_key
from sensorium.actors.sketch import BIAS, LOG_GAMMA
from sensorium.storage import _readings_sql as raw
from sensorium.storage.archive import ArchivedRow, Seam
from sensorium.storage.influx_lines import SUB_MS

HOUR_MS: Final = 3_600_000
AGGREGATIONS: Final = ("mean", "min", "max", "sum", "count", "first", "last", "p50", "p95", "p99")

_START: Final = "coalesce($2::timestamptz, '-infinity')"
_END: Final = "coalesce($3::timestamptz, 'infinity')"
_AT_LEAST: Final = "coalesce($3::timestamptz, '-infinity')"
_BEFORE: Final = "coalesce($4::timestamptz, 'infinity')"

_HAS_ONE: Final = """
    AND EXISTS (SELECT FROM metric_slots s WHERE s.metric_set = r.metric_set AND s.name = ANY($8::text[])
                AND CASE s.kind WHEN 't' THEN r.texts[s.slot] IS NOT NULL
                                ELSE r.numbers[s.slot] IS NOT NULL END)
"""


@lru_cache(maxsize=256)
def readings(
    order: str,
    by_metric: bool,
    by_point: bool,
    quality: Quality | None,
    committed: raw.Committed = raw.WHENEVER,
) -> str:
    """By order, whether a reading must have one of the metrics $8, whether the order is that of an archive's
    points, of which quality it must be, and when it was committed; $1 device, $2, $3 range, $4, $5 cursor,
    $6 limit, $7 among how many readings of chunks it looks for them.
    """
    sign = ">" if order == "asc" else "<"
    place = f"(r.log_offset % {SUB_MS})" if by_point else "r.log_offset"
    where, rows, chunks = raw.between(_START, _END, committed)
    inside = f"c.first_time >= {_START} AND c.last_time < {_END}"
    behind, within = ("c.last_time", "c.first_time") if order == "asc" else ("c.first_time", "c.last_time")
    chunks += f" AND c.device = $1 AND ($4::timestamptz IS NULL OR {behind} {sign}= $4)"
    inside += f" AND ($4::timestamptz IS NULL OR {within} {sign} $4)"
    of_this, with_these, of_these = raw.of_quality(quality)
    chunks, inside = chunks + with_these, inside + of_these
    near = raw.reach(order, "$7::bigint", chunks, inside)
    if order == "asc":
        chunks += f" AND c.first_time <= coalesce({near}, 'infinity')"
    else:
        chunks += f" AND c.last_time >= coalesce({near}, '-infinity')"
    both = raw.readings(
        f"r.time, {place} AS log_offset, r.flags, r.metric_set, r.numbers, r.texts",
        f"""r.device = $1 AND {where}
            AND ($4::timestamptz IS NULL OR (r.time, {place}) {sign} ($4, $5::bigint))
            {_HAS_ONE if by_metric else ""} {of_this}""",
        rows,
        chunks,
        f"ORDER BY r.time {order}, {place} {order} LIMIT $6",
    )
    return f"SELECT * FROM ({both}) AS found ORDER BY time {order}, log_offset {order} LIMIT $6"


@lru_cache(maxsize=256)
def kinds(committed: raw.Committed) -> str:
    """Of the devices $1 in the range $2, $3."""
    where, rows, chunks = raw.between(_START, _END, committed)
    of_them = "r.device = ANY($1::bigint[])"
    inside = f"c.first_time >= {_START} AND c.last_time < {_END}"
    found = raw.readings("r.metric_set", f"{of_them} AND {where}", rows, f"NOT ({inside}) AND {chunks}")
    return f"""
        SELECT DISTINCT s.name, s.kind::text AS kind
        FROM (SELECT DISTINCT metric_set FROM (
                  {found}
                  UNION ALL SELECT c.metric_set FROM reading_chunks c
                  WHERE c.device = ANY($1::bigint[]) AND {inside} AND {chunks}) AS found) AS used
        JOIN metric_slots s ON s.metric_set = used.metric_set ORDER BY 1, 2
    """


@lru_cache(maxsize=256)
def newest_sets(committed: raw.Committed) -> str:
    """Of the newest $2 readings of each of the devices $1 between $3 and $4: which have which metric set."""
    found = raw.newest("r.metric_set, r.time", "asked.device", "$2", _AT_LEAST, _BEFORE, None, committed)
    return f"""
        SELECT asked.device, newest.metric_set, count(*) AS count
        FROM unnest($1::bigint[]) AS asked (device), LATERAL ({found}) AS newest GROUP BY 1, 2
    """


KINDS_OF_SETS: Final = """
SELECT DISTINCT name, kind::text AS kind FROM metric_slots WHERE metric_set = ANY($1::bigint[]) ORDER BY 1, 2
"""

SEAM: Final = """
SELECT p.read_from, p.cursors, (SELECT kept_from FROM retention WHERE kind = 'log') AS kept_from
FROM projections p WHERE p.name = $1
"""
"""Without `kept_from` the log has everything."""

PERCENTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""Approximate: within `sketch.RELATIVE_ERROR` of the value of that rank."""

ARCHIVE: Final = 16
SOURCES: Final = {1: "raw", 2: "1m", 4: "1h", 8: "1d", ARCHIVE: "influxdb"}
"""What a row's `source` says; a group's is the sum of those in it."""

# The bin of a value as `actors.sketch.bin_of` has it; 0 for zeros.
_BIN: Final = f"""
    CASE WHEN number > 0 THEN (ceil(ln(number) / {LOG_GAMMA!r}::float8) + {BIAS})::int
         WHEN number < 0 THEN -(ceil(ln(-number) / {LOG_GAMMA!r}::float8) + {BIAS})::int ELSE 0 END
"""

KINDS_OF_NAME: Final = "SELECT count(*) FROM rollup_metrics WHERE name = $1"
"""A device that sends a metric now as a number, now as text has two rows."""

PROJECTED: Final = """
SELECT p.read_from, clock_timestamp() AS now,
       (SELECT coalesce(json_object_agg(kind, extract(epoch FROM kept_from) * 1000)::text, '{}')
            FROM retention) AS kept_from
FROM projections p WHERE p.name = 'rollups'
"""
"""No row while there are no rollups. `now`: nothing that the transaction sees was committed later."""


_ARCHIVED: Final = {
    "device": "bigint",
    "bucket": "timestamptz",
    "first_at": "timestamptz",
    "last_at": "timestamptz",
    "name": "text",
    "kind": "text",
    "n": "int",
    **dict.fromkeys(("total", "least", "most", "first", "last"), "float8"),
    **dict.fromkeys(("first_text", "last_text"), "text"),
}


_BUCKETS: Final = {
    (False, False): "NULL::timestamptz",
    (True, False): "date_bin(make_interval(secs => $5), {time}, 'epoch')",
    # Days as people there have them; weeks begin on a Monday.
    (True, True): (
        "date_bin(make_interval(secs => $5), {time} AT TIME ZONE $6::text, timestamp '2001-01-01')"
        " AT TIME ZONE $6::text"
    ),
}
"""By whether there is an interval ($5, in seconds) and a time zone ($6)."""


class Parts:
    """The rows that a question is answered from, as one list of values: readings, rollups and what is newer.

    `$1` picks the devices; the parameters of the segments follow those of the caller.
    """

    def __init__(self, which: str, names: str, by_interval: bool, zone: bool) -> None:
        self._which = which
        self._names = names
        self._buckets = _BUCKETS[by_interval, zone]
        self._count = 4 + by_interval + zone
        self._parts: list[str] = []
        self._whole: list[str] = []
        self.arguments: list[Any] = []

    def readings(self, start_ms: int, end_ms: int, committed: raw.Committed) -> None:
        """Readings with times in the range."""
        start, end = f"{self._add(start_ms)}::timestamptz", f"{self._add(end_ms)}::timestamptz"
        self._raw(*raw.between(start, end, committed))

    def newer(self, start_ms: int, end_ms: int, read_from_ms: int, now_ms: int) -> None:
        """Readings with times in the range that the rollups do not count yet."""
        cursors = "(SELECT cursors FROM projections WHERE name = 'rollups')"
        # A day of commits is compacted `compaction.CLOSED_AFTER` its end. The hour: clocks are set.
        closed = read_from_ms // raw.DAY_MS < (now_ms - HOUR_MS) // raw.DAY_MS
        self._behind(start_ms, end_ms, read_from_ms, cursors, now_ms + HOUR_MS, closed)

    def archived(self, rows: Sequence[ArchivedRow]) -> None:
        """What an archive has of the range."""
        columns = zip(
            *((device_key(row.device_id), *row[1:]) for row in rows),
            strict=True,
        )
        named = ", ".join(
            f"{self._add(list(column))}::{kind}[]"
            for kind, column in zip(_ARCHIVED.values(), columns, strict=True)
        )
        self._parts.append(f"""
            SELECT r.device, r.bucket, r.first_at AS time, 0::bigint AS log_offset, r.first_at, r.last_at,
                   r.name, r.kind, r.n, r.total, r.least, r.most, r.first, r.last, r.first_text, r.last_text,
                   NULL::bytea AS sketch, {ARCHIVE} AS source
            FROM unnest({named}) AS r ({", ".join(_ARCHIVED)}) WHERE {self._which}
        """)

    def behind(self, start_ms: int, end_ms: int, seam: Seam) -> None:
        """Readings with times in the range that the archive does not have yet."""
        self._behind(start_ms, end_ms, seam.read_from_ms, f"({self._add(seam.cursors)}::bigint[])")

    def rollups(self, table: str, source: int, start_ms: int, end_ms: int, whole: bool = False) -> None:
        """Rollups of the buckets in the range; `whole`: a device has one row at most in an interval."""
        start, end = self._add(start_ms), self._add(end_ms)
        (self._whole if whole else self._parts).append(f"""
            SELECT r.device, {self._bucket("r.bucket")} AS bucket, r.bucket AS time, 0::bigint AS log_offset,
                   r.first_at, r.last_at, s.name, s.kind::text AS kind, r.n, r.total, r.least, r.most,
                   r.first, r.last, r.first_text, r.last_text, r.sketch, {source} AS source
            FROM {table} r JOIN rollup_metrics s ON s.id = r.metric
            WHERE {self._which} AND {self._names}
                AND r.bucket >= {start}::timestamptz AND r.bucket < {end}::timestamptz
        """)

    def __str__(self) -> str:
        return " UNION ALL ".join((*self._whole, *self._parts))

    @property
    def whole(self) -> str:
        """Those of which a device has one row at most in an interval; empty: none."""
        return " UNION ALL ".join(self._whole)

    @property
    def others(self) -> str:
        """All but the `whole` ones."""
        return " UNION ALL ".join(self._parts)

    def _add(self, argument: Any) -> str:
        self.arguments.append(argument)
        return f"${self._count + len(self.arguments)}"

    def _bucket(self, time: str) -> str:
        return self._buckets.format(time=time)

    def _behind(
        self,
        start_ms: int,
        end_ms: int,
        read_from_ms: int,
        cursors: str,
        until_ms: int | None = None,
        in_chunks: bool = True,
    ) -> None:
        start, end, floor = (f"{self._add(ms)}::timestamptz" for ms in (start_ms, end_ms, read_from_ms))
        where, rows, chunks = raw.between(start, end, raw.Committed.of_ms(read_from_ms, until_ms))
        self._raw(
            f"{where} AND r.log_offset > {cursors}[r.shard + 1]",
            f"{rows} AND r.committed_at >= {floor}",
            f"{chunks} AND c.last_offset > {cursors}[c.shard + 1]" if in_chunks else None,
        )

    def _raw(self, where: str, rows: str, chunks: str | None) -> None:
        found = raw.readings(
            f"""r.device, {self._bucket("r.time")} AS bucket, r.time, r.log_offset, s.name, s.kind,
                CASE WHEN s.kind <> 't' THEN r.numbers[s.slot] END AS number,
                CASE WHEN s.kind = 't' THEN r.texts[s.slot] END AS text""",
            f"{self._which} AND {self._names} AND {where}",
            rows,
            chunks,
            joined="JOIN metric_slots s ON s.metric_set = r.metric_set",
        )
        self._parts.append(f"""
            SELECT device, bucket, time, log_offset, time AS first_at, time AS last_at, name, kind, 1 AS n,
                   number AS total, number AS least, number AS most, number AS first, number AS last,
                   text AS first_text, text AS last_text, NULL::bytea AS sketch, 1 AS source
            FROM ({found}) AS v WHERE number IS NOT NULL OR text IS NOT NULL
        """)


_NUMBERS: Final = {
    "mean": "sum(total) / sum(n)",
    "min": "min(least)",
    "max": "max(most)",
    "sum": "sum(total)",
    "count": "sum(n)::float8",
}
SUMMED: Final = frozenset(_NUMBERS)
_BEGINS: Final = {
    True: "coalesce(bucket, $4::timestamptz)",
    False: "coalesce($4::timestamptz, (SELECT min(first_at) FROM v))",
}
_ENDS: Final = {"first": ("ASC", "first_at", "first"), "last": ("DESC", "last_at", "last")}


def device_aggregate(aggregation: str, by_interval: bool, order: str, few: bool, parts: Parts) -> str:
    """$1 device, $2 metrics or null, $3 limit of buckets, $4 start or null, $5 interval in seconds if any,
    $6 its time zone if any.

    Gives a row for each metric, in the order of their names: name, kind, source, and as arrays its buckets
    (epoch ms, in no order), its numbers and its texts. `parts` has begun after these. `few`: there are no
    more buckets in the range than `$3`.
    """
    if aggregation in _ENDS:
        way, at, end = _ENDS[aggregation]
        grouped = f"""
            SELECT DISTINCT ON (bucket, name) bucket, name, kind, {end} AS number, {end}_text AS text, source
            FROM v ORDER BY bucket, name, {at} {way}, log_offset {way}
        """
        texts = "array_agg(text)"
    else:
        grouped = f"""
            SELECT bucket, name, kind, {_NUMBERS[aggregation]} AS number, bit_or(source) AS source
            FROM v WHERE {_counted(aggregation)} GROUP BY bucket, name, kind
        """
        texts = "NULL::text[]"
    # Ranking sorts. `$3` is used without it, too, so that it has a type.
    rank = "1" if few else f"dense_rank() OVER (ORDER BY bucket {order})"
    return f"""
        WITH v AS ({parts}),
             grouped AS ({grouped}),
             ranked AS (SELECT *, {rank} AS rank FROM grouped)
        SELECT name, kind, bit_or(source) AS source,
               array_agg((date_part('epoch', {_BEGINS[by_interval]}) * 1000)::bigint) AS buckets,
               array_agg(number) AS numbers, {texts} AS texts
        FROM ranked WHERE rank <= $3::bigint GROUP BY name, kind ORDER BY name, kind
    """


def told_beside(figures: str) -> str:
    """The rows of `figures`, each behind a row of `PROJECTED`; if there are none, one that has that alone."""
    return f"SELECT * FROM ({PROJECTED}) AS p LEFT JOIN ({figures}) AS f ON true"


def type_aggregate(aggregation: str, by_interval: bool, parts: Parts) -> str:
    """$1 device type, $2 metric, $3 limit of buckets, $4 start or null, $5 interval in seconds if any,
    $6 its time zone if any.

    Aggregates by device first and the results then, which counts the devices and runs in parallel; but at
    once what has one row of a device at most in an interval, which costs a quarter.
    Gives bucket, kind, number, text, devices, source, and to merge by: n, or the time `at` of an end. `parts`
    has begun after these.
    """
    if aggregation in _ENDS:
        way, at, end = _ENDS[aggregation]
        grouped = f"""
            by_device AS (SELECT DISTINCT ON (bucket, device) * FROM v
                          ORDER BY bucket, device, {at} {way}, log_offset {way}),
            grouped AS (SELECT DISTINCT ON (bucket) bucket, kind, {end} AS number, {end}_text AS text,
                               count(*) OVER (PARTITION BY bucket) AS devices, source,
                               n, {at} AS at
                        FROM by_device ORDER BY bucket, {at} {way}, device)
        """
    elif parts.whole and parts.others:
        return _type_at_once(aggregation, by_interval, parts)
    else:
        grouped = f"""
            by_device AS (SELECT bucket, device, sum(n) AS n, sum(total) AS total, min(least) AS least,
                                 max(most) AS most, bit_or(source) AS source
                          FROM v WHERE {_counted(aggregation)} GROUP BY bucket, device),
            grouped AS (SELECT bucket, 'n' AS kind, {_NUMBERS[aggregation]} AS number, NULL AS text,
                               count(*) AS devices, bit_or(source) AS source, sum(n)::bigint AS n,
                               NULL::timestamptz AS at
                        FROM by_device GROUP BY bucket)
        """
    start = _BEGINS[by_interval]
    return f"""
        WITH v AS ({parts}), {grouped}
        SELECT {start} AS bucket, kind, number, text, devices, source, n, at FROM grouped
        ORDER BY bucket LIMIT $3
    """


def _type_at_once(aggregation: str, by_interval: bool, parts: Parts) -> str:
    counted = _counted(aggregation)
    sums = "sum(n::float8) AS n, sum(total) AS total, min(least) AS least, max(most) AS most"
    return f"""
        WITH whole AS NOT MATERIALIZED ({parts.whole}), other AS ({parts.others}),
             at_once AS (SELECT time AS bucket, {sums}, bit_or(source) AS source, count(*) AS devices
                         FROM whole WHERE {counted} GROUP BY time),
             by_device AS (SELECT bucket, device, {sums}, bit_or(source) AS source
                           FROM other WHERE {counted} GROUP BY bucket, device),
             beside AS (SELECT bucket, n, total, least, most, source, (NOT EXISTS (
                            SELECT FROM whole w WHERE w.device = d.device AND w.time = d.bucket AND {counted}
                        ))::int::bigint AS devices FROM by_device d),
             grouped AS (SELECT bucket, 'n' AS kind, {_NUMBERS[aggregation]} AS number, NULL AS text,
                                sum(devices)::bigint AS devices, bit_or(source) AS source,
                                sum(n)::bigint AS n, NULL::timestamptz AS at
                         FROM (SELECT bucket, n, total, least, most, source, devices FROM at_once
                               UNION ALL SELECT * FROM beside) AS of_both GROUP BY bucket)
        SELECT {_BEGINS[by_interval]} AS bucket, kind, number, text, devices, source, n, at FROM grouped
        ORDER BY bucket LIMIT $3
    """


def sketches(by_interval: bool, order: str, parts: Parts) -> str:
    """Parameters as of `device_aggregate`; by device, so that devices can be counted.

    Gives bucket, name, device, sketch, bin, n, source: rows of sketches, and counts of readings by bin. Of
    the first `$3` buckets only.
    """
    start = _BEGINS[by_interval]
    return f"""
        WITH v AS (SELECT * FROM ({parts}) AS parts WHERE kind <> 't'),
             binned AS (SELECT bucket, name, device, sketch, NULL::int AS bin, n, source FROM v
                            WHERE sketch IS NOT NULL
                        UNION ALL
                        SELECT bucket, name, device, NULL, {_BIN}, count(*)::int, 1
                            FROM (SELECT *, total AS number FROM v WHERE sketch IS NULL) AS raw
                            GROUP BY 1, 2, 3, 5),
             ranked AS (SELECT *, dense_rank() OVER (ORDER BY bucket {order}) AS rank FROM binned)
        SELECT {start} AS bucket, name, device, sketch, bin, n, source FROM ranked
        WHERE rank <= $3 ORDER BY rank, name
    """


def _counted(aggregation: str) -> str:
    return "true" if aggregation == "count" else "total IS NOT NULL"
