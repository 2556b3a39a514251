"""What is said to a device and what comes back: the values that travel between senders and hosts.

A batch is MessagePack: field names are not sent, and the metric names of its readings are sent once a batch.
"""

from collections.abc import Iterable
from enum import IntFlag, StrEnum
from typing import Any, Final

import msgspec

from sensorium.actors.anomalies import Anomaly
from sensorium.actors.origin import Origin

Value = float | bool | str
"""One metric's value. Integers arrive as floats: exact up to 2**53."""


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a device stands: degrees north and east (WGS 84), and an address in words."""

    latitude: float | None = None
    longitude: float | None = None
    address: str | None = None


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    device_id: str


class ReadingFlag(IntFlag):
    """What is remarkable about a reading. Stored with it."""

    NONE = 0
    LATE = 1
    """Older than the lateness bound when it came: stored, but outside of windows and rules."""
    REDELIVERED = 2
    """The sender gave no time of its own and may have sent it before: `key` alone identifies it."""
    SUSPECT = 4
    """Outside of what the device's profile expects, and stored all the same."""
    ERASED = 8
    """Only its place in the log is left: its device's data were deleted."""


class Quality(StrEnum):
    """Whether the device's profile finds a reading, or a value, as it should be."""

    GOOD = "good"
    SUSPECT = "suspect"


def quality_of(flags: int) -> Quality:
    """The quality of a reading with these flags."""
    return Quality.SUSPECT if flags & ReadingFlag.SUSPECT else Quality.GOOD


class Measured(tuple[str, ...]):
    """The names of a reading's metrics whose sender told units, too.

    Attributes:
        units: one for each name; None where none was told.
    """

    units: tuple[str | None, ...]

    def __new__(cls, names: Iterable[str], units: Iterable[str | None]) -> "Measured":
        made = super().__new__(cls, names)
        made.units = tuple(units)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Measured) and tuple.__eq__(self, other) and self.units == other.units

    def __hash__(self) -> int:
        return hash((tuple.__hash__(self), self.units))

    def __reduce__(self) -> tuple[object, ...]:
        return Measured, (tuple(self), self.units)


class Reading(_Message, frozen=True, array_like=True, gc=False, tag=0):
    """One message's metrics at one time.

    Attributes:
        time_ms: event time, milliseconds since 1970 UTC.
        received_ms: when the platform received it, same unit.
        key: signed 64-bit identity of the message at its source; a second reading of the same device,
            time and key is a duplicate.
        metrics: index into `Batch.metrics` of the names that `values` go with.
        values: one value for each name, numbers as float.
        flags: a `ReadingFlag`.
    """

    time_ms: int
    received_ms: int
    key: int
    metrics: int
    values: list[Value]
    flags: int = 0


class Register(_Message, frozen=True, array_like=True, tag=1):
    """Create the device. Refused with `conflict` when it exists and is not decommissioned."""

    device_type: str
    location: Location | None = None
    metadata: dict[str, Any] = {}
    origin: Origin | None = None
    isolation: str | None = None


class Patch(_Message, frozen=True, array_like=True, tag=2):
    """Change the registration: what is None stays; metadata is merged (RFC 7396), so null removes a key.

    `isolation` is "process" or "shared", or "" to go by the profile again.
    """

    device_type: str | None = None
    location: Location | None = None
    metadata: dict[str, Any] | None = None
    origin: Origin | None = None
    isolation: str | None = None


class Decommission(_Message, frozen=True, array_like=True, tag=3):
    """Retire the device: its history stays, its readings are refused from now on."""

    origin: Origin | None = None


class GetDevice(_Message, frozen=True, array_like=True, tag=4):
    """Answered with a `DeviceInfo`."""


class GetLatest(_Message, frozen=True, array_like=True, tag=5):
    """Answered with a `Latest`."""


class GetWindow(_Message, frozen=True, array_like=True, tag=6):
    """Answered with a `WindowInfo`. `length_s` picks among the profile's windows; None takes its first."""

    metric: str
    length_s: float | None = None


class RefreshRules(_Message, frozen=True, array_like=True, tag=7):
    """Bind the rules anew now, clearing alarms whose rule is gone, instead of at the next reading."""


class Content(StrEnum):
    """What the payload of a dead letter is, so that it can go its way again."""

    JSON = "json"
    CBOR = "cbor"
    SENML_JSON = "senml+json"
    SENML_CBOR = "senml+cbor"
    CHIRPSTACK = "chirpstack"
    TTS = "tts"
    SPARKPLUG = "sparkplug"
    OTHER = "other"
    """No telemetry, such as an answer to a command."""


class DeadLetter(_Message, frozen=True, array_like=True, tag=8):
    """A message that could not be used, on its way to the dead-letter table.

    Attributes:
        device_id: the device it seems to come from; "" when unknown.
        source: the protocol, such as "mqtt".
        address: topic or path.
        reason: a short code, such as "malformed_json".
        detail: one sentence for a person.
        payload: the first bytes as received (`DEAD_LETTER_PAYLOAD_BYTES` at most).
        size_bytes: the whole payload's size.
        content: a `Content`; "" where it is not known.
    """

    source: str
    address: str
    reason: str
    detail: str
    payload: bytes
    size_bytes: int
    received_ms: int
    content: str = ""


