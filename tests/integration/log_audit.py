"""What the log itself says, in SQL: what was stored, how often, in which order, and that no offset lacks."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from sensorium.actors.placement import device_key
from sensorium.storage.database import connect

_STORED = """
SELECT r.device, r.numbers[s.slot]::bigint AS sequence
FROM readings r JOIN metric_slots s ON s.metric_set = r.metric_set AND s.name = $2
WHERE r.device = ANY($1::bigint[]) ORDER BY r.device, r.committed_at, r.log_offset
"""

_FAULTY_SHARDS = """
WITH log AS (SELECT shard, log_offset FROM readings UNION ALL SELECT shard, log_offset FROM events)
SELECT shard, count(*) AS entries, count(DISTINCT log_offset) AS offsets, min(log_offset) AS first,
       max(log_offset) AS last
FROM log GROUP BY shard
HAVING count(*) <> count(DISTINCT log_offset) OR min(log_offset) <> 1 OR max(log_offset) <> count(*)
ORDER BY shard
"""


class LogAudit(NamedTuple):
    """Asks one platform's database."""

    connection: Any

    async def stored(self, device_ids: list[str], metric: str) -> dict[str, list[int]]:
        """The metric's values of each device as they were committed, in the order of their offsets."""
        names = {device_key(device_id): device_id for device_id in device_ids}
        found: defaultdict[str, list[int]] = defaultdict(list)
        for device, sequence in await self.connection.fetch(_STORED, list(names), metric):
            found[names[device]].append(sequence)
        return dict(found)

    async def count(self, device_ids: list[str]) -> int:
        """How many readings are stored of these devices."""
        keys = [device_key(device_id) for device_id in device_ids]
        return int(
            await self.connection.fetchval(
                "SELECT count(*) FROM readings WHERE device = ANY($1::bigint[])", keys
            )
        )

    async def counts(self) -> dict[str, int]:
        """How many rows each table has that a turn or a caller can write to."""
        tables = ("readings", "events", "devices", "alarms", "timers", "rules", "dead_letters", "metric_sets")
        return {table: await self.connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables}

    async def faulty_shards(self) -> list[tuple[Any, ...]]:
        """Shards whose offsets have a gap or a double: (shard, entries, distinct offsets, first, last)."""
        return [tuple(row) for row in await self.connection.fetch(_FAULTY_SHARDS)]


@asynccontextmanager
async def audit(dsn: str) -> AsyncIterator[LogAudit]:
    """A connection for looking."""
    connection = await connect(dsn, "sensorium test audit")
    try:
        yield LogAudit(connection)
    finally:
        await connection.close()
