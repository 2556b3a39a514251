"""The statements of `history`. Only what stands here is ever put into them; all else is a parameter."""

from functools import cache
from typing import Final

AGGREGATIONS: Final = ("mean", "min", "max", "sum", "count", "first", "last")

# $2 and $3 are the range. A reading is committed at most a day before its event time, so partitions that were
# written earlier than that cannot hold it.
_RANGE: Final = """
    r.time >= coalesce($2::timestamptz, '-infinity') AND r.time < coalesce($3::timestamptz, 'infinity')
    AND r.committed_at >= coalesce($2::timestamptz, '-infinity') - interval '25 hours'
"""

_HAS_ONE: Final = """
    AND EXISTS (SELECT FROM metric_slots s WHERE s.metric_set = r.metric_set AND s.name = ANY($7::text[])
                AND CASE s.kind WHEN 't' THEN r.texts[s.slot] IS NOT NULL
                                ELSE r.numbers[s.slot] IS NOT NULL END)
"""


def _readings(order: str, by_metric: bool) -> str:
    sign = ">" if order == "asc" else "<"
    return f"""
        SELECT r.time, r.log_offset, r.flags, r.metric_set, r.numbers, r.texts FROM readings r
        WHERE r.device = $1 AND {_RANGE}
            AND ($4::timestamptz IS NULL OR (r.time, r.log_offset) {sign} ($4, $5::bigint))
            {_HAS_ONE if by_metric else ""}
        ORDER BY r.time {order}, r.log_offset {order} LIMIT $6
    """


READINGS: Final = {
    (order, by_metric): _readings(order, by_metric)
    for order in ("asc", "desc")
    for by_metric in (False, True)
}
"""By order, and whether a reading must have one of the metrics $7; $1 device, $4, $5 cursor, $6 limit."""

_NUMBERS: Final = {
    "mean": "avg(number)",
    "min": "min(number)",
    "max": "max(number)",
    "sum": "sum(number)",
    "count": "(count(number) + count(text))::float8",
}


def _values(which: str, by_interval: bool) -> str:
    """One row a value: its device, interval, time, offset, name and kind, and it as number or text."""
    bucket = "date_bin(make_interval(secs => $5), r.time, 'epoch')" if by_interval else "NULL::timestamptz"
    return f"""
        SELECT r.device, {bucket} AS bucket, r.time, r.log_offset, s.name, s.kind,
               CASE WHEN s.kind <> 't' THEN r.numbers[s.slot] END AS number,
               CASE WHEN s.kind = 't' THEN r.texts[s.slot] END AS text
        FROM readings r JOIN metric_slots s ON s.metric_set = r.metric_set
        WHERE {which} AND {_RANGE}
    """


@cache
def device_aggregate(aggregation: str, by_interval: bool, order: str) -> str:
    """$1 device, $4 metrics or null, then the interval in seconds if any, then the limit of buckets.

    Gives bucket, name, kind, number, text.
    """
    values = _values("r.device = $1 AND ($4::text[] IS NULL OR s.name = ANY($4))", by_interval)
    if aggregation in ("first", "last"):
        way = "ASC" if aggregation == "first" else "DESC"
        grouped = f"""
            SELECT DISTINCT ON (bucket, name) bucket, name, kind, number, text FROM v
            WHERE number IS NOT NULL OR text IS NOT NULL
            ORDER BY bucket, name, time {way}, log_offset {way}
        """
    else:
        grouped = f"""
            SELECT bucket, name, kind, {_NUMBERS[aggregation]} AS number,
                   NULL AS text
            FROM v WHERE {_counted(aggregation)} GROUP BY bucket, name, kind
        """
    start = "bucket" if by_interval else "coalesce($2::timestamptz, (SELECT min(time) FROM v))"
    return f"""
        WITH v AS ({values}),
             grouped AS ({grouped}),
             ranked AS (SELECT *, dense_rank() OVER (ORDER BY bucket {order}) AS rank FROM grouped)
        SELECT {start} AS bucket, name, kind, number, text FROM ranked
        WHERE rank <= ${6 if by_interval else 5} ORDER BY rank, name
    """


@cache
def type_aggregate(aggregation: str, by_interval: bool) -> str:
    """$1 device type, $4 metric, then the interval in seconds if any, then the limit of buckets.

    Aggregates by device first and the results then, which counts the devices and runs in parallel.
    Gives bucket, kind, number, text, devices.
    """
    which = "r.device IN (SELECT device FROM devices WHERE device_type = $1) AND s.name = $4"
    values = _values(which, by_interval)
    if aggregation in ("first", "last"):
        way = "ASC" if aggregation == "first" else "DESC"
        grouped = f"""
            by_device AS (SELECT DISTINCT ON (bucket, device) * FROM v
                          WHERE number IS NOT NULL OR text IS NOT NULL
                          ORDER BY bucket, device, time {way}, log_offset {way}),
            grouped AS (SELECT DISTINCT ON (bucket) bucket, kind, number, text,
                               count(*) OVER (PARTITION BY bucket) AS devices
                        FROM by_device ORDER BY bucket, time {way}, device)
        """
    else:
        merged = {
            "mean": "sum(total) / sum(n)",
            "min": "min(least_)",
            "max": "max(most)",
            "sum": "sum(total)",
            "count": "sum(n)::float8",
        }[aggregation]
        grouped = f"""
            by_device AS (SELECT bucket, device, count(number) + count(text) AS n, sum(number) AS total,
                                 min(number) AS least_, max(number) AS most
                          FROM v WHERE {_counted(aggregation)} GROUP BY bucket, device),
            grouped AS (SELECT bucket, 'n' AS kind, {merged} AS number, NULL AS text, count(*) AS devices
                        FROM by_device GROUP BY bucket)
        """
    start = "bucket" if by_interval else "coalesce($2::timestamptz, (SELECT min(time) FROM v))"
    return f"""
        WITH v AS ({values}), {grouped}
        SELECT {start} AS bucket, kind, number, text, devices FROM grouped
        ORDER BY bucket LIMIT ${6 if by_interval else 5}
    """


def _counted(aggregation: str) -> str:
    return "number IS NOT NULL OR text IS NOT NULL" if aggregation == "count" else "number IS NOT NULL"
