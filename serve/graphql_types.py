"""The types of the GraphQL schema: the platform's own values under their own names, in camel case."""

from typing import Any

import msgspec
import strawberry
from strawberry.scalars import JSON

from sensorium.actors.messages import DeviceInfo, Latest, Quality, ReadingFlag, quality_of
from sensorium.actors.rules import Rule as RuleRecord
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_limits import checked_first
from sensorium.serve.graphql_scalars import EpochMs
from sensorium.serve.graphql_twins import Twin, twin_of
from sensorium.serve.pages import SavedRule


@strawberry.type(description="Where a device stands.")
class Location:
    latitude: float | None
    longitude: float | None
    address: str | None


@strawberry.type(description="The newest value of a metric by event time.")
class MetricValue:
    metric: str
    value: JSON
    time_ms: EpochMs
    quality: str


@strawberry.type(
    description="One message of a device: values by metric, whether it came too late, its quality."
)
class Reading:
    time_ms: EpochMs
    values: JSON
    late: bool
    quality: str


@strawberry.type(description="An alarm as it stands.")
class Alarm:
    alarm_id: str
    device_id: str
    device_type: str
    rule_id: str
    rule_name: str
    rule_version: int
    severity: str
    state: str
    metric: str
    value: JSON
    detail: str
    start_ms: EpochMs
    acknowledged: bool
    end_ms: EpochMs | None
    end_value: JSON | None
    end_reason: str | None
    acknowledged_ms: EpochMs | None
    acknowledged_by: str | None
    assignee: str | None
    shelved_until_ms: EpochMs | None
    escalated: int
    changed_ms: EpochMs | None
    met: int
    readings: int
    last_met_ms: EpochMs | None
    last_reading_ms: EpochMs | None

    @strawberry.field(description="The device that it is about.")
    async def device(self, info: Info) -> "Device | None":
        found: Device | None = _as(await info.context.registrations.load(self.device_id))
        return found


@strawberry.type(description="What a feature has to do with a model's score: its share, 0 to 1.")
class Contribution:
    feature: str
    metric: str
    share: float
    value: float
    expected: float


@strawberry.type(description="Readings of a metric that a detector found odd, from the first to the last.")
class Anomaly:
    anomaly_id: str
    device_id: str
    device_type: str
    metric: str
    detector: str
    severity: str
    score: float
    value: float
    expected: float
    readings: int
    start_ms: EpochMs
    peak_ms: EpochMs
    end_ms: EpochMs | None
    end_reason: str | None
    peers: int | None
    explanation: list[Contribution] | None

    @strawberry.field(description="The device that it was found at.")
    async def device(self, info: Info) -> "Device | None":
        found: Device | None = _as(await info.context.registrations.load(self.device_id))
        return found


@strawberry.type(description="A command came into a state.")
class CommandStep:
    state: str
    time_ms: EpochMs
    attempt: int
    reason: str | None


@strawberry.type(description="A command as it stands, with the way it has come.")
class Command:
    command_id: str
    device_id: str
    command: str
    parameters: JSON
    state: str
    created_ms: EpochMs
    updated_ms: EpochMs
    expires_ms: EpochMs
    attempt: int
    retries: int
    reason: str | None
    result: JSON | None
    job_id: str | None
    steps: list[CommandStep]
    timeout_ms: int
    number: int
    ready: bool
    due_ms: EpochMs | None
    downlink: str

    @strawberry.field(description="The device that is told.")
    async def device(self, info: Info) -> "Device | None":
        found: Device | None = _as(await info.context.registrations.load(self.device_id))
        return found


@strawberry.type(
    description="Figures of a metric over a rolling window; `startMs` is included, `endMs` is not."
)
class Window:
    metric: str
    start_ms: EpochMs
    end_ms: EpochMs
    count: int
    sum: float | None
    mean: float | None
    stddev: float | None
    min: float | None
    max: float | None
    first: float | None
    last: float | None


