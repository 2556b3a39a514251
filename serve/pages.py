"""What lists and data answer with: the values beyond those that `actors` has already."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from fastapi import Request, Response
from msgspec import Meta

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.messages import (
    DeviceInfo,
    Latest,
    Quality,
    ReadingFlag,
    Value,
    WindowInfo,
    quality_of,
)
from sensorium.actors.records import Alarm, Anomaly, Command, Registration
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.twin import TwinInfo
from sensorium.actors.twin_documents import Document
from sensorium.actors.written_rules import WrittenRule
from sensorium.serve.query import cursor_out, link_header
from sensorium.storage.deliveries import StoredDelivery

JSON = "application/json"
_T = TypeVar("_T")

encode = msgspec.json.Encoder().encode


class Page(msgspec.Struct, Generic[_T], frozen=True):
    """Part of a list; `next` is the cursor of what follows, null at the end."""

    items: list[_T]
    next: str | None


class DevicePage(Page[Registration], frozen=True):
    """Devices in order of their id."""


class AlarmPage(Page[Alarm], frozen=True):
    """Alarms, newest first."""


class AnomalyPage(Page[Anomaly], frozen=True):
    """Anomalies, newest first by when they began."""


class CommandPage(Page[Command], frozen=True):
    """Commands, newest first."""


class RuleWarning(msgspec.Struct, frozen=True):
    """Something about a rule that is probably a mistake; `pointer` says where, as in a problem's errors."""

    detail: str
    pointer: str


class SavedRule(Rule, frozen=True, kw_only=True):
    """A rule as it was stored, and what is odd about it. A rule with warnings works all the same."""

    warnings: tuple[RuleWarning, ...] = ()


class RuleList(msgspec.Struct, frozen=True):
    """All rules."""

    items: list[Rule]


class SelectedDevices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices for which all holds that is given; `metadata` must be contained in the device's."""

    device_type: str | None = None
    device_ids: Annotated[list[str], Meta(max_length=10_000)] | None = None
    metadata: dict[str, Any] = {}
    status: str | None = "active"


class BacktestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A draft rule and the past to try it on.

    `since` and `until` are ISO 8601, epoch ms, or so long ago (such as "30d"); `until` is now by default.
    The rule may be a `WrittenRule`, too. `replaces` is the id of a rule to compare with.
    `select` narrows what the rules' scopes cover.
    """

    rule: RuleSpec
    since: str | int
    until: str | int | None = None
    replaces: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    select: SelectedDevices = SelectedDevices()


class TwinChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall become of either document of a twin; the other stays."""

    desired: dict[str, Any] | None = None
    reported: dict[str, Any] | None = None


class PastTwin(msgspec.Struct, frozen=True):
    """A twin as it was at a time, with what was desired and not reported so."""

    device_id: str
    at_ms: int
    desired: Document
    reported: Document
    delta: dict[str, Any]


class TwinChangeItem(msgspec.Struct, frozen=True):
    """A document of a twin, "desired" or "reported", came to this version by a merge patch."""

    document: str
    version: int
    time_ms: int
    by: str
    patch: dict[str, Any]


class TwinChangePage(Page[TwinChangeItem], frozen=True):
    """Changes of a twin, newest first."""


class DeliveryPage(Page[StoredDelivery], frozen=True):
    """What was sent about alarms, newest first."""


