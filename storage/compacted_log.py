"""The entries of a compacted day, in the order of the log a shard: what `projection_reader` has of such days.

A chunk has readings of hours. So a day is read shard by shard, each chunk once, instead of by commit time.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sensorium.storage._readings_sql import readings
from sensorium.storage.database import GRACE_S, Connection
from sensorium.storage.log_entries import EVENT_ENTRY, READING_ENTRY
from sensorium.storage.partitions import CHUNKS, midnight
from sensorium.storage.projection import LogEntry

GROUP_ENTRIES: Final = 1_000_000
"""Of some shards, sorted at once by the server; one shard may have more."""
TIMEOUT_S: Final = 300.0
CLOCK_STEP: Final = "1 minute"
"""How far the server's clock may be set back: so long, entries of the next day may be before this one's."""

_COUNTS: Final = """
SELECT shard, sum(entries)::bigint AS entries FROM (
    SELECT shard, sum(count) AS entries FROM reading_chunks
        WHERE committed_at >= $1 AND committed_at < $2 AND last_offset > ($3::bigint[])[shard + 1] GROUP BY 1
    UNION ALL
    SELECT shard, count(*) FROM events
        WHERE committed_at >= $1 AND committed_at < $2 AND log_offset > ($3::bigint[])[shard + 1] GROUP BY 1
) AS counted GROUP BY shard ORDER BY shard
"""
_CURSOR: Final = "compacted_log"


class CompactedDay:
    """Reads one day. Its cursor lives in the session: `page` is given the same connection each time."""

    def __init__(self, day: date, page_entries: int) -> None:
        self._begin = midnight(day)
        self._page_entries = page_entries
        self._groups: list[list[int]] | None = None
        self._open = False
        self.end_ms = int((self._begin + timedelta(days=1)).timestamp() * 1000)
        self.at_end = False
        """Whether the last page was the day's last."""

    async def page(self, connection: Connection, cursors: Sequence[int]) -> list[LogEntry]:
        """The next entries behind the cursors, which the caller moves on; perhaps none."""
        if self._groups is None:
            self._groups = await self._grouped(connection, cursors)
        if not self._open and self._groups:
            await self._declare(connection, self._groups.pop(0), cursors)
            self._open = True
        rows = []
        if self._open:
            rows = await connection.fetch(f"FETCH {self._page_entries:d} FROM {_CURSOR}")
            if len(rows) < self._page_entries:
                await connection.execute(f"CLOSE {_CURSOR}")
                self._open = False
        self.at_end = not self._open and not self._groups
        return [LogEntry(*row) for row in rows]

    async def _grouped(self, connection: Connection, cursors: Sequence[int]) -> list[list[int]]:
        # One that this session left open when it was cut off in between.
        await connection.execute("CLOSE ALL")
        begin_ms = int(self._begin.timestamp() * 1000)
        groups: list[list[int]] = []
        left = 0
        for shard, entries in await connection.fetch(
            _COUNTS, begin_ms, self.end_ms, list(cursors), timeout=TIMEOUT_S + GRACE_S
        ):
            if entries > left:
                groups.append([])
                left = GROUP_ENTRIES
            groups[-1].append(shard)
            left -= entries
        return groups

    async def _declare(self, connection: Connection, shards: Sequence[int], cursors: Sequence[int]) -> None:
        of_shards = f"ANY('{{{','.join(map(str, shards))}}}'::smallint[])"
        behind = f"('{{{','.join(map(str, cursors))}}}'::bigint[])"
        begin, end = (
            f"timestamptz '{at:%Y-%m-%d} 00:00+00'" for at in (self._begin, self._begin + timedelta(days=1))
        )
        until = f"{end} + interval '{CLOCK_STEP}'"
        where = (
            f"r.shard = {of_shards} AND r.log_offset > {behind}[r.shard + 1]"
            f" AND r.committed_at >= {begin} AND r.committed_at < {until}"
        )
        chunks = (
            f"c.shard = {of_shards} AND c.last_offset > {behind}[c.shard + 1]"
            f" AND c.committed_at >= {begin} AND c.committed_at < {until}"
        )
        await connection.execute(
            f"""
            DECLARE {_CURSOR} NO SCROLL CURSOR WITH HOLD FOR
            SELECT shard, log_offset, device, time, key, flags, metric_set, numbers, texts, kind, body,
                   committed_at
            FROM (SELECT *, max(log_offset) FILTER (WHERE committed_at < {end})
                            OVER (PARTITION BY shard) AS top
                  FROM ({readings(READING_ENTRY, where, chunks=chunks)}
                        UNION ALL SELECT {EVENT_ENTRY} FROM events r WHERE {where}) AS entries) AS ordered
            WHERE log_offset <= top ORDER BY shard, log_offset
            """,
            timeout=TIMEOUT_S + GRACE_S,
        )


def day_of(at_ms: int) -> tuple[date, int]:
    """The day of a moment (UTC), and when it ends."""
    day = datetime.fromtimestamp(at_ms / 1000, UTC).date()
    return day, int((midnight(day) + timedelta(days=1)).timestamp() * 1000)


async def is_compacted(connection: Connection, day: date) -> bool:
    """Whether the day's readings are in chunks."""
    found: bool = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{CHUNKS}_{day:%Y%m%d}")
    return found
