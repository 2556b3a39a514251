"""What "the readings" are in SQL: rows of days that are not compacted yet, and chunks of those that are.

A reading is in one of both at any moment. Whoever reads gives conditions on `r`, a reading, and says which
chunks, `c`, may hold such readings; nothing else in the code knows how a chunk is made.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from sensorium.actors.messages import Quality, ReadingFlag

READINGS_A_CHUNK: Final = 1_000
ITEMS_A_CHUNK: Final = 20_000
"""Numbers in a chunk, about; a text counts for `TEXT_ITEMS`. Bounds what a reader takes in at once."""
TEXT_ITEMS: Final = 20
LAST_DAY: Final = 2_932_896
DAY_MS: Final = 86_400_000
AHEAD_MS: Final = 25 * 3_600_000
"""A reading is committed at most a day before its event time; an hour for clocks."""
ALWAYS: Final = "'-infinity'::timestamptz"
NEVER: Final = "'infinity'::timestamptz"

# What a chunk says of its reading `u.n`, by the column of `readings`.
_OF_CHUNK: Final = {
    "device": "c.device",
    "shard": "c.shard",
    "metric_set": "c.metric_set",
    "time": "coalesce(u.time, c.first_time)",
    "log_offset": "coalesce(u.log_offset, c.last_offset)",
    "committed_at": "coalesce(u.committed_at, c.committed_at)",
    "key": "u.key",
    "flags": "coalesce(u.flags, c.flags)",
}
_ARRAYS: Final = {
    "time": "times",
    "log_offset": "offsets",
    "committed_at": "commits",
    "key": "keys",
    "flags": "all_flags",
}
_VALUES: Final = ("numbers", "texts")
_COLUMN: Final = re.compile(r"\br\.(\w+)(?:\[([^]]+)\])?")


class Committed(NamedTuple):
    """When what is asked for was committed: conditions on `r` of rows and on `c` of chunks.

    Of literals, so that planning leaves the partitions of other days out: by what a statement works out when
    it runs, intervals taken from parameters included, it cannot.
    """

    rows: str = "true"
    chunks: str = "true"

    @classmethod
    def of_days(cls, rows_from: int | None, chunks: Sequence[tuple[int | None, int | None]]) -> Self:
        """Of rows from a day on, and of chunks of ranges of days (since 1970), ends not included."""
        ranges = " OR ".join(_days("c", *days) for days in chunks)
        return cls(_days("r", rows_from, None), f"({ranges})")

    @classmethod
    def of_ms(cls, start_ms: int, end_ms: int | None = None) -> Self:
        """Between two times, both included, and of the rest of their days."""
        days = start_ms // DAY_MS, None if end_ms is None else end_ms // DAY_MS + 1
        # Of a chunk's commits the first is looked at, which was on the same day.
        return cls(_days("r", *days), _days("c", *days))


WHENEVER: Final = Committed()


def _days(of: str, begin: int | None, end: int | None) -> str:
    ends = [] if begin is None else [f"{of}.committed_at >= {_midnight(begin)}"]
    ends += [] if end is None else [f"{of}.committed_at < {_midnight(end)}"]
    return " AND ".join(ends) or "true"


def _midnight(day: int) -> str:
    # Nothing was committed before 1970, and nothing will be after 9999.
    at = datetime.fromtimestamp(min(max(day, 0), LAST_DAY) * 86_400, UTC)
    return f"timestamptz '{at:%Y-%m-%d} 00:00+00'"


def _of_chunk(column: re.Match[str]) -> str:
    name, slot = column.groups()
    if name not in _VALUES:
        return _OF_CHUNK[name]
    before = f"(u.n - 1) * {name}.width"
    if slot is not None:
        return f"{name}.items[{before} + {slot}]"
    return f"({name}.items[{before} + 1 : u.n * {name}.width])"


def _unpacked(used: set[str], source: str) -> str:
    """Chunks `c`, the numbers `u.n` of their readings, and the arrays of the columns used."""
    arrays = {column: array for column, array in _ARRAYS.items() if column in used}
    opened = [name for name in _VALUES if name in used]
    # Made anew, an array is decompressed once a chunk instead of once a reading; but only if that is done
    # before its readings are counted up, whose number therefore comes from there.
    values = "".join(
        f" CROSS JOIN LATERAL (SELECT v.items, nullif(cardinality(v.items), 0) / c.count AS width, c.count"
        f" FROM (SELECT array_cat(c.{name}, '{{}}') AS items OFFSET 0) v OFFSET 0) {name}"
        for name in opened
    )
    count = f"least({', '.join(f'{name}.count' for name in opened)})" if opened else "c.count"
    functions = [f"generate_series(1, {count})", *(f"unnest(c.{array})" for array in arrays.values())]
    return (
        f"{source} c{values} CROSS JOIN LATERAL"
        f" ROWS FROM ({', '.join(functions)}) AS u (n{''.join(f', {column}' for column in arrays)})"
    )


def chunked(
    select: str,
    where: str,
    chunks: str,
    end: str = "",
    beside: str = "",
    joined: str = "",
    source: str = "reading_chunks",
) -> str:
    """The readings in chunks alone; see `readings`. Only what is named in `select` has a name in it."""
    used = {match[1] for match in _COLUMN.finditer(f"{select} {where} {end}")}
    return _COLUMN.sub(
        _of_chunk,
        f"SELECT {select} FROM {beside}{_unpacked(used, source)} {joined} WHERE {chunks} AND {where} {end}",
    )


def readings(
    select: str,
    where: str,
    rows: str = "true",
    chunks: str | None = "true",
    end: str = "",
    beside: str = "",
    joined: str = "",
) -> str:
    """A SELECT of what `select` says of the readings `r` for which `where` holds.

    Args:
        rows: what is also true of rows with such readings; it spares reading partitions.
        chunks: what is true of chunks `c` with such readings; it spares opening them. None: there are none,
            which spares half of the planning.
        end: ORDER BY and LIMIT, for rows and chunks each.
        beside: what stands before the chunks in FROM, with a comma.
        joined: what stands behind the readings in FROM.
    """
    of_rows = f"SELECT {select} FROM readings r {joined} WHERE {rows} AND {where} {end}"
    if chunks is None:
        return of_rows
    return f"({of_rows}) UNION ALL ({chunked(select, where, chunks, end, beside, joined)})"


def between(start: str, end: str, committed: Committed | None = None) -> tuple[str, str, str]:
    """`where`, `rows` and `chunks` of readings with times in the range; two expressions in SQL.

    A reading is committed at most a day before its event time, so partitions that were written earlier than
    that cannot hold it; a chunk's least commit is on the day of all its others. `committed` says it better.
    """
    if committed is None:
        committed = Committed(
            f"r.committed_at >= {start} - interval '25 hours'",
            f"c.committed_at >= {start} - interval '49 hours'",
        )
    return (
        f"r.time >= {start} AND r.time < {end}",
        committed.rows,
        f"c.last_time >= {start} AND c.first_time < {end} AND {committed.chunks}",
    )


def holds(device: str, time: str, key: str, committed: Committed) -> str:
    """Whether such a reading is stored. Of chunks only the keys are looked through, unless one is found."""
    where, rows, chunks = between(time, f"({time} + interval '1 us')")
    rows, chunks = f"{rows} AND {committed.rows}", f"{chunks} AND {committed.chunks}"
    return f"""
        (EXISTS (SELECT FROM readings r WHERE r.device = {device} AND {where} AND r.key = {key} AND {rows})
         OR EXISTS (SELECT FROM reading_chunks c
                    CROSS JOIN LATERAL unnest(array_positions(c.keys, {key})) AS u (n)
                    WHERE c.device = {device} AND {chunks} AND coalesce(c.times[u.n], c.first_time) = {time}))
    """


def reach(order: str, want: str, chunks: str, inside: str) -> str:
    """A time within which lie the first `want` readings in that order ("asc" or "desc"), as a subquery.

    Null: there are fewer. Of the `chunks` that come into question it counts those that are `inside`: all
    readings of which count.
    """
    time, way = ("max(c.last_time)", "") if order == "asc" else ("min(c.first_time)", " DESC")
    return f"""
        (SELECT reach FROM (
            SELECT {time} OVER w AS reach, sum(CASE WHEN {inside} THEN c.count ELSE 0 END) OVER w AS total
            FROM reading_chunks c WHERE {chunks}
            WINDOW w AS (ORDER BY c.first_time{way} ROWS UNBOUNDED PRECEDING)) AS counted
         WHERE total >= {want} LIMIT 1)
    """


def of_quality(quality: Quality | None) -> tuple[str, str, str]:
    """Conditions after others: on readings, on chunks that may have some, and on such that have no others."""
    if quality is None:
        return "", "", ""
    good, suspect = (f"{{0}}.flags & {int(ReadingFlag.SUSPECT)} {sign} 0" for sign in ("=", "<>"))
    this, other = (good, suspect) if quality is Quality.GOOD else (suspect, good)
    return (
        f" AND {this.format('r')}",
        f" AND NOT (c.all_flags IS NULL AND {other.format('c')})",
        f" AND c.all_flags IS NULL AND {this.format('c')}",
    )


def newest(
    select: str,
    device: str,
    limit: str,
    start: str = ALWAYS,
    end: str = NEVER,
    quality: Quality | None = None,
    committed: Committed | None = None,
) -> str:
    """What `select`, `r.time` included, says of a device's newest readings in a range, newest first."""
    where, rows, chunks = between(start, end, committed)
    of_this, with_these, of_these = of_quality(quality)
    chunks += with_these
    of_device = f"c.device = {device} AND {chunks}"
    inside = f"c.first_time >= {start} AND c.last_time < {end}{of_these}"
    both = readings(
        select,
        f"r.device = {device} AND {where}{of_this}",
        rows,
        f"c.device = {device} AND c.last_time >= coalesce(near.reach, '-infinity') AND {chunks}",
        f"ORDER BY r.time DESC LIMIT {limit}",
        f"(SELECT {reach('desc', limit, of_device, inside)} AS reach OFFSET 0) near, ",
    )
    return f"SELECT * FROM ({both}) AS newest ORDER BY time DESC LIMIT {limit}"


