"""Writing deliveries, and taking them out again: the statements of the sink and of who sends."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.action_plan import DEAD, PENDING, Delivery
from sensorium.actors.actions import Action
from sensorium.storage.database import Connection

MAX_QUEUE: Final = 10_000
"""Messages that wait for one target; more become dead at once, to be tried again by a person."""
MAX_NAMED: Final = 100
"""Alarms and devices that a summary names; it counts all."""

_INSERT: Final = """
INSERT INTO deliveries (delivery_id, state, queue, kind, place, rule_id, rule_version, alarm_id, device_id,
    transition, created_at, due_at, finished_at, reason, summary_id, action, content)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
    $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[],
    $14::text[], $15::text[], $16::jsonb[], $17::jsonb[])
ON CONFLICT (delivery_id) DO NOTHING
"""
_WAITING: Final = """
SELECT queue, count(*) FROM deliveries WHERE state IN ('PENDING', 'SENDING') AND queue = ANY($1::text[])
GROUP BY queue
"""
_DUE: Final = """
SELECT DISTINCT queue FROM deliveries
WHERE state = 'PENDING' AND due_at <= now() ORDER BY queue
"""
_CLAIM: Final = """
UPDATE deliveries SET state = 'SENDING', attempts = attempts + 1 WHERE delivery_id IN (
    SELECT delivery_id FROM (
        SELECT DISTINCT ON (device_id, rule_id) delivery_id, number, due_at, state FROM deliveries
        WHERE queue = $1 AND state IN ('PENDING', 'SENDING') ORDER BY device_id, rule_id, number) AS first
    WHERE due_at <= now() AND state = 'PENDING' ORDER BY number LIMIT $2)
RETURNING delivery_id, number, queue, rule_id, device_id, transition, created_at, due_at, attempts,
    action, content
"""
_FINISH: Final = """
UPDATE deliveries SET state = $2, reason = $3, finished_at = now()
WHERE delivery_id = $1 AND state = 'SENDING'
"""
_LATER: Final = """
UPDATE deliveries SET state = 'PENDING', reason = $2, due_at = now() + $3 * interval '1 millisecond',
    attempts = attempts - CASE WHEN $4 THEN 0 ELSE 1 END
WHERE delivery_id = $1 AND state = 'SENDING'
"""
_GIVE_UP: Final = """
UPDATE deliveries SET state = 'DEAD', reason = $2, finished_at = now()
WHERE queue = $1 AND state = 'PENDING' AND created_at < now() - $3 * interval '1 second'
"""
_AGAIN: Final = "UPDATE deliveries SET state = 'PENDING' WHERE state = 'SENDING'"
_COLLAPSED: Final = """
SELECT count(*) OVER () AS n, alarm_id, device_id FROM deliveries WHERE summary_id = $1
ORDER BY number LIMIT $2
"""
_PRUNE: Final = """
DELETE FROM deliveries WHERE delivery_id IN (
    SELECT delivery_id FROM deliveries WHERE created_at < now() - $1 * interval '1 day'
        AND state NOT IN ('PENDING', 'SENDING') ORDER BY created_at LIMIT $2)
"""


class Claimed(NamedTuple):
    """A delivery that is to be sent now, the `attempts`-th time."""

    delivery_id: str
    queue: str
    rule_id: str
    device_id: str
    transition: str
    created_ms: int
    due_ms: int
    attempts: int
    action: Action
    content: dict[str, Any]


async def insert(connection: Connection, rows: Sequence[Delivery]) -> None:
    """Store those that are not there yet; what a full queue does not take is dead."""
    if not rows:
        return
    queues = sorted({row.queue for row in rows if row.state == PENDING})
    counted = await connection.fetch(_WAITING, queues) if queues else []
    waiting: Counter[str] = Counter({row[0]: row[1] for row in counted})
    columns: list[tuple[Any, ...]] = []
    for row in rows:
        state, reason, finished_ms = row.state, row.reason, None
        if state == PENDING:
            if waiting[row.queue] >= MAX_QUEUE:
                state, reason = DEAD, f"{MAX_QUEUE} messages wait for this target already"
            else:
                waiting[row.queue] += 1
        if state != PENDING:
            finished_ms = row.created_ms
        columns.append(
            (
                *(row.delivery_id, state, row.queue, row.kind, row.place, row.rule_id, row.rule_version),
                *(row.alarm_id, row.device_id, row.transition, row.created_ms, row.due_ms, finished_ms),
                *(reason, row.summary_id, row.action, row.content),
            )
        )
    await connection.execute(_INSERT, *map(list, zip(*columns, strict=True)))


async def due(connection: Connection) -> list[str]:
    """The queues in which something is due."""
    return [row["queue"] for row in await connection.fetch(_DUE)]


async def claim(connection: Connection, queue: str, limit: int) -> list[Claimed]:
    """Up to `limit` that are due, at most one a device and rule, the oldest first."""
    rows = await connection.fetch(_CLAIM, queue, limit)
    return [
        Claimed(
            *(row["delivery_id"], row["queue"], row["rule_id"], row["device_id"], row["transition"]),
            *(row["created_at"], row["due_at"], row["attempts"]),
            msgspec.convert(row["action"], Action),
            row["content"],
        )
        for row in sorted(rows, key=lambda row: row["number"])
    ]


async def finish(connection: Connection, delivery_id: str, state: str, reason: str | None) -> None:
    """It was delivered, or is dead for that reason."""
    await connection.execute(_FINISH, delivery_id, state, reason)


async def later(
    connection: Connection, delivery_id: str, reason: str | None, wait_ms: int, counts: bool
) -> None:
    """It is tried again after so long; `counts`: what was done was an attempt."""
    await connection.execute(_LATER, delivery_id, reason, wait_ms, counts)


async def give_up(connection: Connection, queue: str, reason: str, age_s: float) -> int:
    """What waits for the target for longer is dead; how many those were."""
    done = await connection.execute(_GIVE_UP, queue, reason, age_s)
    return int(done.split()[-1])


async def again(connection: Connection) -> None:
    """What was being sent when its sender ended is to be sent again. The caller must be the only sender."""
    await connection.execute(_AGAIN)


async def collapsed(connection: Connection, summary_id: str) -> tuple[int, list[str], list[str]]:
    """How many alarms a summary is about, and the first of them with their devices."""
    rows = await connection.fetch(_COLLAPSED, summary_id, MAX_NAMED)
    devices = list(dict.fromkeys(row["device_id"] for row in rows))
    return (rows[0]["n"] if rows else 0), [row["alarm_id"] for row in rows], devices


async def prune(connection: Connection, keep_days: int, limit: int) -> int:
    """Delete what has ended and is older, up to `limit` of it; how many those were."""
    done = await connection.execute(_PRUNE, keep_days, limit)
    return int(done.split()[-1])
