"""Devices as they were, rebuilt from snapshot and log by the code that activates devices.

The time is that of commits: what was committed up to it has happened, whatever its event time is; of that
millisecond all.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.alarms import acted_on
from sensorium.actors.device import Shard, Surroundings
from sensorium.actors.erasure import EVENT as ERASED
from sensorium.actors.errors import NoHistory
from sensorium.actors.messages import ActOnAlarm
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.profile import Profiles
from sensorium.actors.records import (
    OPEN_STATES,
    Alarm,
    Command,
    PresenceRow,
    Registration,
    Snapshot,
    StoredDevice,
    TailReading,
    TwinState,
)
from sensorium.actors.recovery import activate
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.twin_documents import NOTHING, DocumentChange, before
from sensorium.actors.whole import WholeDevice, whole
from sensorium.storage._known_sets import KnownSets
from sensorium.storage._read import (
    ALARM_COLUMNS,
    DEVICE_COLUMNS,
    alarm_of,
    command_of,
    registration_of,
    twin_of,
)
from sensorium.storage._readings_sql import Committed, readings
from sensorium.storage.database import Connection, Pool, acquired
from sensorium.storage.encode import decode_values
from sensorium.storage.events import as_written
from sensorium.storage.retention_classes import floors
from sensorium.storage.spread import database_of_device

MAX_REPLAYED: Final = 500_000
"""Readings that are replayed for one answer: more than a device at 1 Hz sends between two kept snapshots."""
SLACK_MS: Final = 3_600_000
"""How much older than a snapshot what is behind it may be."""
MAX_EVENTS: Final = 100_000
TIMEOUT_S: Final = 60.0

_REGISTERED: Final = ("registered", "updated", "decommissioned")
_KEPT_FROM: Final = "SELECT max(kept_from) FROM retention WHERE kind IN ('log', 'events')"
_REGISTRATION: Final = f"SELECT {DEVICE_COLUMNS} FROM devices WHERE device = $1"
# A device that was isolated has rows in two shards. Their offsets say nothing to each other, the times do.
_EVENTS: Final = """
SELECT shard, log_offset, time, kind, body, committed_at, committed_at::text AS exactly FROM events
WHERE device = $1 AND (kind = ANY($2::text[]) OR kind LIKE 'alarm\\_%' OR kind LIKE 'twin\\_%')
ORDER BY events.committed_at, log_offset LIMIT $3
"""
_BASE: Final = """
SELECT device, shard, log_offset, replay_from, state, saved_at, saved_at::text AS exactly FROM (
    SELECT device, shard, log_offset, replay_from, state, saved_at FROM snapshots WHERE device = $1
    UNION ALL
    SELECT device, shard, log_offset, replay_from, state, saved_at FROM kept_snapshots WHERE device = $1
) AS kept
WHERE saved_at < $2 AND CASE WHEN shard = $3 THEN log_offset >= $4 ELSE saved_at > $5::text::timestamptz END
ORDER BY kept.saved_at DESC, log_offset DESC LIMIT 1
"""
_ALARMS: Final = f"SELECT {ALARM_COLUMNS} FROM alarms WHERE device = $1 AND start_at < $2"
_COMMANDS: Final = """
SELECT body FROM commands WHERE device = $1 AND created_at <= $2 AND (open OR updated_at > $2) ORDER BY number
"""
_RULES: Final = """
SELECT DISTINCT ON (v.rule_id) v.rule_id, v.version, v.spec, v.changed_at FROM rule_versions v
JOIN rules r USING (rule_id) WHERE v.changed_at <= $1 ORDER BY v.rule_id, v.version DESC
"""


def _readings(committed: Committed) -> str:
    """The first $7 of a device $1 behind a mark $2, $3, $4, committed before $5 and not older than $6."""
    found = readings(
        "r.log_offset, r.time, r.key, r.flags, r.metric_set, r.numbers, r.texts, r.committed_at",
        """r.device = $1
        AND CASE WHEN r.shard = $2 THEN r.log_offset > $3 ELSE r.committed_at > $4::text::timestamptz END
        AND r.committed_at < $5 AND r.time >= coalesce($6::timestamptz, '-infinity')""",
        committed.rows,
        f"""{committed.chunks} AND c.committed_at < $5 AND (c.shard <> $2 OR c.last_offset > $3)
        AND c.last_time >= coalesce($6::timestamptz, '-infinity')""",
    )
    return f"""
        SELECT log_offset, time, key, flags, metric_set, numbers, texts FROM ({found}) AS found
        ORDER BY committed_at, log_offset LIMIT $7
    """


class PastState(msgspec.Struct, frozen=True):
    """A device as it was.

    Attributes:
        snapshot_ms: when the snapshot was saved that it was rebuilt from; None: from the beginning.
        replayed: how many readings came between that and then.
    """

    device_id: str
    at_ms: int
    snapshot_ms: int | None
    replayed: int
    state: WholeDevice


class _Mark(NamedTuple):
    """A moment of a device: an offset in one shard, and for others a time, as the server writes it."""

    shard: int | None = None
    offset: int = 0
    exactly: str = "-infinity"


class _Base(NamedTuple):
    """Where replay begins, and why there."""

    snapshot: Snapshot | None
    saved_ms: int | None
    mark: _Mark


class PastStates:
    """Over the databases of a log. `profiles` are those of the present: what windows there are.

    Every call raises `LogUnavailable` when a database is away.
    """

    def __init__(self, pools: Sequence[Pool], profiles: Profiles) -> None:
        self._pools = pools
        self._profiles = profiles
        self._sets = KnownSets()

    async def at(self, device_id: str, at_ms: int) -> PastState:
        """The device after everything that was committed up to then.

        Raises:
            NoHistory: there was no such device then, or what it takes to know is not kept any more.
        """
        async with acquired(self._pools[0]) as connection:
            rules = [
                Rule(
                    rule_id=row["rule_id"],
                    version=row["version"],
                    spec=msgspec.convert(row["spec"], RuleSpec),
                    created_ms=row["changed_at"],
                    updated_ms=row["changed_at"],
                )
                for row in await connection.fetch(_RULES, at_ms)
            ]
        pool = self._pools[database_of_device(device_id, len(self._pools))]
        async with (
            acquired(pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(f"SET LOCAL statement_timeout = '{TIMEOUT_S:.0f}s'")
            stored, base = await self._stored(connection, device_id, at_ms)
        around = Surroundings(profiles=self._profiles, rules=RuleBook(rules))

        def rebuilt() -> WholeDevice:
            return whole(activate(stored, Shard(shard_of(device_id), 0), around))

        # Half a million readings take a second.
        state = await asyncio.to_thread(rebuilt)
        return PastState(device_id, at_ms, base.saved_ms, len(stored.tail), state)

    async def _stored(self, connection: Connection, device_id: str, at_ms: int) -> tuple[StoredDevice, _Base]:
        """What the log knew of the device then, as it is given out to activate it from."""
        key = device_key(device_id)
        kept_from_ms = await connection.fetchval(_KEPT_FROM)
        for of_class in (await floors(connection, [key])).values():
            kept_from_ms = max(of_class, kept_from_ms or of_class)
        events = await connection.fetch(
            _EVENTS, key, [*_REGISTERED, ERASED, "online", "offline"], MAX_EVENTS + 1, timeout=TIMEOUT_S
        )
        if len(events) > MAX_EVENTS:
            raise NoHistory(f"more than {MAX_EVENTS} events would have to be gone through")
        if kept_from_ms is not None and at_ms < kept_from_ms:
            raise NoHistory("retention has removed the log of that time")
        past = [event for event in events if event["committed_at"] <= at_ms]
        later = [event for event in events if event["committed_at"] > at_ms]
        if any(event["kind"] == ERASED for event in later):
            raise NoHistory("the data of that time were deleted")
        erased, mark = -1, _Mark()
        for n, event in enumerate(past):
            if event["kind"] == ERASED:
                erased, mark = n, _Mark(event["shard"], event["log_offset"], event["exactly"])
        registration = await _registration(connection, key, device_id, at_ms, past, later)
        base = await _base(connection, key, at_ms, mark)
        if kept_from_ms is not None:
            begins_ms = registration.registered_ms if base.saved_ms is None else base.saved_ms
            if begins_ms < kept_from_ms and erased < 0:
                raise NoHistory("retention has removed what came after the last snapshot before that time")
        tail = await self._tail(connection, key, at_ms, base)
        past = past[erased + 1 :]
        stored = StoredDevice(
            device_id,
            registration,
            base.snapshot,
            tail,
            await _alarms(connection, key, at_ms, kept_from_ms, past, later),
            {},
            [_as_of(command_of(row["body"]), at_ms) for row in await connection.fetch(_COMMANDS, key, at_ms)],
            _presence(device_id, past),
            await _twin(connection, key, device_id, past, later),
        )
        return stored, base

    async def _tail(self, connection: Connection, key: int, at_ms: int, base: _Base) -> list[TailReading]:
        saved_ms = 0 if base.saved_ms is None else base.saved_ms - SLACK_MS
        rows = await connection.fetch(
            _readings(Committed.of_ms(saved_ms, at_ms)),
            *(key, *base.mark, at_ms + 1),
            *(None if base.snapshot is None else base.snapshot.replay_from_ms, MAX_REPLAYED + 1),
            timeout=TIMEOUT_S,
        )
        if len(rows) > MAX_REPLAYED:
            raise NoHistory(
                f"more than {MAX_REPLAYED} readings came between the snapshot before that time and then"
            )
        sets = await self._sets.find(connection, {row["metric_set"] for row in rows})
        return [
            TailReading(
                *(offset, time_ms, reading_key, flags, sets[set_id]),
                decode_values(sets[set_id], numbers, texts),
            )
            for offset, time_ms, reading_key, flags, set_id, numbers, texts in rows
        ]


async def _registration(
    connection: Connection, key: int, device_id: str, at_ms: int, past: Sequence[Any], later: Sequence[Any]
) -> Registration:
    told = [event for event in past if event["kind"] in (*_REGISTERED, ERASED)]
    if told:
        kind, body = told[-1]["kind"], told[-1]["body"]
        if kind != ERASED:
            return msgspec.convert(as_written(body), Registration)
        if not body["registration"]:
            # A device that only forgot is registered as before; those events were emptied with the rest.
            row = await connection.fetchrow(_REGISTRATION, key)
            if row is not None and not any(event["kind"] in _REGISTERED for event in later):
                return registration_of(row)
            raise NoHistory("how it was registered then was deleted with its data")
        raise NoHistory(f"there was no device {device_id} then")
    row = await connection.fetchrow(_REGISTRATION, key)
    if row is None or row["registered_at"] > at_ms:
        raise NoHistory(f"there was no device {device_id} then")
    if row["updated_at"] > at_ms:
        raise NoHistory("how it was registered then is not kept any more")
    return registration_of(row)


async def _base(connection: Connection, key: int, at_ms: int, erased: _Mark) -> _Base:
    row = await connection.fetchrow(_BASE, key, at_ms + 1, *erased)
    if row is None:
        return _Base(None, None, erased)
    *values, saved_ms, exactly = row
    snapshot = Snapshot(*values)
    return _Base(snapshot, saved_ms, _Mark(snapshot.shard, snapshot.offset, exactly))


async def _alarms(
    connection: Connection,
    key: int,
    at_ms: int,
    kept_from_ms: int | None,
    past: Sequence[Any],
    later: Sequence[Any],
) -> list[Alarm]:
    """The active ones: raised in the log that is kept, and such that have stood since before it."""
    alarms: dict[str, Alarm] = {}
    if kept_from_ms is not None:
        changed_since = {
            event["body"]["alarm_id"] for event in (*past, *later) if event["kind"].startswith("alarm_")
        }
        for row in await connection.fetch(_ALARMS, key, kept_from_ms):
            alarm = alarm_of(row)
            if alarm.alarm_id not in changed_since and alarm.state == "ACTIVE":
                alarms[alarm.alarm_id] = alarm
    for event in past:
        name = event["kind"].removeprefix("alarm_")
        if name == event["kind"]:
            continue
        body = as_written(event["body"])
        if name in ("raised", "changed", "escalated"):
            alarms[body["alarm_id"]] = msgspec.convert(body, Alarm)
        elif name == "cleared":
            alarms.pop(body["alarm_id"], None)
        elif body["alarm_id"] in alarms:
            act = ActOnAlarm(
                *("", body["alarm_id"], name, body["by"], body.get("text", ""), body.get("until_ms", 0))
            )
            alarms[act.alarm_id] = acted_on(alarms[act.alarm_id], act, event["time"])
    return list(alarms.values())


def _as_of(command: Command, at_ms: int) -> Command:
    """The command as it stood, by the clock of the hosts that it went through."""
    steps = tuple(step for step in command.steps if step.time_ms <= at_ms)
    if not steps or len(steps) == len(command.steps):
        return command
    last = steps[-1]
    told_ms = next((step.time_ms for step in reversed(steps) if step.state == "SENT"), None)
    due_ms = None if told_ms is None or last.state not in OPEN_STATES else told_ms + command.timeout_ms
    return msgspec.structs.replace(
        command,
        state=last.state,
        updated_ms=last.time_ms,
        attempt=last.attempt,
        reason=last.reason,
        result=None,
        due_ms=due_ms,
        steps=steps,
    )


def _presence(device_id: str, past: Sequence[Any]) -> PresenceRow | None:
    said = [event for event in past if event["kind"] in ("online", "offline")]
    return PresenceRow(device_id, said[-1]["kind"] == "online", said[-1]["time"]) if said else None


async def _twin(
    connection: Connection, key: int, device_id: str, past: Sequence[Any], later: Sequence[Any]
) -> TwinState | None:
    """Back from the present, since each change says what was before it."""
    row = await connection.fetchrow("SELECT body FROM twins WHERE device = $1", key)
    if row is None:
        return None
    state = twin_of(row["body"])
    documents = {}
    for name in ("desired", "reported"):
        changes = [
            msgspec.convert(as_written(event["body"]), DocumentChange)
            for event in later
            if event["kind"] == f"twin_{name}"
        ]
        documents[name] = before(changes, getattr(state, name)) if changes else getattr(state, name)
    if documents["desired"] == NOTHING and documents["reported"] == NOTHING:
        return None
    return TwinState(device_id, documents["desired"], documents["reported"])
