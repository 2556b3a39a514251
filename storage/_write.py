"""The statements that write the rows of a commit or a save. They belong into the caller's transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.messages import DeadLetter
from sensorium.actors.metrics import MetricSet
from sensorium.actors.placement import device_key
from sensorium.actors.records import Alarm, AlarmNote, EventRow, Registration, Snapshot, TimerRow
from sensorium.storage._joined import Change, apply
from sensorium.storage.database import Connection

METRIC_SET: Final = "INSERT INTO metric_sets (id, names, kinds) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"

EVENTS: Final = """
INSERT INTO events (shard, log_offset, device, time, kind, body, class)
SELECT shard, log_offset, device, time, kind, body::jsonb, class
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::text[], $6::text[],
            $7::smallint[]) AS e (shard, log_offset, device, time, kind, body, class)
"""

# By device_id: a second id with the key of another device violates the primary key, and is refused.
REGISTRATIONS: Final = """
INSERT INTO devices (device, device_id, device_type, status, location, metadata, registered_at, updated_at,
                     isolation)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[],
                     $7::timestamptz[], $8::timestamptz[], $9::text[])
ON CONFLICT (device_id) DO UPDATE SET device_type = excluded.device_type, status = excluded.status,
    location = excluded.location, metadata = excluded.metadata, registered_at = excluded.registered_at,
    updated_at = excluded.updated_at, isolation = excluded.isolation
"""

ALARMS: Final = """
INSERT INTO alarms (alarm_id, device, device_id, device_type, rule_id, rule_name, rule_version, severity,
                    state, acknowledged, metric, value, detail, start_at, end_at, end_value, end_reason,
                    acknowledged_at, acknowledged_by, assignee, shelved_until, escalated, changed_at,
                    met, readings, last_met_at, last_reading_at)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
                     $8::text[], $9::text[], $10::bool[], $11::text[], $12::jsonb[], $13::text[],
                     $14::timestamptz[], $15::timestamptz[], $16::jsonb[], $17::text[], $18::timestamptz[],
                     $19::text[], $20::text[], $21::timestamptz[], $22::int[], $23::timestamptz[],
                     $24::bigint[], $25::bigint[], $26::timestamptz[], $27::timestamptz[])
ON CONFLICT (alarm_id) DO UPDATE SET rule_name = excluded.rule_name, rule_version = excluded.rule_version,
    severity = excluded.severity, state = excluded.state, acknowledged = excluded.acknowledged,
    metric = excluded.metric, value = excluded.value, detail = excluded.detail, start_at = excluded.start_at,
    end_at = excluded.end_at, end_value = excluded.end_value, end_reason = excluded.end_reason,
    acknowledged_at = excluded.acknowledged_at, acknowledged_by = excluded.acknowledged_by,
    assignee = excluded.assignee, shelved_until = excluded.shelved_until, escalated = excluded.escalated,
    changed_at = excluded.changed_at, met = excluded.met, readings = excluded.readings,
    last_met_at = excluded.last_met_at, last_reading_at = excluded.last_reading_at
"""

ALARM_NOTES: Final = """
UPDATE alarms a SET acknowledged = coalesce(n.acknowledged, a.acknowledged),
    acknowledged_at = CASE WHEN n.acknowledged IS NULL OR n.acknowledged = a.acknowledged
        THEN a.acknowledged_at WHEN n.acknowledged THEN n.at END,
    acknowledged_by = CASE WHEN n.acknowledged IS NULL OR n.acknowledged = a.acknowledged
        THEN a.acknowledged_by WHEN n.acknowledged THEN n.by END,
    assignee = CASE WHEN n.assignee IS NULL THEN a.assignee ELSE nullif(n.assignee, '') END
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::bool[], $6::text[])
    AS n (alarm_id, device, at, by, acknowledged, assignee)
WHERE a.alarm_id = n.alarm_id AND a.device = n.device
"""

DEAD_LETTERS: Final = """
INSERT INTO dead_letters
    (received_at, device_id, source, address, reason, detail, payload, size_bytes, content)
SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::bytea[], $8::bigint[], $9::text[])
"""

TIMERS: Final = """
INSERT INTO timers (device, name, shard, device_id, due_at, since_at)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::smallint[], $4::text[], $5::timestamptz[],
                     $6::timestamptz[])
ON CONFLICT (device, name) DO UPDATE SET shard = excluded.shard, due_at = excluded.due_at,
    since_at = excluded.since_at
"""

GONE_TIMERS: Final = """
DELETE FROM timers t USING unnest($1::bigint[], $2::text[]) AS gone (device, name)
WHERE t.device = gone.device AND t.name = gone.name
"""

SNAPSHOTS: Final = """
INSERT INTO snapshots (device, shard, log_offset, replay_from, saved_at, state)
SELECT device, shard, log_offset, replay_from, now(), state
    FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::timestamptz[], $5::bytea[])
        AS s (device, shard, log_offset, replay_from, state) ORDER BY device
ON CONFLICT (device) DO UPDATE SET shard = excluded.shard, log_offset = excluded.log_offset,
    replay_from = excluded.replay_from, saved_at = excluded.saved_at, state = excluded.state
    WHERE snapshots.log_offset <= excluded.log_offset AND snapshots.shard = excluded.shard