class TimerFired(_Message, frozen=True, array_like=True, tag=9):
    """A timer of the device is due. Said by its host; a device that has cancelled it takes no notice."""

    name: str
    due_ms: int


class SendCommand(_Message, frozen=True, array_like=True, tag=20):
    """Have the device do something: answered with the `Command`, or `Duplicate` once it has ended.

    The same `command_id` is the same command, however often it is said. Refused with `conflict` when what is
    asked differs, and with `overloaded` when too many commands of the device are open.

    Attributes:
        timeout_ms: in which an answer must come, from when the device is told.
        expires_ms: from then on the device is not told any more.
        retries: how often the device may be told again when it does not answer.
        job_id: the bulk job that this command belongs to.
    """

    command_id: str
    command: str
    parameters: dict[str, Any]
    timeout_ms: int
    expires_ms: int
    retries: int = 0
    job_id: str | None = None
    origin: Origin | None = None


class ClaimCommand(_Message, frozen=True, array_like=True, tag=21):
    """Leave to tell the device, for one attempt and one claimant: answered with the `Telling`, or None.

    The command is SENT when the answer comes. Who is refused must not tell the device.

    Attributes:
        downlink: the only protocol by which the claimant can tell; None: the device's, whichever it is.
    """

    command_id: str
    attempt: int
    downlink: str | None = None


class CommandUndelivered(_Message, frozen=True, array_like=True, tag=22):
    """The device was certainly not told. `final`: it never can be, so the command has failed."""

    command_id: str
    attempt: int
    reason: str
    final: bool = False


class CommandReply(_Message, frozen=True, array_like=True, tag=23):
    """What the device says of a command: `status` is "delivered", "succeeded" or "failed".

    A repetition is a `Duplicate`; a reply to no open command becomes a dead letter, unless it is not
    `certain` that the command is one of ours at all.
    """

    command_id: str
    status: str
    received_ms: int
    result: Any = None
    reason: str | None = None
    certain: bool = True


class CancelCommand(_Message, frozen=True, array_like=True, tag=24):
    """End an open command; answered with the `Command`. One that was sent may be carried out all the same."""

    command_id: str
    origin: Origin | None = None


class TakeCommands(_Message, frozen=True, array_like=True, tag=25):
    """The device asks what it shall do: answered with a list of `Telling`, which are SENT then."""


class PresenceSaid(_Message, frozen=True, array_like=True, tag=26):
    """The device came or went, as it says itself or its last will does."""

    online: bool


class ActOnAlarm(_Message, frozen=True, array_like=True, tag=30):
    """What a person does to an alarm of the device, active or ended.

    Attributes:
        action: "ack", "unack", "assign", "comment", "shelve" or "unshelve". An ended alarm cannot be shelved.
        by: the person.
        text: the comment, or the assignee ("" for nobody).
        until_ms: of "shelve".
    """

    alarm_id: str
    action: str
    by: str = ""
    text: str = ""
    until_ms: int = 0
    origin: Origin | None = None


class ReportAnomaly(_Message, frozen=True, array_like=True, tag=31):
    """Who compares devices with each other found this one odd, or no longer. It commits what is said."""

    anomaly: Anomaly


class GetTwin(_Message, frozen=True, array_like=True, tag=40):
    """Answered with a `TwinInfo`."""


class ChangeTwin(_Message, frozen=True, array_like=True, tag=41):
    """Write the twin's documents by JSON merge patches: answered with the `TwinInfo` after it.

    Refused with `precondition_failed`, and with `twin_too_large` where a bound would be broken.

    Attributes:
        desired, reported: None: that document stays. An empty report asks what there is to do.
        replace: the documents shall be as given, instead of merged.
        matching: entity tags of which one must be the twin's (`TwinInfo.tags`); None: whatever it is.
    """

    desired: dict[str, Any] | None = None
    reported: dict[str, Any] | None = None
    by: str = ""
    replace: bool = False
    matching: list[str] | None = None
    origin: Origin | None = None


class ClaimTwin(_Message, frozen=True, array_like=True, tag=42):
    """What the device is to be told of its twin now: answered with a `TwinTelling`, or None."""


class TwinTold(_Message, frozen=True, array_like=True, tag=43):
    """The device was told this version of what is desired."""

    version: int


class TwinUntold(_Message, frozen=True, array_like=True, tag=44):
    """The device was certainly not told. `final`: trying again by ourselves is pointless."""

    version: int
    final: bool = False


class TakeTwin(_Message, frozen=True, array_like=True, tag=45):
    """The device asks what it has yet to do: answered with a `TwinTelling`."""


class EraseData(_Message, frozen=True, array_like=True, tag=50):
    """Forget all that the device has measured and done; with `registration`, that there is such a device.

    Answered once the device itself has forgotten. The same `job_id` is the same erasure.
    """

    job_id: str
    registration: bool = False
    origin: Origin | None = None


