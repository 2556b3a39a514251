"""What a host hands to the log and gets back from it: plain rows, decided by devices, stored by `storage`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.anomalies import Anomaly as Anomaly
from sensorium.actors.messages import DeadLetter, Location, Value
from sensorium.actors.metrics import MetricSet
from sensorium.actors.origin import Origin
from sensorium.actors.twin_documents import Document


class ReadingRow(NamedTuple):
    """A reading as the log stores it. `values` goes with `metric_set` by position, None where absent.

    `time_ms` is event time; `offset` is the row's place in its shard, without gaps over readings and events.
    """

    shard: int
    offset: int
    device: int
    time_ms: int
    key: int
    flags: int
    metric_set: MetricSet
    values: tuple[Value | None, ...] | list[Value]


class EventRow(NamedTuple):
    """Something that happened to a device besides a reading, such as "registered" or "alarm_raised".

    `body` is JSON. Shares the shard's offsets with readings. `retention_class` is that of the profile.
    """

    shard: int
    offset: int
    device: int
    time_ms: int
    kind: str
    body: bytes
    retention_class: int = 0


class Registration(msgspec.Struct, frozen=True):
    """The registry's row of a device: what people said of it."""

    device_id: str
    device_type: str
    status: str
    location: Location | None
    metadata: dict[str, Any]
    registered_ms: int
    updated_ms: int
    isolation: str | None = None
    """"process" or "shared"; None: what the profile says."""


class Alarm(msgspec.Struct, frozen=True):
    """An alarm as it stands: one a device and rule while it is active, kept as history once cleared.

    Attributes:
        alarm_id: deterministic: the same device, rule and start give the same id.
        state: "ACTIVE" or "CLEARED".
        acknowledged: whether a person took note.
        metric: the metric that the rule looked at.
        value, end_value: what it was when the alarm was raised and cleared.
        detail: the violated expectation in words.
        start_ms, end_ms: event times; `end_ms` is None while active.
        end_reason: "condition_ended", "rule_removed" or "device_decommissioned".
        acknowledged_ms, acknowledged_by: when and by whom.
        assignee: whose it is to look after.
        shelved_until_ms: until then people want to hear nothing of it.
        escalated: how many steps of the rule's escalation it has taken.
        changed_ms: when its severity changed last: the event time, or the clock's of an escalation.
        met, readings: for how many of the readings that were judged while it was active, the first included,
            its condition held; those of one millisecond count once. Of an active alarm they may be a minute
            behind.
        last_met_ms, last_reading_ms: event times of the last of those.
    """

    alarm_id: str
    device_id: str
    device_type: str
    rule_id: str
    rule_name: str
    rule_version: int
    severity: str
    state: str
    metric: str
    value: Value
    detail: str
    start_ms: int
    acknowledged: bool = False
    end_ms: int | None = None
    end_value: Value | None = None
    end_reason: str | None = None
    acknowledged_ms: int | None = None
    acknowledged_by: str | None = None
    assignee: str | None = None
    shelved_until_ms: int | None = None
    escalated: int = 0
    changed_ms: int | None = None
    met: int = 1
    readings: int = 1
    last_met_ms: int | None = None
    last_reading_ms: int | None = None


class AlarmNote(NamedTuple):
    """What a person did to an alarm that has ended; what is None stays. `assignee` is "" for nobody."""

    device_id: str
    alarm_id: str
    at_ms: int
    by: str
    acknowledged: bool | None = None
    assignee: str | None = None

    def applied(self, alarm: Alarm) -> Alarm:
        """The alarm with what the note says."""
        if self.acknowledged is not None and self.acknowledged is not alarm.acknowledged:
            alarm = msgspec.structs.replace(
                alarm,
                acknowledged=self.acknowledged,
                acknowledged_ms=self.at_ms if self.acknowledged else None,
                acknowledged_by=self.by if self.acknowledged else None,
            )
        if self.assignee is not None:
            alarm = msgspec.structs.replace(alarm, assignee=self.assignee or None)
        return alarm


class CommandState(StrEnum):
    """Where a command stands. Those after DELIVERED are ends."""

    QUEUED = "QUEUED"
    SENT = "SENT"
    DELIVERED = "DELIVERED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


OPEN_STATES: Final = frozenset((CommandState.QUEUED, CommandState.SENT, CommandState.DELIVERED))


class CommandStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command came into a state: when, in which attempt to tell the device, and why."""

    state: CommandState
    time_ms: int
    attempt: int = 0
    reason: str | None = None


class Command(msgspec.Struct, frozen=True):
    """A command as it stands, with the way it has come.

    Attributes:
        number: its place among the device's commands.
        expires_ms: from then on the device is not told any more.
        attempt: how often the device was told, at most `retries` + 1 times.
        ready: whether the device may be told now.
        downlink: by which protocol; see `downlinks`.
        due_ms: of one that is SENT or DELIVERED, when its time is out; of one that is QUEUED, before when
            telling the device need not be tried again.
        result: what the device answered with.
        steps: every state it was in, the first first.
    """

    command_id: str
    device_id: str
    command: str
    parameters: dict[str, Any]
    state: CommandState
    created_ms: int
    updated_ms: int
    timeout_ms: int
    expires_ms: int
    number: int
    retries: int = 0
    attempt: int = 0
    ready: bool = False
    due_ms: int | None = None
    reason: str | None = None
    result: Any = None
    job_id: str | None = None
    steps: tuple[CommandStep, ...] = ()
    downlink: str = "mqtt"


class PresenceRow(NamedTuple):
    """Whether a device says that it is there, and since when."""

    device_id: str
    online: bool
    since_ms: int


class TwinState(msgspec.Struct, frozen=True):
    """The twin of a device as it stands.

    Attributes:
        told_version: the newest version of what is desired that the device was told.
        tries: how often it was tried to tell the delta, since it changed or the device came back.
        ready: whether the device may be told now.
        due_ms: before then an uplink of the device is no reason to tell it again.
        downlink: by which protocol it is told; see `downlinks`.
    """

    device_id: str
    desired: Document
    reported: Document
    told_version: int = 0
    tries: int = 0
    ready: bool = False
    due_ms: int | None = None
    downlink: str = "mqtt"


class Snapshot(NamedTuple):
    """A device's state as of `offset` in its shard.

    `replay_from_ms`: readings after `offset` that are older than this event time cannot change the state,
    so recovery need not look for them; None means look at all.
    """

    device: int
    shard: int
    offset: int
    replay_from_ms: int | None
    state: bytes


class TailReading(NamedTuple):
    """A committed reading newer than the snapshot, to be replayed."""

    offset: int
    time_ms: int
    key: int
    flags: int
    metric_set: MetricSet
    values: list[Value | None]


class Timer(NamedTuple):
    """A due time that outlives the process: `due_ms` by the clock, `since_ms` when what it times began."""

    due_ms: int
    since_ms: int


class TimerRow(NamedTuple):
    """A timer of a device by its name. Without `due_ms` it is gone."""

    shard: int
    device_id: str
    name: str
    due_ms: int | None
    since_ms: int


class StoredDevice(NamedTuple):
    """All that the log knows of a device, to activate it from. An unknown device has no registration."""

    device_id: str
    registration: Registration | None
    snapshot: Snapshot | None
    tail: list[TailReading]
    """In the order of their offsets."""
    alarms: list[Alarm]
    """The active ones."""
    timers: Mapping[str, Timer] = {}
    commands: Sequence[Command] = ()
    """The open ones and some that ended last, in the order of their numbers."""
    presence: PresenceRow | None = None
    twin: TwinState | None = None


class AuditRow(NamedTuple):
    """A change that somebody asked for, as the audit log keeps it; secrets are taken out where it is stored.

    `what` is such as "device.change", `thing` the id of what was changed.
    `before` and `after` are builtins, None where there is nothing. `note` is what they said besides.
    """

    device_id: str
    at_ms: int
    origin: Origin
    what: str
    thing: str
    before: Any
    after: Any
    note: Mapping[str, Any] = {}


class ErasureRow(NamedTuple):
    """The data of a device are to be deleted: all in the log before `offset` of its shard, and all else.

    `registration`: that there is such a device, too. `snapshot` is the device as it is after that.
    """

    job_id: str
    device_id: str
    shard: int
    offset: int
    at_ms: int
    registration: bool
    origin: Origin | None
    snapshot: Snapshot


class Identity(NamedTuple):
    """What tells a reading from others of its device. Without a time, the key alone must match."""

    device: int
    time_ms: int | None
    key: int


@dataclass(slots=True)
class Commit:
    """What one transaction makes durable: all of it or nothing. Erasures come first.

    `registrations`, `alarms`, `timers`, `commands`, `presences`, `twins` and `anomalies` replace the rows of
    the same id, the later the earlier. `epochs` are those of the shards that it is for, as their owner knows
    them. Of the commands in `told` no notice is given when they have ended: who waits hears of it otherwise.
    """

    readings: list[ReadingRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    timers: list[TimerRow] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    presences: list[PresenceRow] = field(default_factory=list)
    alarm_notes: list[AlarmNote] = field(default_factory=list)
    twins: list[TwinState] = field(default_factory=list)
    audits: list[AuditRow] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)
    erasures: list[ErasureRow] = field(default_factory=list)
    epochs: Mapping[int, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.readings
            or self.events
            or self.registrations
            or self.alarms
            or self.dead_letters
            or self.timers
            or self.commands
            or self.presences
            or self.alarm_notes
            or self.twins
            or self.audits
            or self.anomalies
            or self.erasures
        )