@strawberry.type(description="A device as it is registered, and what is known of it beside.")
class Device:
    device_id: str
    device_type: str
    status: str
    location: Location | None
    metadata: JSON
    registered_ms: EpochMs
    updated_ms: EpochMs

    @strawberry.field(description="online, offline or never_seen; null once the device is gone.")
    async def connectivity(self, info: Info) -> str | None:
        found = await _asked(self, info)
        return None if found is None else found.connectivity

    @strawberry.field(description="When something of it was received last.")
    async def last_seen_ms(self, info: Info) -> EpochMs | None:
        found = await _asked(self, info)
        return None if found is None or found.last_seen_ms is None else EpochMs(found.last_seen_ms)

    @strawberry.field(description="How many alarms stand.")
    async def active_alarms(self, info: Info) -> int:
        found = await _asked(self, info)
        return 0 if found is None else found.active_alarms

    @strawberry.field(description="process where it is to have one of its own, else shared; null once gone.")
    async def isolation(self, info: Info) -> str | None:
        found = await _asked(self, info)
        return None if found is None else found.isolation

    @strawberry.field(description="device where its isolation was said of it, profile where of its type.")
    async def isolation_by(self, info: Info) -> str | None:
        found = await _asked(self, info)
        return None if found is None else found.isolation_by

    @strawberry.field(description="The Ray actor of its own that it is in; null among others.")
    async def process(self, info: Info) -> str | None:
        found = await _asked(self, info)
        return None if found is None else found.process

    @strawberry.field(description="The newest value of each metric, from the device itself.")
    async def latest(self, info: Info, metrics: list[str] | None = None) -> list[MetricValue]:
        found: Latest | None = await info.context.latest.load(self.device_id)
        if found is None:
            return []
        return [
            MetricValue(metric=name, value=value.value, time_ms=EpochMs(value.time_ms), quality=value.quality)  # type: ignore[arg-type]
            for name, value in found.metrics.items()
            if metrics is None or name in metrics
        ]

    @strawberry.field(
        description="A number metric over a window of `lengthS` seconds, or the profile's first, from the"
        " device itself; null where there is none."
    )
    async def window(self, info: Info, metric: str, length_s: float | None = None) -> Window | None:
        return _as(await info.context.windows.load((self.device_id, metric, length_s)))  # type: ignore[no-any-return]

    @strawberry.field(description="Its twin, from the device itself; null once the device is gone.")
    async def twin(self, info: Info) -> Twin | None:
        found = await info.context.twins.load(self.device_id)
        return None if found is None else twin_of(found)

    @strawberry.field(description="The newest readings, newest first, as far back as the log goes.")
    async def readings(
        self,
        info: Info,
        first: int = 10,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        quality: Quality | None = None,
    ) -> list[Reading]:
        asked = (self.device_id, start_ms, end_ms, checked_first(first), quality)
        points = await info.context.readings.load(asked)
        return [reading_of(point) for point in points]

    @strawberry.field(description="Its newest alarms, newest first.")
    async def alarms(self, info: Info, state: str | None = None, first: int = 10) -> list[Alarm]:
        found = await info.context.alarms.load((self.device_id, state, checked_first(first)))
        return [_as(alarm) for alarm in found]

    @strawberry.field(description="Its newest commands, newest first.")
    async def commands(self, info: Info, state: str | None = None, first: int = 10) -> list[Command]:
        found = await info.context.commands.load((self.device_id, state, checked_first(first)))
        return [_as(command) for command in found]


@strawberry.type(description="Something about a rule that is probably a mistake, and where.")
class RuleWarning:
    detail: str
    pointer: str


@strawberry.type(
    description="A stored rule; `spec` is as in the REST API. `warnings` are told to who writes it only."
)
class Rule:
    rule_id: str
    version: int
    name: str
    enabled: bool
    severity: str
    spec: JSON
    created_ms: EpochMs
    updated_ms: EpochMs
    warnings: list[RuleWarning]


