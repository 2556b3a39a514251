"""The read side of registrations: implements `sensorium.actors.ports.Registry`, and pages for people."""

from collections.abc import Sequence
from typing import Final

from sensorium.actors.placement import SHARDS
from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration
from sensorium.storage._read import DEVICE_COLUMNS, registration_of
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor

# A key's low bits are its remainder by a power of two, for negative keys too.
_IN_SHARDS: Final = f"""(
    ((device & {SHARDS - 1}) = ANY(?::bigint[])
        AND device_id <> ALL(ARRAY(SELECT a.device_id FROM assignments a WHERE a.device_id IS NOT NULL)))
    OR device_id = ANY(ARRAY(SELECT a.device_id FROM assignments a
        WHERE a.device_id IS NOT NULL AND a.shard = ANY(?::bigint[])))
)"""


class PgRegistry:
    """Registrations by id. Every call raises `LogUnavailable` when the database does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def select(self, which: Filter, shards: Sequence[int] | None = None) -> list[str]:
        """As the port says."""
        where = _where(which)
        asked = None if shards is None else list(shards)
        where.add(_IN_SHARDS, asked, asked)
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT device_id FROM devices {where} ORDER BY device_id", *where.arguments
            )
        return [row["device_id"] for row in rows]

    async def page(self, which: Filter, after: str | None, limit: int) -> Page[Registration]:
        """Registrations in order of id, from behind the id `after`.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = _where(which)
        where.add("device_id > ?", None if after is None else cursor(after, str))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {DEVICE_COLUMNS} FROM devices {where} ORDER BY device_id LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [registration_of(row) for row in rows[:limit]]
        return Page(items, items[-1].device_id if len(rows) > limit else None)

    async def get(self, device_id: str) -> Registration | None:
        """One registration, whatever its status; None when the id was never registered."""
        if "\0" in device_id:
            return None
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {DEVICE_COLUMNS} FROM devices WHERE device_id = $1", device_id
            )
        return None if row is None else registration_of(row)

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many devices there are of each type and status."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT device_type, status, count(*) AS n FROM devices GROUP BY 1, 2 ORDER BY 1, 2"
            )
        return {(row["device_type"], row["status"]): row["n"] for row in rows}


def _where(which: Filter) -> Where:
    where = Where()
    where.add("device_type = ?", which.device_type)
    where.add("status = ?", which.status)
    where.add("metadata @> ?::jsonb", dict(which.metadata) or None)
    where.add("device_id = ANY(?::text[])", None if which.device_ids is None else list(which.device_ids))
    return where
