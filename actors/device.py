"""A device: what it remembers and what it does with a message. Pure: no clock, no waiting, no I/O.

A turn is `handle(message, …, effects) -> outcome`. It either changes the state, adds rows to `effects` and
returns, or refuses and changes nothing. The host makes the effects durable and only then tells anyone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.actors.anomalies import Anomaly
from sensorium.actors.commands import TIMER as COMMANDS_TIMER
from sensorium.actors.commands import Commands
from sensorium.actors.conditions import same_length
from sensorium.actors.detection import Detection, fitted
from sensorium.actors.downlinks import downlink_of
from sensorium.actors.merge_patch import merge_patch
from sensorium.actors.messages import (
    ACCEPTED,
    DEAD_LETTER_PAYLOAD_BYTES,
    DUPLICATE,
    ActOnAlarm,
    Answer,
    CancelCommand,
    ChangeTwin,
    ClaimCommand,
    ClaimTwin,
    CommandReply,
    CommandUndelivered,
    Content,
    DeadLetter,
    Decommission,
    DeviceInfo,
    GetDevice,
    GetLatest,
    GetTwin,
    GetWindow,
    Latest,
    LatestValue,
    Measured,
    Message,
    Outcome,
    Patch,
    PresenceSaid,
    Quality,
    Reading,
    ReadingFlag,
    RefreshRules,
    Refusal,
    Register,
    ReportAnomaly,
    SendCommand,
    TakeCommands,
    TakeTwin,
    TimerFired,
    TwinTold,
    TwinUntold,
    Value,
    WindowInfo,
)
from sensorium.actors.metrics import EMPTY, NUMBER, MetricSet, arrange
from sensorium.actors.modelled import Modelled
from sensorium.actors.placement import device_key
from sensorium.actors.profile import DetectorSpec, Profiles, WindowSpec
from sensorium.actors.records import (
    Alarm,
    Commit,
    EventRow,
    Identity,
    ReadingRow,
    Registration,
)
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Rule
from sensorium.actors.schema import Schema
from sensorium.actors.seen import Seen
from sensorium.actors.twin import TIMER as TWIN_TIMER
from sensorium.actors.twin import Twin
from sensorium.actors.watch import Watch
from sensorium.actors.windows import Window

if TYPE_CHECKING:
    from sensorium.actors.models.book import ModelBook

ACTIVE = "active"
DECOMMISSIONED = "decommissioned"
NEVER_MS = -(2**62)


def as_payload(reading: Reading, names: tuple[str, ...]) -> tuple[Content, bytes]:
    """A reading as it could have been sent: as our JSON, or as SenML where its units were told."""
    if not isinstance(names, Measured):
        fields = {"timestamp": reading.time_ms, **dict(zip(names, reading.values, strict=True))}
        return Content.JSON, msgspec.json.encode(fields)
    labels = {float: "v", bool: "vb", str: "vs"}
    records = [
        {"n": name, "t": reading.time_ms / 1000, labels[type(value)]: value, **({"u": unit} if unit else {})}
        for name, unit, value in zip(names, names.units, reading.values, strict=True)
    ]
    return Content.SENML_JSON, msgspec.json.encode(records)


class Shard:
    """The offset counter of a shard, shared by the devices in it while one host owns it."""

    __slots__ = ("head", "number")

    def __init__(self, number: int, head: int) -> None:
        self.number = number
        self.head = head


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a turn may know besides the device's own state.

    `auto_register_as`: the type given to unregistered devices at their first reading; None refuses them.
    `models`: those at work; None where there never was one.
    `process`: the name of the process, where it is an isolated device's own.
    """

    profiles: Profiles = field(default_factory=Profiles)
    rules: RuleBook = field(default_factory=RuleBook)
    auto_register_as: str | None = None
    models: "ModelBook | None" = None
    process: str | None = None