def pack(into: str, source: str) -> str:
    """Writes what `source`, a SELECT of all columns and of `class`, gives into a table of chunks."""
    kept = "ORDER BY place"
    values = ", ".join(
        f"CASE WHEN {name}_each > 0 THEN ARRAY(SELECT unnest(array_agg({name} {kept})"
        f" FILTER (WHERE {name}_each > 0))) END"
        for name in _VALUES
    )
    return f"""
        INSERT INTO {into} (device, first_time, last_time, committed_at, last_offset, metric_set, shard,
            class, count, flags, times, offsets, commits, keys, all_flags, numbers, texts)
        SELECT device, min(time), max(time), min(committed_at), max(log_offset), metric_set, shard, class,
            count(*), min(flags),
            CASE WHEN min(time) < max(time) THEN array_agg(time {kept}) END,
            CASE WHEN count(*) > 1 THEN array_agg(log_offset {kept}) END,
            CASE WHEN min(committed_at) < max(committed_at) THEN array_agg(committed_at {kept}) END,
            array_agg(key {kept}),
            CASE WHEN min(flags) < max(flags) THEN array_agg(flags {kept}) END,
            {values}
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY shard, device, metric_set, numbers_each, texts_each, class
                ORDER BY time, log_offset) - 1 AS place
            FROM (SELECT s.*, coalesce(cardinality(s.numbers), 0) AS numbers_each,
                         coalesce(cardinality(s.texts), 0) AS texts_each FROM ({source}) s) AS counted
        ) AS placed
        GROUP BY shard, device, metric_set, numbers_each, texts_each, class,
            place / greatest(1, least({READINGS_A_CHUNK},
                                      {ITEMS_A_CHUNK} / (1 + numbers_each + {TEXT_ITEMS} * texts_each)))
        ORDER BY shard, device, min(time)
    """