class Retried(msgspec.Struct, frozen=True):
    """How many dead deliveries are tried again."""

    retried: int


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A webhook. Without `secret` it keeps the one that it has; with none at all, nothing is signed."""

    url: Annotated[str, Meta(min_length=1, max_length=2_000)]
    secret: Annotated[str, Meta(min_length=16, max_length=256)] | None = None
    timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    max_attempts: Annotated[int, Meta(ge=1, le=50)] = 12
    max_body_bytes: Annotated[int, Meta(ge=256, le=1 << 20)] = 65_536
    enabled: bool = True


class WebhookItem(msgspec.Struct, frozen=True):
    """A webhook as people may see it: path and query of its address are hidden, and so is the secret."""

    name: str
    url: str
    signed: bool
    timeout_s: float
    max_attempts: int
    max_body_bytes: int
    enabled: bool
    updated_ms: int


class WebhookList(msgspec.Struct, frozen=True):
    """All webhooks."""

    items: list[WebhookItem]


class RuleVersionItem(msgspec.Struct, frozen=True):
    """What a rule said from then on, and who said so, where that was told."""

    rule_id: str
    version: int
    spec: RuleSpec
    changed_ms: int
    changed_by: str


class RuleVersionList(msgspec.Struct, frozen=True):
    """Versions, newest first."""

    items: list[RuleVersionItem]


class DeadLetterItem(msgspec.Struct, frozen=True):
    """A message that could not be used. `payload` holds its first bytes, as text where they are UTF-8 and in
    base64 otherwise (`payload_encoding` says which); `content` is its format, "" where that is not known."""

    id: int
    received_ms: int
    device_id: str
    source: str
    address: str
    reason: str
    detail: str
    size_bytes: int
    payload: str
    payload_encoding: str
    content: str = ""


class DeadLetterPage(Page[DeadLetterItem], frozen=True):
    """Dead letters, newest first."""


class Replayed(msgspec.Struct, frozen=True):
    """A dead letter that could be used now: "accepted", or "duplicate" when it was stored before."""

    id: int
    status: str


class ReplayedLetters(msgspec.Struct, frozen=True):
    """How many could be used now, and why the others stay, by id."""

    replayed: int
    stay: dict[str, str]


class ReadingItem(msgspec.Struct, frozen=True):
    """A reading: event time, values by metric, and `late` when it was older than the lateness bound.

    `quality` is what the profile's schema thought of it: "good" or "suspect".
    """

    time_ms: int
    values: dict[str, Value]
    late: bool = False
    quality: Quality = Quality.GOOD


def reading_item(point: Any) -> ReadingItem:
    """From a point of the history."""
    return ReadingItem(
        point.time_ms, point.values, bool(point.flags & ReadingFlag.LATE), quality_of(point.flags)
    )


class ReadingPage(msgspec.Struct, frozen=True):
    """Readings of a device by event time; `next` is the cursor of what follows, null at the end."""

    device_id: str
    items: list[ReadingItem]
    next: str | None


class BucketItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The aggregate of each metric over the interval that starts at `start_ms`.

    `filled`: nothing was measured in it; the values are what was asked to stand there.
    """

    start_ms: int
    values: Mapping[str, Value | None]
    filled: bool = False


class AggregatePage(msgspec.Struct, frozen=True):
    """Aggregates of a device's metrics; without an interval, one bucket over the whole range.

    `source` is "raw", the level of the rollups ("1m", "1h", "1d"), "influxdb" or "mixed"; `approximate` marks
    estimates.
    """

    device_id: str
    aggregation: str
    interval_s: float | None
    items: list[BucketItem]
    source: str = "raw"
    approximate: bool = False
    timezone: str | None = None


class SeriesMetric(msgspec.Struct, frozen=True):
    """Points of a metric in order of time: milliseconds since 1970 UTC, and the value."""

    metric: str
    points: list[tuple[int, float]]


class Series(msgspec.Struct, frozen=True):
    """What a chart of a device shows; `source` as of aggregates."""

    device_id: str
    source: str
    items: list[SeriesMetric]


class TypeBucketItem(msgspec.Struct, frozen=True):
    """The aggregate over all devices, and how many of them had readings: 0 where the interval was filled."""

    start_ms: int
    value: Value | None
    devices: int


class TypeAggregate(msgspec.Struct, frozen=True):
    """Aggregates of one metric over the devices that were chosen; the rest as of one device."""

    device_type: str | None
    metric: str
    aggregation: str
    interval_s: float | None
    items: list[TypeBucketItem]
    source: str = "raw"
    approximate: bool = False
    timezone: str | None = None


class AggregateGroup(msgspec.Struct, frozen=True):
    """The devices that have a value of `group_by` in common; "" is the group of those without it."""

    group: str
    devices: int
    items: list[TypeBucketItem]
    source: str = "raw"


class GroupedAggregate(msgspec.Struct, frozen=True):
    """A series for each group, in order of the groups."""

    group_by: str
    metric: str
    aggregation: str
    interval_s: float | None
    groups: list[AggregateGroup]
    timezone: str | None = None


class AlarmEventItem(msgspec.Struct, frozen=True):
    """Something that happened to an alarm, such as "alarm_raised" or "alarm_comment", with what it left."""

    time_ms: int
    kind: str
    body: dict[str, Any]


class AlarmLife(msgspec.Struct, frozen=True):
    """An alarm's events, oldest first."""

    items: list[AlarmEventItem]


class EventItem(msgspec.Struct, frozen=True):
    """Something that happened to a device, such as "registered", "alarm_raised" or "command_acked"."""

    time_ms: int
    kind: str
    body: dict[str, Any]


class EventPage(Page[EventItem], frozen=True):
    """What happened to a device, in the order that was asked for."""


class ConnectionItem(msgspec.Struct, frozen=True):
    """A device came, or went, at that time."""

    time_ms: int
    online: bool


class ConnectionPage(msgspec.Struct, frozen=True):
    """When a device came and went; `next` is the cursor of what follows, null at the end."""

    items: list[ConnectionItem]
    next: str | None


class ProjectionItem(msgspec.Struct, frozen=True):
    """A projection: "running" or "paused", the commit time from which on it reads, and entries behind."""

    name: str
    state: str
    read_from_ms: int
    rewinding: bool
    lag_entries: int


