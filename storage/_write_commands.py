"""The statements by which `log` writes what devices are told, and who hears of it."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.placement import device_key
from sensorium.actors.records import OPEN_STATES, Command, PresenceRow
from sensorium.storage.database import Connection

READY_CHANNEL: Final = "sensorium_commands_ready"
"""Told with [device id, command id, attempt, downlink] of what may be sent; empty: look into the tables.

Of a twin, of which always the newest is told, with `TWIN` and 0.
"""

ENDED_CHANNEL: Final = "sensorium_commands_ended"
"""Told with the commands that have ended, as they are, or with their ids where that is too much for a notice;
empty: look into the table."""

MAX_NOTICE_BYTES: Final = 7_900
"""PostgreSQL takes less than 8,000."""

# One statement, so one way to the server and back: what a command waits for is commits.
COMMANDS: Final = """
WITH written AS (
INSERT INTO commands (command_id, device, device_id, number, command, state, open, ready, job_id, created_at,
                      updated_at, downlink, body)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bool[],
                     $8::bool[], $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[],
                     $13::jsonb[])
ON CONFLICT (command_id) DO UPDATE SET state = excluded.state, open = excluded.open, ready = excluded.ready,
    updated_at = excluded.updated_at, downlink = excluded.downlink, body = excluded.body
)
SELECT pg_notify(channel, payload) FROM unnest($14::text[], $15::text[]) AS told (channel, payload)
"""

PRESENCES: Final = """
INSERT INTO presences (device, online, since_at)
SELECT * FROM unnest($1::bigint[], $2::bool[], $3::timestamptz[])
ON CONFLICT (device) DO UPDATE SET online = excluded.online, since_at = excluded.since_at
"""


async def commands(connection: Connection, rows: Sequence[Command]) -> None:
    """Insert or replace by id; of several of one id the last counts. Tells who sends them and who waits."""
    latest = {row.command_id: row for row in rows}
    columns = zip(
        *(
            (
                *(c.command_id, device_key(c.device_id), c.device_id, c.number, c.command, str(c.state)),
                *(c.state in OPEN_STATES, c.ready, c.job_id, c.created_ms, c.updated_ms, c.downlink, c),
            )
            for c in sorted(latest.values(), key=lambda c: c.command_id)
        ),
        strict=True,
    )
    ready = [(c.device_id, c.command_id, c.attempt + 1, c.downlink) for c in latest.values() if c.ready]
    ended = [c for c in latest.values() if c.state not in OPEN_STATES]
    told = []
    if ready:
        told.append((READY_CHANNEL, _notice(ready)))
    if ended:
        told.append((ENDED_CHANNEL, _notice(ended) or _notice([c.command_id for c in ended])))
    channels, payloads = [channel for channel, _ in told], [payload for _, payload in told]
    await connection.execute(COMMANDS, *map(list, columns), channels, payloads)


def _notice(told: Sequence[Any]) -> str:
    """What is told; nothing where it is too much for one notice."""
    notice = msgspec.json.encode(told)
    return "" if len(notice) > MAX_NOTICE_BYTES else notice.decode()


async def notify(connection: Connection, channel: str, told: Sequence[Any]) -> None:
    """Tell who listens, with the commit; an empty notice where it is too much for one."""
    if told:
        await connection.execute("SELECT pg_notify($1, $2)", channel, _notice(told))


async def presences(connection: Connection, rows: Sequence[PresenceRow]) -> None:
    """Insert or replace by device; of several of one device the last counts."""
    latest = {device_key(row.device_id): row for row in rows}
    ordered = sorted(latest.items())
    await connection.execute(
        PRESENCES,
        [device for device, _ in ordered],
        [row.online for _, row in ordered],
        [row.since_ms for _, row in ordered],
    )
