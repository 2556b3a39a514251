"""The read side of deliveries: pages newest first, one by id, and trying dead ones again."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from sensorium.actors.actions import Action
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor

_COLUMNS: Final = (
    "delivery_id, state, queue, kind, rule_id, rule_version, alarm_id, device_id, transition, created_at,"
    " due_at, finished_at, attempts, reason, summary_id, action, content"
)
_RETRY: Final = """
UPDATE deliveries SET state = 'PENDING', attempts = 0, due_at = now(), finished_at = NULL
WHERE delivery_id IN (
    SELECT delivery_id FROM deliveries {where} ORDER BY created_at, delivery_id LIMIT {limit} FOR UPDATE)
"""


class StoredDelivery(msgspec.Struct, frozen=True):
    """A message about an alarm to one target, and what became of it.

    Attributes:
        state: "PENDING", "SENDING", "DELIVERED"; "DEAD" after the last attempt; "SUPPRESSED" by a limit or a
            maintenance window; "COLLAPSED" into the delivery `summary_id`.
        queue: what is sent one after the other, such as "webhook:pager".
        created_ms: when what it tells of was committed.
        due_ms: of one that is pending, when it is tried next.
        attempts: how often it was tried; `reason` is why it failed last, or was kept back.
        content: what is sent.
    """

    delivery_id: str
    state: str
    queue: str
    kind: str
    rule_id: str
    rule_version: int
    alarm_id: str
    device_id: str
    transition: str
    created_ms: int
    due_ms: int
    finished_ms: int | None
    attempts: int
    reason: str | None
    summary_id: str | None
    action: Action
    content: dict[str, Any]


class Deliveries:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def page(
        self,
        state: str | None = None,
        kind: str | None = None,
        queue: str | None = None,
        rule_id: str | None = None,
        alarm_id: str | None = None,
        device_id: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[StoredDelivery]:
        """Those for which all holds that is given, newest first by the commit of what they tell of.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = _where(state, kind, queue, rule_id, alarm_id, device_id)
        where.add("created_at >= ?", start_ms)
        where.add("created_at < ?", end_ms)
        if after is not None:
            where.add("(created_at, delivery_id) < (?, ?)", *cursor(after, tuple[int, str]))
        statement = (
            f"SELECT {_COLUMNS} FROM deliveries {where} ORDER BY created_at DESC, delivery_id DESC"
            f" LIMIT {limit + 1}"
        )

        async def rows_of(pool: Pool) -> list[asyncpg.Record]:
            async with acquired(pool) as connection:
                return list(await connection.fetch(statement, *where.arguments))

        found = [row for rows in await asyncio.gather(*map(rows_of, self._pools)) for row in rows]
        found.sort(key=lambda row: (row["created_at"], row["delivery_id"]), reverse=True)
        items = [_delivery(row) for row in found[:limit]]
        return Page(items, [items[-1].created_ms, items[-1].delivery_id] if len(found) > limit else None)

    async def get(self, delivery_id: str) -> StoredDelivery | None:
        """One of them."""
        if "\0" in delivery_id:
            return None
        for pool in self._pools:
            async with acquired(pool) as connection:
                row = await connection.fetchrow(
                    f"SELECT {_COLUMNS} FROM deliveries WHERE delivery_id = $1", delivery_id
                )
            if row is not None:
                return _delivery(row)
        return None

    async def retry(
        self,
        delivery_id: str | None = None,
        queue: str | None = None,
        rule_id: str | None = None,
        limit: int = 1_000,
    ) -> int:
        """Have dead ones tried again, the oldest first, up to `limit` in each database; how many."""
        check_limit(limit)
        where = _where("DEAD", None, queue, rule_id, None, None)
        where.add("delivery_id = ?", delivery_id)
        count = 0
        for pool in self._pools:
            async with acquired(pool) as connection, connection.transaction():
                done = await connection.execute(_RETRY.format(where=where, limit=limit), *where.arguments)
                retried = int(done.split()[-1])
                if retried:
                    thing = delivery_id or queue or rule_id or "*"
                    chosen = {"delivery_id": delivery_id, "queue": queue, "rule_id": rule_id}
                    await record(connection, "delivery.retry", thing, chosen=chosen, count=retried)
            count += retried
        return count


def _where(
    state: str | None,
    kind: str | None,
    queue: str | None,
    rule_id: str | None,
    alarm_id: str | None,
    device_id: str | None,
) -> Where:
    where = Where()
    where.add("state = ?", state)
    where.add("kind = ?", kind)
    where.add("queue = ?", queue)
    where.add("rule_id = ?", rule_id)
    where.add("alarm_id = ?", alarm_id)
    where.add("device_id = ?", device_id)
    return where


def _delivery(row: asyncpg.Record) -> StoredDelivery:
    *before, action, content = row
    return StoredDelivery(*(*before, msgspec.convert(action, Action), content))
