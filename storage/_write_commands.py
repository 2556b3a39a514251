"""The statements by which `log` writes commands and presences, and who hears of what is to be told."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.placement import device_key
from sensorium.actors.records import OPEN_STATES, Command, PresenceRow, TwinState
from sensorium.actors.twin import TWIN
from sensorium.storage._joined import Change

READY_CHANNEL: Final = "sensorium_commands_ready"
"""Told with [device id, command id, attempt, downlink] of what may be sent; empty: look into the tables.

Of a twin, of which always the newest is told, with `TWIN` and 0.
"""

ENDED_CHANNEL: Final = "sensorium_commands_ended"
"""Told with the commands that have ended, as they are, or with their ids where that is too much for a notice;
empty: look into the table."""

MAX_NOTICE_BYTES: Final = 7_900
"""PostgreSQL takes less than 8,000."""

COMMANDS: Final = """
INSERT INTO commands (command_id, device, device_id, number, command, state, open, ready, job_id, created_at,
                      updated_at, downlink, body)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bool[],
                     $8::bool[], $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[],
                     $13::jsonb[])
ON CONFLICT (command_id) DO UPDATE SET state = excluded.state, open = excluded.open, ready = excluded.ready,
    updated_at = excluded.updated_at, downlink = excluded.downlink, body = excluded.body
"""

PRESENCES: Final = """
INSERT INTO presences (device, online, since_at)
SELECT * FROM unnest($1::bigint[], $2::bool[], $3::timestamptz[])
ON CONFLICT (device) DO UPDATE SET online = excluded.online, since_at = excluded.since_at
"""


def commands(rows: Sequence[Command]) -> Change:
    """Insert or replace by id; of several of one id the last counts."""
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
    return Change(COMMANDS, [list(column) for column in columns])


def presences(rows: Sequence[PresenceRow]) -> Change:
    """Insert or replace by device; of several of one device the last counts."""
    latest = {device_key(row.device_id): row for row in rows}
    columns = zip(*((key, row.online, row.since_ms) for key, row in sorted(latest.items())), strict=True)
    return Change(PRESENCES, [list(column) for column in columns])


def notices(
    commands: Sequence[Command], twins: Sequence[TwinState], told: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Channels and payloads: for those who tell devices, and those who wait for the end of a command.

    Of the ends of those in `told` nothing is said.
    """
    of_commands = {row.command_id: row for row in commands}.values()
    of_twins = {row.device_id: row for row in twins}.values()
    ended = [c for c in of_commands if c.state not in OPEN_STATES and c.command_id not in told]
    said = []
    if ready := [(c.device_id, c.command_id, c.attempt + 1, c.downlink) for c in of_commands if c.ready]:
        said.append((READY_CHANNEL, _notice(ready)))
    if ready := [(t.device_id, TWIN, 0, t.downlink) for t in of_twins if t.ready]:
        said.append((READY_CHANNEL, _notice(ready)))
    if ended:
        said.append((ENDED_CHANNEL, _notice(ended) or _notice([c.command_id for c in ended])))
    return said


def _notice(told: Sequence[Any]) -> str:
    """What is told; nothing where it is too much for one notice."""
    notice = msgspec.json.encode(told)
    return "" if len(notice) > MAX_NOTICE_BYTES else notice.decode()