@strawberry.type(description="What a rule said from then on, and who said so.")
class RuleVersion:
    rule_id: str
    version: int
    spec: JSON
    changed_ms: EpochMs
    changed_by: str


@strawberry.type(description="Something that happened, such as alarm_raised, and what it left.")
class Event:
    time_ms: EpochMs
    kind: str
    body: JSON


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class EventPage:
    items: list[Event]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class DevicePage:
    items: list[Device]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class AlarmPage:
    items: list[Alarm]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class AnomalyPage:
    items: list[Anomaly]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class CommandPage:
    items: list[Command]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class ReadingPage:
    items: list[Reading]
    next: str | None


@strawberry.type(description="The aggregate of each metric over the interval that starts at `startMs`.")
class Bucket:
    start_ms: EpochMs
    values: JSON


@strawberry.type(description="The aggregate over all devices of a type, and how many of them had readings.")
class TypeBucket:
    start_ms: EpochMs
    value: JSON | None
    devices: int


@strawberry.type(
    description="Something that happened, as in the live feed; which fields it has goes by `topic`."
)
class Change:
    topic: str
    id: str
    device_id: str
    device_type: str
    time_ms: EpochMs
    committed_ms: EpochMs
    event: str | None
    values: JSON | None
    late: bool
    quality: str | None
    online: bool | None
    body: JSON | None


@strawberry.type(description="`changes`, or a `gap` of `dropped` ones behind `cursor`; or only a `cursor`.")
class LiveMessage:
    kind: str
    cursor: str
    dropped: int
    items: list[Change]


def _as(record: Any) -> Any:
    """Records have the fields of their types already, and are taken for them."""
    return record


def reading_of(point: Any) -> Reading:
    """From a point of the history."""
    return Reading(
        time_ms=EpochMs(point.time_ms),
        values=point.values,
        late=bool(point.flags & ReadingFlag.LATE),
        quality=quality_of(point.flags),
    )


async def _asked(device: Device, info: Info) -> DeviceInfo | None:
    """What it says of itself; None once it is gone."""
    found: DeviceInfo | None = await info.context.infos.load(device.device_id)
    return found


def event_of(event: Any) -> Event:
    """From an event of the log."""
    time_ms, kind, body = event
    return Event(time_ms=EpochMs(time_ms), kind=kind, body=body)


def version_of(version: Any) -> RuleVersion:
    """From a stored version."""
    rule_id, number, spec, changed_ms, changed_by = version
    return RuleVersion(
        rule_id=rule_id,
        version=number,
        spec=msgspec.to_builtins(spec),
        changed_ms=EpochMs(changed_ms),
        changed_by=changed_by,
    )


def rule_of(rule: RuleRecord) -> Rule:
    """From a stored rule."""
    spec = rule.spec
    told = rule.warnings if isinstance(rule, SavedRule) else ()
    return Rule(
        rule_id=rule.rule_id,
        version=rule.version,
        name=spec.name,
        enabled=spec.enabled,
        severity=str(spec.severity),
        spec=msgspec.to_builtins(spec),
        created_ms=EpochMs(rule.created_ms),
        updated_ms=EpochMs(rule.updated_ms),
        warnings=[RuleWarning(detail=one.detail, pointer=one.pointer) for one in told],
    )


def change_of(item: dict[str, Any]) -> Change:
    """From an item of the live feed."""
    common = ("topic", "id", "device_id", "device_type", "time_ms", "committed_ms")
    given = {name: item[name] for name in common}
    rest = {name: value for name, value in item.items() if name not in given}
    event, values, online = rest.pop("event", None), rest.pop("values", None), rest.pop("online", None)
    late = rest.pop("late", False)
    quality = rest.pop("quality", None if values is None else Quality.GOOD)
    named = (rest.get(name) for name in ("alarm", "anomaly", "device", "twin"))
    body: Any = next(filter(None, named), rest or None)
    return Change(**given, event=event, values=values, late=late, quality=quality, online=online, body=body)