"""

KEEP: Final = """
INSERT INTO kept_snapshots (device, shard, log_offset, replay_from, saved_at, state)
SELECT device, shard, log_offset, replay_from, saved_at, state FROM snapshots
WHERE device = ANY($1::bigint[])
    AND floor(extract(epoch FROM saved_at) / $2) < floor(extract(epoch FROM now()) / $2)
"""
KEEP_EVERY_S: Final = 86_400.0

HEADS: Final = """
INSERT INTO shards (shard, head, saved_at)
SELECT shard, head, now() FROM unnest($1::smallint[], $2::bigint[]) AS h (shard, head) ORDER BY shard
ON CONFLICT (shard) DO UPDATE SET head = greatest(shards.head, excluded.head),
    saved_at = greatest(shards.saved_at, excluded.saved_at)
"""


async def metric_sets(connection: Connection, sets: Iterable[MetricSet]) -> None:
    """Insert those that are missing; in order of id, so that two hosts cannot wait for each other."""
    rows = sorted((s.id, list(s.names), s.kinds) for s in sets)
    await connection.executemany(METRIC_SET, rows)


def events(rows: Sequence[EventRow]) -> Change:
    """Append them."""
    return _unnest(EVENTS, [(*row[:5], row.body.decode(), row.retention_class) for row in rows])


def registrations(rows: Sequence[Registration]) -> Change:
    """Insert or replace by device id; of several for one device the last counts."""
    latest = {row.device_id: row for row in rows}
    return _unnest(
        REGISTRATIONS,
        [
            (
                device_key(r.device_id),
                *(r.device_id, r.device_type, r.status),
                None if r.location is None else msgspec.to_builtins(r.location),
                *(r.metadata, r.registered_ms, r.updated_ms, r.isolation),
            )
            for r in sorted(latest.values(), key=lambda r: r.device_id)
        ],
    )


def alarms(rows: Sequence[Alarm]) -> Change:
    """Insert or replace by alarm id; of several of one id the last counts."""
    latest = {row.alarm_id: row for row in rows}
    return _unnest(
        ALARMS,
        [
            (
                *(a.alarm_id, device_key(a.device_id), a.device_id, a.device_type, a.rule_id, a.rule_name),
                *(a.rule_version, a.severity, a.state, a.acknowledged, a.metric, a.value, a.detail),
                *(a.start_ms, a.end_ms, a.end_value, a.end_reason, a.acknowledged_ms, a.acknowledged_by),
                *(a.assignee, a.shelved_until_ms, a.escalated, a.changed_ms),
                *(a.met, a.readings, a.last_met_ms, a.last_reading_ms),
            )
            for a in sorted(latest.values(), key=lambda a: a.alarm_id)
        ],
    )


async def alarm_notes(connection: Connection, notes: Sequence[AlarmNote]) -> None:
    """Apply them in their order: several for one alarm do not fit in one statement."""
    for note in notes:
        row = (
            note.alarm_id,
            device_key(note.device_id),
            note.at_ms,
            note.by,
            note.acknowledged,
            note.assignee,
        )
        await apply(connection, _unnest(ALARM_NOTES, [row]))


def timers(rows: Sequence[TimerRow]) -> list[Change]:
    """Insert, replace or delete by device and name; of several of one name the last counts."""
    latest = {(device_key(row.device_id), row.name): row for row in rows}
    places = sorted(latest)
    changes = []
    if gone := [place for place in places if latest[place].due_ms is None]:
        changes.append(_unnest(GONE_TIMERS, gone))
    if kept := [(place, latest[place]) for place in places if latest[place].due_ms is not None]:
        columns = [(*place, r.shard, r.device_id, r.due_ms, r.since_ms) for place, r in kept]
        changes.append(_unnest(TIMERS, columns))
    return changes


def dead_letters(rows: Sequence[DeadLetter]) -> Change:
    """Append them. What a text column cannot hold is replaced: a bad message must not stop the good ones."""
    return _unnest(
        DEAD_LETTERS,
        [
            (
                *(d.received_ms, storable(d.device_id), storable(d.source), storable(d.address)),
                *(storable(d.reason), storable(d.detail), d.payload, d.size_bytes),
                storable(d.content),
            )
            for d in rows
        ],
    )


async def snapshots(connection: Connection, rows: Sequence[Snapshot]) -> None:
    """Insert or replace by device, unless a newer one is there, or one of another shard: it has left it."""
    latest: dict[int, Snapshot] = {}
    for row in rows:
        if row.device not in latest or latest[row.device].offset <= row.offset:
            latest[row.device] = row
    await apply(connection, _unnest(SNAPSHOTS, list(latest.values())))


async def keep(connection: Connection, devices: Sequence[int]) -> None:
    """Keep the snapshots of these devices, which are to be replaced, where they are of an earlier day."""
    await connection.execute(KEEP, devices, KEEP_EVERY_S)


async def heads(connection: Connection, by_shard: Mapping[int, int]) -> None:
    """Raise the saved heads of the shards."""
    await connection.execute(HEADS, list(by_shard.keys()), list(by_shard.values()))


def storable(text: str) -> str:
    """The text with replacement characters for what PostgreSQL refuses: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _unnest(statement: str, rows: Sequence[tuple[Any, ...]]) -> Change:
    return Change(statement, [list(column) for column in zip(*rows, strict=True)])