class Device:
    """One device's state and behaviour. A host calls it, one turn at a time."""

    __slots__ = (
        "_arranged",
        "_profile_detectors",
        "_profile_windows",
        "commands",
        "detection",
        "dirty_since_s",
        "id",
        "key",
        "last_seen_ms",
        "last_turn_s",
        "lateness_ms",
        "latest",
        "latest_ms",
        "max_metrics",
        "metrics",
        "modelled",
        "newest_ms",
        "registration",
        "retention_class",
        "schema",
        "seen",
        "shard",
        "turns",
        "twin",
        "watch",
        "windows",
    )

    def __init__(self, device_id: str, shard: Shard) -> None:
        self.id = device_id
        self.key = device_key(device_id)
        self.shard = shard
        self.registration: Registration | None = None
        self.metrics = EMPTY
        self.latest: list[Value | None] = []
        self.latest_ms: list[int] = []
        self.newest_ms = NEVER_MS
        self.last_seen_ms = NEVER_MS
        self.windows: tuple[Window, ...] = ()
        self.detection: Detection | None = None
        """None where no detector watches it."""
        self.modelled: Modelled | None = None
        """None where no model judges it."""
        self.seen = Seen()
        self.watch = Watch()
        self.commands = Commands()
        self.twin = Twin()
        self.turns = 0
        """Turns since the last snapshot."""
        self.dirty_since_s: float | None = None
        self.last_turn_s = 0.0
        self._arranged: tuple[str, ...] | None = None
        """The names of the last reading when they are exactly the metric set's."""
        self._profile_windows: tuple[WindowSpec, ...] = ()
        self._profile_detectors: tuple[DetectorSpec, ...] = ()
        self.lateness_ms = 0
        self.max_metrics = 0
        self.schema: Schema | None = None
        self.retention_class = 0

    @property
    def alarms(self) -> dict[str, Alarm]:
        """The active alarms, by rule id."""
        return self.watch.alarms

    @property
    def metadata(self) -> Mapping[str, Any]:
        """As registered; empty before."""
        return self.registration.metadata if self.registration is not None else {}

    # --- turns ------------------------------------------------------------------------------------------

    def must_ask(self, reading: Reading) -> bool:
        """Whether only the log can tell if this reading is a duplicate.

        The host then looks it up by `identity` and passes the answer to `read`.
        """
        if reading.flags & ReadingFlag.REDELIVERED:
            return not self.seen.holds_key(reading.key)
        return reading.time_ms <= self.seen.floor_ms and not self.seen.holds(reading.time_ms, reading.key)

    def identity(self, reading: Reading) -> Identity:
        """What the log knows the reading by."""
        timeless = reading.flags & ReadingFlag.REDELIVERED
        return Identity(self.key, None if timeless else reading.time_ms, reading.key)

    def handle(self, message: Message, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
        """One turn of any message but a reading, which `read` takes."""
        match message:
            case Register():
                return self._register(message, now_ms, around, effects)
            case Patch():
                return self._patch(message, now_ms, around, effects)
            case Decommission():
                return self._decommission(now_ms, effects)
            case GetDevice():
                return self._answer(self.info(now_ms, around))
            case GetLatest():
                return self._answer(self.newest_values())
            case GetWindow():
                return self._window_info(message)
            case RefreshRules():
                self._refresh(around, now_ms, effects)
                return ACCEPTED
            case TimerFired(name=name) if name == COMMANDS_TIMER:
                self.commands.fire(self, now_ms, effects)
                return ACCEPTED
            case TimerFired(name=name, due_ms=due_ms) if name == TWIN_TIMER:
                self.twin.fire(self, due_ms, now_ms, effects)
                return ACCEPTED
            case TimerFired(name=name, due_ms=due_ms):
                if self.watch.book is not around.rules:
                    self._refresh(around, now_ms, effects)
                self.watch.fire(self, name, due_ms, now_ms, effects)
                return ACCEPTED
            case ActOnAlarm():
                return self._act_on_alarm(message, now_ms, effects)
            case ReportAnomaly(anomaly=anomaly):
                return self._report(anomaly, effects)
            case GetTwin() | ChangeTwin() | ClaimTwin() | TwinTold() | TwinUntold() | TakeTwin():
                return self._twin(message, now_ms, around, effects)
            case DeadLetter():
                effects.dead_letters.append(message)
                return ACCEPTED
            case Reading():
                raise TypeError("readings have a turn of their own: Device.read")
            case _:
                return self._command(message, now_ms, effects)

    def read(
        self,
        reading: Reading,
        names: tuple[str, ...],
        now_ms: int,
        around: Surroundings,
        effects: Commit,
        known: bool = False,
    ) -> Outcome:
        """The turn of a reading.

        Args:
            names: the metric names that `reading.values` go with; the same tuple object for readings alike
                saves time.
            known: the log was asked (see `must_ask`) and holds this reading.
        """
        registration = self.registration
        if registration is None or registration.status != ACTIVE:
            refusal = self._unwelcome(reading, names, now_ms, around, effects)
            if refusal is not None:
                return refusal
        time_ms = reading.time_ms
        key = reading.key
        flags = reading.flags
        if time_ms <= self.newest_ms or flags:
            if known or self.seen.holds(time_ms, key):
                return DUPLICATE
            if flags & ReadingFlag.REDELIVERED and self.seen.holds_key(key):
                return DUPLICATE
        values: list[Any] = reading.values
        if self.schema is not None:
            judged = self.schema.judge(names, values)
            if isinstance(judged, Refusal):
                return self._dead_letter(judged, reading, names, effects)
            values, earned = judged
            flags |= earned
        as_before = names is self._arranged and self.metrics.only_numbers
        if as_before:
            for value in values:
                if type(value) is not float:
                    as_before = False
        if not as_before:
            arranged = self._arrange(names, values)
            if isinstance(arranged, Refusal):
                return self._dead_letter(arranged, reading, names, effects)
            values = arranged
        watch = self.watch
        if watch.book is not around.rules:
            watch.bind(self, around.rules, now_ms, effects)
            # It may know more metrics now, derived ones.
            values = [*values, *[None] * (len(self.metrics.names) - len(values))]
        shard = self.shard
        shard.head = offset = shard.head + 1
        newest_ms = self.newest_ms
        if watch.derivations is not None:
            values = watch.derive(self, values, time_ms, now_ms, effects)
        if time_ms < newest_ms - self.lateness_ms:
            flags |= ReadingFlag.LATE
        else:
            if time_ms >= newest_ms:
                if self.detection is not None:
                    # Before the rules, which may go by what it finds.
                    self.detection.judge(self, values, time_ms, effects)
                watch.check(self, values, time_ms, now_ms, effects)
            self.fold(values, time_ms)
        self.remember(time_ms, key, reading.received_ms)
        if watch.listens:
            watch.heard(self, time_ms, now_ms, effects)
        if self.commands.listening:
            self.commands.heard(self, now_ms, effects)
        if self.twin.listening:
            if time_ms >= newest_ms and self.twin.metered(self, self.metrics.names, values, now_ms, effects):
                watch.own_changed(self, "twin", now_ms, effects)
            self.twin.heard(self, now_ms, effects)
        effects.readings.append(
            ReadingRow(shard.number, offset, self.key, time_ms, key, flags, self.metrics, values)
        )
        return ACCEPTED

    # --- answers ----------------------------------------------------------------------------------------

    def info(self, now_ms: int, around: Surroundings) -> DeviceInfo | None:
        """Registration and connectivity; None for a device that was never registered."""
        r = self.registration
        if r is None:
            return None
        seen = self.last_seen_ms if self.last_seen_ms != NEVER_MS else None
        silent_after_ms = around.profiles.of(r.device_type).offline_after_s * 1000
        connectivity = "never_seen"
        if seen is not None:
            connectivity = "online" if now_ms - seen <= silent_after_ms else "offline"
        if self.commands.online is not None:
            connectivity = "online" if self.commands.online else "offline"
        return DeviceInfo(
            r.device_id,
            r.device_type,
            r.status,
            r.location,
            r.metadata,
            r.registered_ms,
            r.updated_ms,
            seen,
            connectivity,
            len(self.watch.alarms),
            r.isolation or around.profiles.of(r.device_type).isolation,
            "profile" if r.isolation is None else "device",
            around.process,
        )

    def newest_values(self) -> Latest | None:
        """The newest value of each metric; None for a device that was never registered."""
        if self.registration is None:
            return None
        metrics = {
            name: LatestValue(value, time_ms, self._quality(name, value))
            for name, value, time_ms in zip(self.metrics.names, self.latest, self.latest_ms, strict=True)
            if value is not None
        }
        return Latest(self.id, self.registration.device_type, metrics)

    def _quality(self, name: str, value: Value) -> Quality:
        suspect = self.schema is not None and self.schema.suspects(name, value)
        return Quality.SUSPECT if suspect else Quality.GOOD

    def window(self, metric: str, length_s: float | None = None) -> WindowInfo | None:
        """A metric's aggregates over one of the device's windows; None when there is no such window."""
        windows = [w for w in self.windows if length_s in (None, w.spec.length_s)]
        position = self.metrics.index.get(metric)
        if not windows or position is None or self.metrics.kinds[position] != NUMBER:
            return None
        bounds = windows[0].bounds_ms()
        if bounds is None:
            return None
        aggregate = windows[0].aggregate(position)
        if aggregate is None:
            return WindowInfo(self.id, metric, *bounds, count=0)
        return WindowInfo(self.id, metric, *bounds, **msgspec.structs.asdict(aggregate))

    def covering(self, around: Surroundings) -> list[Rule]:
        """The rules that watch the device."""
        r = self.registration
        return [] if r is None else around.rules.covering(self.id, r.device_type, r.metadata)

    # --- readings, the rarer ways -----------------------------------------------------------------------

    def _unwelcome(
        self, reading: Reading, names: tuple[str, ...], now_ms: int, around: Surroundings, effects: Commit
    ) -> Refusal | None:
        if self.registration is not None:
            refusal = Refusal("decommissioned", f"device {self.id} is decommissioned")
        elif around.auto_register_as is None:
            refusal = Refusal("unregistered", f"no device {self.id} is registered")
        else:
            profile = around.profiles.of(around.auto_register_as)
            arranged = arrange(EMPTY, names, reading.values, profile.max_metrics)
            judged = profile.schema.judge(names, reading.values) if profile.schema is not None else None
            if isinstance(judged, Refusal):
                arranged = judged
            if not isinstance(arranged, Refusal):
                self._register(Register(self.id, around.auto_register_as), now_ms, around, effects)
                return None
            refusal = arranged
        return self._dead_letter(refusal, reading, names, effects)

    def _arrange(self, names: tuple[str, ...], values: list[Value]) -> list[Value | None] | Refusal:
        """The values by position in the metric set, which grows where it must."""
        result = arrange(self.metrics, names, values, self.max_metrics)
        if isinstance(result, Refusal):
            return result
        grown, arranged = result
        self.adopt(grown)
        if tuple.__eq__(grown.names, names) or self._rest_is_derived(names):
            self._arranged = names
        else:
            self._arranged = None
        return arranged

    def _rest_is_derived(self, names: tuple[str, ...]) -> bool:
        """Whether the device's metrics are these and then only such as rules derive at each reading."""
        derivations, known = self.watch.derivations, self.metrics.names
        if derivations is None or not tuple.__eq__(known[: len(names)], names):
            return False
        return derivations.names.issuperset(known[len(names) :])

    def disarrange(self) -> None:
        """Look at the next reading's names anew: what stands behind them has changed."""
        self._arranged = None

    def adopt(self, metrics: MetricSet) -> None:
        """Grow to this metric set, which must hold the present one's metrics first."""
        if metrics is not self.metrics:
            new = len(metrics.names) - len(self.metrics.names)
            self.metrics = metrics
            self.latest = [*self.latest, *[None] * new]
            self.latest_ms = [*self.latest_ms, *[NEVER_MS] * new]
            self.watch.book = None

    def _dead_letter(
        self, refusal: Refusal, reading: Reading, names: tuple[str, ...], effects: Commit
    ) -> Refusal:
        content, payload = as_payload(reading, names)
        effects.dead_letters.append(
            DeadLetter(
                self.id,
                "device",
                f"devices/{self.id}/telemetry",
                refusal.code,
                refusal.detail,
                payload[:DEAD_LETTER_PAYLOAD_BYTES],
                len(payload),
                reading.received_ms,
                content,
            )
        )
        return Refusal(refusal.code, refusal.detail, dead_lettered=True)

    def fold(self, values: list[Any], time_ms: int) -> None:
        """Take the values of a reading within the lateness bound into latest values and windows.

        The list is kept, so it must not be changed afterwards.
        """
        if time_ms >= self.newest_ms and None not in values:
            self.newest_ms = time_ms
            self.latest = values
            self.latest_ms = [time_ms] * len(values)
        else:
            self._fold_latest(values, time_ms)
        for window in self.windows:
            window.observe(values, time_ms)

    def _fold_latest(self, values: Sequence[Value | None], time_ms: int) -> None:
        self.newest_ms = max(self.newest_ms, time_ms)
        # The lists may be shared with a row on its way to the log, so they are replaced, not changed.
        latest, latest_ms = list(self.latest), list(self.latest_ms)
        for position, value in enumerate(values):
            if value is not None and time_ms >= latest_ms[position]:
                latest[position] = value
                latest_ms[position] = time_ms
        self.latest, self.latest_ms = latest, latest_ms

    def remember(self, time_ms: int, key: int, received_ms: int) -> None:
        """Keep what tells this reading from its duplicates, and that the device was heard of."""
        self.seen.remember(time_ms, key)
        if received_ms > self.last_seen_ms:
            self.last_seen_ms = received_ms

    # --- registration -----------------------------------------------------------------------------------

    def _register(self, message: Register, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
        old = self.registration
        if old is not None and old.status == ACTIVE:
            return Refusal("conflict", f"device {self.id} exists already")
        self.registration = Registration(
            self.id,
            message.device_type,
            ACTIVE,
            message.location,
            message.metadata,
            old.registered_ms if old is not None else now_ms,
            now_ms,
            message.isolation,
        )
        self.furnish(around)
        effects.registrations.append(self.registration)
        self.event("registered", now_ms, self.registration, effects)
        self.twin.surrounded(self, now_ms, effects)
        self._refresh(around, now_ms, effects)
        return self._answer(self.info(now_ms, around))

    def _patch(self, message: Patch, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
        old = self.registration
        if old is None:
            return self._not_found()
        if old.status != ACTIVE:
            return Refusal("conflict", f"device {self.id} is decommissioned; register it again first")
        metadata, downlink = old.metadata, self.commands.downlink
        if message.metadata is not None:
            metadata = merge_patch(metadata, message.metadata)
        changed = msgspec.structs.replace(
            old,
            device_type=message.device_type if message.device_type is not None else old.device_type,
            location=message.location if message.location is not None else old.location,
            metadata=metadata,
            isolation=old.isolation if message.isolation is None else message.isolation or None,
        )
        if changed == old:
            return self._answer(self.info(now_ms, around))
        self.registration = msgspec.structs.replace(changed, updated_ms=now_ms)
        if self.registration.device_type != old.device_type:
            self.furnish(around)
            self._refresh(around, now_ms, effects)
        elif metadata != old.metadata:
            # Rules may go by it.
            self._refresh(around, now_ms, effects)
        of_profile = around.profiles.of(self.registration.device_type).downlink
        self.commands.redirect(self, downlink_of(of_profile, metadata), now_ms, effects)
        if self.commands.downlink != downlink:
            self.twin.surrounded(self, now_ms, effects)
        effects.registrations.append(self.registration)
        self.event("updated", now_ms, self.registration, effects)
        if metadata != old.metadata:
            self.watch.own_changed(self, "metadata", now_ms, effects)
        return self._answer(self.info(now_ms, around))

    def _decommission(self, now_ms: int, effects: Commit) -> Outcome:
        old = self.registration
        if old is None:
            return self._not_found()
        if old.status == DECOMMISSIONED:
            return ACCEPTED
        self.watch.end(self, now_ms, "device_decommissioned", effects)
        if self.detection is not None:
            self.detection.end(self, "device_decommissioned", effects)
        if self.modelled is not None:
            self.modelled.end(self, "device_decommissioned", effects)
            self.modelled = None
        self.commands.end_all(self, "device_decommissioned", now_ms, effects)
        self.twin.end(self, now_ms, effects)
        self.registration = msgspec.structs.replace(old, status=DECOMMISSIONED, updated_ms=now_ms)
        effects.registrations.append(self.registration)
        self.event("decommissioned", now_ms, self.registration, effects)
        return ACCEPTED

    def furnish(self, around: Surroundings) -> None:
        """Fit windows and bounds to the profile of the registered type, keeping the windows that stay."""
        assert self.registration is not None
        profile = around.profiles.of(self.registration.device_type)
        self._profile_windows = profile.windows
        self._profile_detectors = profile.detectors
        self.fit_windows(around.rules)
        self.fit_detection(around.rules)
        self.lateness_ms = round(profile.lateness_s * 1000)
        self.max_metrics = profile.max_metrics
        self.schema = profile.schema
        self.retention_class = profile.retention_class
        self.commands.downlink = downlink_of(profile.downlink, self.registration.metadata)
        self.watch.book = None

    def fit_windows(self, book: RuleBook) -> None:
        """Have the windows of the profile and those that rules need besides; a new one begins empty.

        Their order is the same for all devices that share rules and profile, as compiled conditions expect.
        """
        assert self.registration is not None
        wanted = list(self._profile_windows)
        for spec in book.windows(self.id, self.registration.device_type, self.metadata):
            if not any(same_length(spec.length_s, other.length_s) for other in wanted):
                wanted.append(spec)
        if [window.spec for window in self.windows] == wanted:
            return
        kept = {window.spec: window for window in self.windows}
        self.windows = tuple(kept.get(spec) or Window(spec) for spec in wanted)
        if self.newest_ms != NEVER_MS:
            for window in self.windows:
                window.advance(self.newest_ms)

    def fit_detection(self, book: RuleBook) -> None:
        """Have the detectors of the profile and those that rules need besides; a new one begins empty."""
        assert self.registration is not None
        asked = book.detectors(self.id, self.registration.device_type, self.metadata)
        self.detection = fitted(self.detection, self._profile_detectors, asked, self.metrics)

    def forget_arrangement(self) -> None:
        """Take names anew at the next reading: the metric set is another."""
        self._arranged = None

    def refresh(self, around: Surroundings, now_ms: int, effects: Commit) -> None:
        """Bind the rules anew."""
        self._refresh(around, now_ms, effects)

    def _refresh(self, around: Surroundings, now_ms: int, effects: Commit) -> None:
        if self.registration is not None and self.registration.status == ACTIVE:
            self.watch.bind(self, around.rules, now_ms, effects)

    # --- commands ---------------------------------------------------------------------------------------

    def _command(self, message: Message, now_ms: int, effects: Commit) -> Outcome:
        commands = self.commands
        if self.registration is None:
            return self._not_found()
        match message:
            case SendCommand():
                if self.registration.status != ACTIVE:
                    return Refusal("conflict", f"device {self.id} is decommissioned; register it again first")
                return commands.send(self, message, now_ms, effects)
            case ClaimCommand():
                return commands.claim(self, message, now_ms, effects)
            case CommandReply():
                return commands.reply(self, message, now_ms, effects)
            case CommandUndelivered():
                return commands.undelivered(self, message, now_ms, effects)
            case CancelCommand():
                return commands.cancel(self, message, now_ms, effects)
            case TakeCommands():
                return commands.take(self, now_ms, effects)
            case PresenceSaid(online=online):
                commands.presence(self, online, now_ms, effects)
                self.twin.presence(self, online, now_ms, effects)
                return ACCEPTED
            case _:
                raise TypeError(f"no turn for {type(message).__name__}")

    def _twin(self, message: Message, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
        twin = self.twin
        if self.registration is None:
            return self._not_found()
        match message:
            case GetTwin():
                return Answer(twin.info(self.id))
            case ChangeTwin():
                if self.registration.status != ACTIVE:
                    return Refusal("conflict", f"device {self.id} is decommissioned; register it again first")
                versions = twin.versions
                outcome = twin.change(self, message, now_ms, effects)
                if twin.versions != versions:
                    self.twin_changed(around, now_ms, effects)
                return outcome
            case ClaimTwin():
                return twin.claim(self)
            case TwinTold(version=version):
                return twin.told(self, version, now_ms, effects)
            case TwinUntold(version=version, final=final):
                return twin.untold(self, version, final, now_ms, effects)
            case TakeTwin():
                return twin.take(self, now_ms, effects)
            case _:
                raise TypeError(f"no turn for {type(message).__name__}")

    def twin_changed(self, around: Surroundings, now_ms: int, effects: Commit) -> None:
        """Judge the rules that compare with the twin."""
        if self.watch.book is not around.rules:
            self._refresh(around, now_ms, effects)
        self.watch.own_changed(self, "twin", now_ms, effects)

    def _act_on_alarm(self, message: ActOnAlarm, now_ms: int, effects: Commit) -> Outcome:
        if self.registration is None:
            return self._not_found()
        problem = self.watch.act(self, message, now_ms, effects)
        return ACCEPTED if problem is None else Refusal("conflict", problem)

    def _report(self, anomaly: Anomaly, effects: Commit) -> Outcome:
        if self.registration is None:
            return self._not_found()
        if anomaly.device_id != self.id:
            return Refusal("invalid", f"an anomaly of {anomaly.device_id} told to {self.id}")
        if self.registration.status != ACTIVE and anomaly.end_ms is None:
            return Refusal("conflict", f"device {self.id} is decommissioned")
        kind, time_ms = "anomaly_changed", anomaly.peak_ms
        if anomaly.end_ms is not None:
            kind, time_ms = "anomaly_ended", anomaly.end_ms
        elif anomaly.readings == 1:
            kind, time_ms = "anomaly", anomaly.start_ms
        effects.anomalies.append(anomaly)
        self.event(kind, time_ms, anomaly, effects)
        return ACCEPTED

    # --- small leaves -----------------------------------------------------------------------------------

    def _window_info(self, message: GetWindow) -> Outcome:
        if self.registration is None:
            return self._not_found()
        info = self.window(message.metric, message.length_s)
        if info is None:
            return Refusal("not_found", f"device {self.id} has no such window of a number {message.metric}")
        return Answer(info)

    def _answer(self, value: object) -> Outcome:
        return self._not_found() if value is None else Answer(value)

    def _not_found(self) -> Refusal:
        return Refusal("not_found", f"no device {self.id} is registered")

    def event(self, kind: str, time_ms: int, body: object, effects: Commit) -> None:
        """Add an event to the effects, at the shard's next offset."""
        shard = self.shard
        shard.head += 1
        effects.events.append(
            EventRow(
                *(shard.number, shard.head, self.key, time_ms, kind, msgspec.json.encode(body)),
                self.retention_class,
            )
        )