DEAD_LETTER_PAYLOAD_BYTES: Final = 4096

Message = (
    Reading
    | Register
    | Patch
    | Decommission
    | GetDevice
    | GetLatest
    | GetWindow
    | RefreshRules
    | DeadLetter
    | TimerFired
    | SendCommand
    | ClaimCommand
    | CommandUndelivered
    | CommandReply
    | CancelCommand
    | TakeCommands
    | PresenceSaid
    | ActOnAlarm
    | ReportAnomaly
    | GetTwin
    | ChangeTwin
    | ClaimTwin
    | TwinTold
    | TwinUntold
    | TakeTwin
    | EraseData
)


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Messages of one sender to one host, in order. `metrics` holds the names that readings refer to, `units`
    the units of those whose sender told them, by the same index.

    `sender` is one router's alone, and `sequence` goes up with each batch of it: a host does not run one that
    comes late, after the next. The same one may come again.
    """

    sender: str
    sequence: int
    metrics: list[tuple[str, ...]]
    messages: list[Message]
    units: dict[int, tuple[str | None, ...]] = {}

    def names(self) -> list[tuple[str, ...]]:
        """What the readings refer to, each with its units. Raises `ValueError` where they do not match."""
        if not self.units:
            return self.metrics
        named: list[tuple[str, ...]] = list(self.metrics)
        for index, units in self.units.items():
            if not 0 <= index < len(named) or len(units) != len(named[index]):
                raise ValueError("units that go with no metrics")
            named[index] = Measured(named[index], units)
        return named


class Telling(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device is told of a command, as it goes over the wire. The same id is the same command.

    Attributes:
        route: where a device behind another system is found there; such devices are told otherwise.
    """

    command_id: str
    command: str
    parameters: dict[str, Any]
    attempt: int
    expires_ms: int
    route: dict[str, Any] | None = None


class TwinTelling(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device is told of its twin, as it goes over the wire. An older version than one it has is void.

    Attributes:
        version: of what is desired.
        delta: what is desired and not reported so; null: what is desired no longer and still reported.
        changed_ms: when this version came about; None before the first.
        route: where a device behind another system is found there; such devices are told otherwise.
    """

    version: int
    delta: dict[str, Any]
    changed_ms: int | None
    route: dict[str, Any] | None = None


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device's registration and whether it is heard of."""

    device_id: str
    device_type: str
    status: str
    """"active" or "decommissioned"."""
    location: Location | None
    metadata: dict[str, Any]
    registered_ms: int
    updated_ms: int
    last_seen_ms: int | None = None
    connectivity: str = "never_seen"
    """"online", "offline" (silent for longer than the profile's `offline_after_s`) or "never_seen"."""
    active_alarms: int = 0
    isolation: str = "shared"
    """"process" where the device is to have a process of its own, "shared" else."""
    isolation_by: str = "profile"
    """"device" where that was said of this device, "profile" where it goes by its type."""
    process: str | None = None
    """The Ray actor of its own that the device is in; none while it is in a host with others."""


class LatestValue(msgspec.Struct, frozen=True):
    """The newest value of one metric by event time, and what the profile thinks of it now."""

    value: Value
    time_ms: int
    quality: Quality = Quality.GOOD


class Latest(msgspec.Struct, frozen=True):
    """The newest value of each metric of a device."""

    device_id: str
    device_type: str
    metrics: dict[str, LatestValue]


class WindowInfo(msgspec.Struct, frozen=True):
    """Aggregates of one metric over a rolling window that ends with the newest pane.

    `start_ms` is included, `end_ms` is not. Without a reading in the window, `count` is 0 and the rest None.
    """

    device_id: str
    metric: str
    start_ms: int
    end_ms: int
    count: int
    sum: float | None = None
    mean: float | None = None
    stddev: float | None = None
    min: float | None = None
    max: float | None = None
    first: float | None = None
    last: float | None = None


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Committed."""


class Duplicate(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Committed earlier; nothing was stored again."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The reply to a question: one of the `…Info` values, as `msgspec.to_builtins` gives it."""

    value: Any


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The device refused: `code` is a `Refused.code` or a dead-letter reason.

    When `dead_lettered` is true the message stands in the dead-letter table, and that is committed.
    """

    code: str
    detail: str
    dead_lettered: bool = False


Outcome = Accepted | Duplicate | Answer | Refusal

ACCEPTED: Final = Accepted()
DUPLICATE: Final = Duplicate()


class BatchReply(msgspec.Struct, frozen=True, array_like=True):
    """What became of a batch, after its commit: `outcomes` by index, everything not in it was accepted."""

    sequence: int
    outcomes: dict[int, Outcome]
    moved: list[int] = []
    """Indexes of messages whose shard this host does not own: route them anew."""


batch_encoder = msgspec.msgpack.Encoder()
batch_decoder = msgspec.msgpack.Decoder(Batch)
"""Raises `msgspec.MsgspecError` for what is no batch, and `UnicodeDecodeError` for what is no UTF-8."""
reply_decoder = msgspec.msgpack.Decoder(BatchReply)
