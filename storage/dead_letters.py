"""The read side of dead letters, and their removal when they are old."""

from typing import Any, Final, NamedTuple

from sensorium.storage.audit_trail import record
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor

_COLUMNS: Final = "id, received_at, device_id, source, address, reason, detail, payload, size_bytes, content"


class StoredDeadLetter(NamedTuple):
    """A `DeadLetter` with the number it was stored under. Later ones have higher numbers, mostly."""

    id: int
    received_ms: int
    device_id: str
    source: str
    address: str
    reason: str
    detail: str
    payload: bytes
    size_bytes: int
    content: str = ""


class DeadLetters:
    """Dead letters. Every call raises `LogUnavailable` when the database does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        reason: str | None = None,
        device_id: str | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[StoredDeadLetter]:
        """Those for which all holds that is given, newest first; `after` is the `next` of the page before.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = Where()
        where.add("reason = ?", reason)
        where.add("device_id = ?", device_id)
        where.add("id < ?", None if after is None else cursor(after, int))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM dead_letters {where} ORDER BY id DESC LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [StoredDeadLetter(*row) for row in rows[:limit]]
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def get(self, letter_id: int) -> StoredDeadLetter | None:
        """One by its number; None when there is none."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM dead_letters WHERE id = $1",
                letter_id,
            )
        return None if row is None else StoredDeadLetter(*row)

    async def delete(self, letter_id: int, replayed: bool = False, shown_id: int | None = None) -> bool:
        """Whether it was there. `shown_id` is what people know it by, where that is another number."""
        async with acquired(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(
                "DELETE FROM dead_letters WHERE id = $1"
                " RETURNING received_at AS received_ms, device_id, source, reason",
                letter_id,
            )
            if row is None:
                return False
            what = "dead_letter.replay" if replayed else "dead_letter.delete"
            await record(connection, what, str(letter_id if shown_id is None else shown_id), dict(row))
        return True

    async def counts(self) -> dict[str, int]:
        """How many are stored, by reason."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT reason, count(*) AS n FROM dead_letters GROUP BY 1 ORDER BY 1"
            )
        return {row["reason"]: row["n"] for row in rows}

    async def prune(self, before_ms: int) -> int:
        """Delete those that were committed before; returns how many."""
        async with acquired(self._pool) as connection:
            status = await connection.execute("DELETE FROM dead_letters WHERE committed_at < $1", before_ms)
        return int(status.rpartition(" ")[2])