class ProjectionList(msgspec.Struct, frozen=True):
    """All projections that have ever run."""

    items: list[ProjectionItem]


class TableUse(msgspec.Struct, frozen=True):
    """Bytes of a table with its indexes, and those of each retention class where it is kept by class."""

    table: str
    bytes: int
    by_class: dict[str, int]


class RetentionClassItem(msgspec.Struct, frozen=True):
    """For how many days what is kept of devices of these types; null: for ever."""

    retention_class: int
    device_types: list[str]
    raw_days: int | None
    event_days: int | None
    rollup_1m_days: int | None
    rollup_1h_days: int | None
    rollup_1d_days: int | None


class DiskUse(msgspec.Struct, frozen=True):
    """The disk that the embedded database is on; `low`: room should be made."""

    free_bytes: int
    total_bytes: int
    low: bool


class StorageUse(msgspec.Struct, frozen=True):
    """How much the databases keep. Empty until they were looked at for the first time."""

    bytes: int
    tables: list[TableUse]
    classes: list[RetentionClassItem]
    disk: DiskUse | None = None


class ItemResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one reading: "accepted", "duplicate" (stored before) or "refused", with the reason."""

    status: str
    code: str = ""
    detail: str = ""


class IngestResult(msgspec.Struct, frozen=True):
    """What became of a request's readings, in their order; all but the refused are committed."""

    accepted: int
    duplicates: int
    results: list[ItemResult]
    refused: int = 0


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


class Readiness(msgspec.Struct, frozen=True):
    """Whether the platform serves, and what each check found: "ok" or the reason why not."""

    status: str
    checks: dict[str, str]


class NodeItem(msgspec.Struct, frozen=True):
    """A machine of the cluster. `resources` are Ray's; memory counts in bytes.

    One that is `draining` gets no hosts, and those it has hand over to others.
    """

    node_id: str
    address: str
    alive: bool
    draining: bool
    resources: dict[str, float]
    hosts: list[str]


class NodeList(msgspec.Struct, frozen=True):
    """All of them."""

    items: Sequence[NodeItem]


class HostItem(msgspec.Struct, frozen=True):
    """A process that hosts devices. `state` is "serving" or "leaving": then it hands over and ends.

    `commit_lag_s` is for how long it has not been able to commit, `timers_lag_s` how late its next timer is.
    """

    name: str
    state: str
    node_id: str
    pid: int
    incarnation: int
    shards: int
    devices_active: int
    activations: int
    lease_age_s: float
    timers_lag_s: float
    commit_lag_s: float
    device: str | None = None
    """Whose own process it is; null for one with many devices."""


class IsolatedDevice(msgspec.Struct, frozen=True):
    """A device that has, or is to have, a process of its own.

    `state` is "own" once it is in it; before, "starting" while the process comes up or waits for what it
    needs, "moving", or "crowded" where no dedicated shard is left; "returning" while it goes back among the
    others. It is served in each of these.
    """

    device_id: str
    process: str
    state: str


class HostList(msgspec.Struct, frozen=True):
    """Those that answer, how many there should be, and whether each has the shards it should have.

    `wanted` does not count the processes of isolated devices, of which there are `max_isolated` at most.
    """

    items: Sequence[HostItem]
    wanted: int
    balanced: bool
    isolated: Sequence[IsolatedDevice] = ()
    max_isolated: int = 0


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The value as JSON."""
    return Response(encode(value), status, headers, JSON)


def page_response(page_type: Any, request: Request, kind: str, items: Any, after: Any) -> Response:
    """A page of a list, its cursor in the body and in the `Link` header."""
    cursor = cursor_out(kind, after) if after is not None else None
    return json_response(page_type(list(items), cursor), headers=link_header(request, cursor))


VALUES: tuple[type, ...] = (
    DevicePage, DeviceInfo, Latest, WindowInfo, AlarmPage, Alarm, AlarmLife, EventPage, ConnectionPage,
    AnomalyPage, Anomaly,
    CommandPage,
    Command, RuleList, Rule, SavedRule, WrittenRule, DeadLetterPage, DeadLetterItem,
    Replayed, ReplayedLetters, ReadingPage, AggregatePage, TypeAggregate,
    GroupedAggregate, Series,
    ProjectionList, ProjectionItem, StorageUse, DiskUse, TableUse, RetentionClassItem,
    IngestResult, Health, Readiness, NodeItem, NodeList, HostItem, HostList,
    IsolatedDevice,
    BacktestBody, BacktestResult, TwinInfo, Document, TwinChange, PastTwin, TwinChangePage,
    DeliveryPage, StoredDelivery, Retried, WebhookBody, WebhookItem, WebhookList, RuleVersionList,
)  # fmt: skip
"""Everything that is answered, for the API's document."""
