"""What the API needs from the rest of the platform, as Protocols: an app is built over any that fit."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.backtesting import Asked, Progress
from sensorium.actors.data_quality import Arrivals
from sensorium.actors.errors import Unavailable
from sensorium.actors.maintenance import Maintenance
from sensorium.actors.messages import Message, Outcome, Quality
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Alarm, Command, Registration
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.twin_documents import Document
from sensorium.ingest.decode import Bounds
from sensorium.ingest.lorawan.adapter import LorawanAdapter
from sensorium.ingest.rate_limit import RateLimiter
from sensorium.ingest.replay import Replay
from sensorium.serve.command_waits import CommandWaits
from sensorium.serve.feed import LiveFeed
from sensorium.serve.pages import HostList, NodeItem
from sensorium.storage.bulk_jobs import BulkJob
from sensorium.storage.deliveries import StoredDelivery
from sensorium.storage.erasures import Erasure
from sensorium.storage.fleet_figures import Activation, AlarmTimes, Energy
from sensorium.storage.history import Buckets
from sensorium.storage.maintenance import StoredMaintenance
from sensorium.storage.past_states import PastState
from sensorium.storage.projection import ProjectionStatus
from sensorium.storage.rule_versions import RuleVersion
from sensorium.storage.webhooks import Webhook, WebhookSpec

Done = Callable[[Any, Outcome], None]
Check = Callable[[], Awaitable[None]]
"""Raises when what it checks is not there; the error's text says why."""


class Asks(Protocol):
    """The way to the devices."""

    async def ask(self, message: Message, timeout_s: float) -> Any:
        """The answer, after the commit of what the message changed.

        Raises `Refused`, `Unavailable` or `Overloaded`.
        """
        ...

    def check(self) -> None:
        """Raises what broke it, if a fault of ours did."""
        ...

    def failing(self, device_id: str) -> Unavailable | None:
        """Why messages for this device do not get through at present; None when they do."""
        ...

    @property
    def pending(self) -> int:
        """Messages submitted whose outcome is not known yet."""
        ...


class TakesTelemetry(Protocol):
    """The ingest pipeline: HTTP is one more way in."""

    def telemetry(
        self,
        address: str,
        device_id: str,
        payload: bytes,
        received_ms: int,
        redelivery: int | None,
        done: Done,
        token: Any,
        *,
        redelivered: bool = False,
    ) -> None:
        """Decode and submit; `done(token, outcome)` is called once, after the commit."""
        ...


class DevicePage(Protocol):
    """Registrations in order of id; `next` is the `after` of the page that follows, None at the end."""

    @property
    def items(self) -> Sequence[Registration]: ...
    @property
    def next(self) -> str | None: ...


class ReadsDevices(Protocol):
    """The read side of registrations."""

    async def page(self, which: Filter, after: str | None, limit: int) -> DevicePage: ...
    async def get(self, device_id: str) -> Registration | None: ...
    async def select(self, which: Filter) -> Sequence[str]: ...


class ReadsHistory(Protocol):
    """Readings and their aggregates. Times are event times: start included, end not."""

    async def readings(
        self,
        device_id: str,
        start_ms: int | None,
        end_ms: int | None,
        metrics: Sequence[str] | None,
        limit: int,
        order: str,
        after: Any | None,
        quality: Quality | None = None,
    ) -> Any: ...
    async def newest_kinds(self, device_ids: Sequence[str]) -> Sequence[tuple[str, str]]: ...
    async def kinds(
        self, device_ids: Sequence[str], start_ms: int | None, end_ms: int | None
    ) -> Sequence[tuple[str, str]]: ...
    async def aggregate(
        self,
        device_id: str,
        start_ms: int | None,
        end_ms: int | None,
        metrics: Sequence[str] | None,
        aggregation: str,
        interval_s: float | None,
        limit: int,
        order: str,
        zone: str | None = None,
        quality: Quality | None = None,
    ) -> Buckets[Any]: ...
    async def aggregate_type(
        self,
        device_type: str,
        metric: str,
        start_ms: int | None,
        end_ms: int | None,
        aggregation: str,
        interval_s: float | None,
        zone: str | None = None,
        device_ids: Sequence[str] | None = None,
    ) -> Buckets[Any]: ...


class KeepsRules(Protocol):
    """The rules as people change them; hosts hear of it by themselves."""

    async def create(self, spec: RuleSpec, by: str = ...) -> Rule: ...
    async def replace(self, rule_id: str, spec: RuleSpec, by: str = ...) -> Rule | None: ...
    async def delete(self, rule_id: str) -> bool: ...
    async def get(self, rule_id: str) -> Rule | None: ...
    async def list(self) -> Sequence[Rule]: ...


class ReadsRuleVersions(Protocol):
    """What rules said, of deleted ones too."""

    async def get(self, rule_id: str, version: int) -> RuleVersion | None: ...
    async def list(self, rule_id: str) -> Sequence[RuleVersion]: ...


class ReadsDeliveries(Protocol):
    """What was sent about alarms, newest first; dead ones can be tried again."""

    async def page(
        self,
        state: str | None,
        kind: str | None,
        queue: str | None,
        rule_id: str | None,
        alarm_id: str | None,
        device_id: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...
    async def get(self, delivery_id: str) -> StoredDelivery | None: ...
    async def retry(
        self, delivery_id: str | None, queue: str | None, rule_id: str | None, limit: int
    ) -> int: ...


class KeepsWebhooks(Protocol):
    """Webhooks by name."""

    async def list(self) -> Sequence[Webhook]: ...
    async def get(self, name: str) -> Webhook | None: ...
    async def put(self, name: str, url: str, secret: str | None, spec: WebhookSpec) -> Webhook | None: ...
    async def delete(self, name: str) -> bool: ...


class KeepsMaintenance(Protocol):
    """Maintenance windows."""

    async def list(self) -> Sequence[StoredMaintenance]: ...
    async def get(self, maintenance_id: str) -> StoredMaintenance | None: ...
    async def create(self, spec: Maintenance) -> StoredMaintenance | None: ...
    async def replace(self, maintenance_id: str, spec: Maintenance) -> StoredMaintenance | None: ...
    async def delete(self, maintenance_id: str) -> bool: ...


@dataclass(frozen=True)
class ActionSide:
    """What the pages about actions need. The last two are of the addresses that webhooks may have."""

    deliveries: ReadsDeliveries
    webhooks: KeepsWebhooks
    versions: ReadsRuleVersions
    maintenance: KeepsMaintenance
    webhook_schemes: tuple[str, ...] = ("https", "http")
    webhook_networks: tuple[str, ...] = ("loopback",)


class ReadsAlarms(Protocol):
    """Alarms, newest first."""

    async def page(
        self,
        state: str | None,
        severity: str | None,
        device_id: str | None,
        device_type: str | None,
        rule_id: str | None,
        acknowledged: bool | None,
        assignee: str | None,
        shelved: bool | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...
    async def get(self, alarm_id: str) -> Alarm | None: ...
    async def life(self, alarm: Alarm) -> Sequence[Any]: ...
    async def active_devices(self, rule_id: str) -> Sequence[str]: ...


class ReadsAnomalies(Protocol):
    """What detectors found at a device, as `storage.anomalies.Anomalies` has it."""

    async def page(
        self,
        device_id: str,
        detector: str | None,
        metric: str | None,
        min_score: float | None,
        severity: str | None,
        ongoing: bool | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...


class ReadsFigures(Protocol):
    """Figures over devices and fleets, as `storage.fleet_figures.FleetFigures` has them."""

    async def arrivals(self, device_id: str, start_ms: int, end_ms: int) -> Arrivals: ...
    async def activation(self, device_type: str | None, start_ms: int, end_ms: int) -> Activation: ...
    async def alarms(self, device_type: str | None, start_ms: int, end_ms: int) -> list[AlarmTimes]: ...
    async def energy(
        self, metric: str, counts_up: bool, device_type: str | None, start_ms: int, end_ms: int
    ) -> Energy: ...


class ReadsCommands(Protocol):
    """Commands, newest first."""

    async def page(
        self,
        device_id: str | None,
        state: str | None,
        command: str | None,
        job_id: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...
    async def get(self, command_id: str) -> Command | None: ...
    async def find(self, command_ids: Sequence[str]) -> Sequence[Command]: ...
    async def counts(self, job_id: str) -> Mapping[str, int]: ...


class ReadsEvents(Protocol):
    """What happened to devices, as `storage.events.Events` has it."""

    async def page(
        self,
        device_id: str,
        kinds: Sequence[str] | None,
        start_ms: int | None,
        end_ms: int | None,
        order: str,
        after: Any | None,
        limit: int,
    ) -> Any: ...


class KeepsBulkJobs(Protocol):
    """Bulk jobs, as `storage.bulk_jobs.BulkJobs` has them."""

    async def create(self, job: BulkJob, device_ids: Sequence[str]) -> BulkJob: ...
    async def get(self, job_id: str) -> BulkJob | None: ...
    async def page(self, kind: str, after: Any | None, limit: int) -> Any: ...
    async def counts(self, job_id: str) -> Mapping[str, int]: ...
    async def items(self, job_id: str, state: str | None, after: Any | None, limit: int) -> Any: ...
    async def cancel(self, job_id: str) -> None: ...


class ReadsTwins(Protocol):
    """How twins were: what was desired and what was reported at a time, and the changes, newest first."""

    async def at(self, device_id: str, at_ms: int) -> tuple[Document, Document]: ...
    async def changes(
        self,
        device_id: str,
        document: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...


class SteersProjections(Protocol):
    """The projections of the log. A change is False when there is none of the name."""

    async def list(self) -> Sequence[ProjectionStatus]: ...
    async def pause(self, name: str) -> bool: ...
    async def resume(self, name: str) -> bool: ...
    async def rewind(self, name: str, to_ms: int) -> bool: ...


class TriesRules(Protocol):
    """Backtests. The first step comes before any work on readings; closing the iterator ends the work."""

    def run(self, asked: Asked) -> AsyncGenerator[Progress | BacktestResult, None]: ...


class ReadsErasures(Protocol):
    """Deletions of devices' data, which begin at the devices."""

    async def get(self, job_id: str) -> Erasure | None: ...
    async def page(self, device_id: str | None, after: Any | None, limit: int) -> Any: ...


class ReadsPastStates(Protocol):
    """Devices as they were."""

    async def at(self, device_id: str, at_ms: int) -> PastState: ...


class KeepsAudit(Protocol):
    """The audit log. What storage changes is in it already; `note` is for everything else."""

    async def note(
        self, what: str, thing: str, before: Any = None, after: Any = None, **note: Any
    ) -> None: ...
    async def page(
        self,
        who: str | None,
        what: str | None,
        thing: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...
    async def head(self) -> tuple[int, str]: ...
    def kick(self) -> None:
        """There may be something new for the chain."""
        ...


class ReadsDeadLetters(Protocol):
    """Dead letters, newest first."""

    async def page(self, reason: str | None, device_id: str | None, after: Any | None, limit: int) -> Any: ...
    async def get(self, letter_id: int) -> Any | None: ...
    async def delete(self, letter_id: int, replayed: bool = False) -> bool: ...


class ListsModels(Protocol):
    """The read side of trained models. Both raise `Unavailable` while what they ask is away."""

    async def all(self) -> Sequence[ModelInfo]:
        """All versions of the registry, by name, the newest of each first."""
        ...

    async def active(self) -> Sequence[ActiveModel]:
        """Those at work, without their numbers."""
        ...


class ReadsForMany(Protocol):
    """Reads for many devices in one statement each; what is not there is left out."""

    async def registrations(self, device_ids: Sequence[str]) -> dict[str, Registration]: ...
    async def alarms(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Alarm]]: ...
    async def commands(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Command]]: ...
    async def readings(
        self,
        device_ids: Sequence[str],
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        quality: Quality | None = None,
    ) -> dict[str, list[Any]]: ...


async def _no_statistics() -> Mapping[str, Any]:
    return {}


class RunsHosts(Protocol):
    """The machines and the hosts on them."""

    async def nodes(self) -> Sequence[NodeItem]: ...
    async def hosts(self) -> HostList: ...
    async def scale(self, hosts: int) -> None: ...
    async def drain(self, node_id: str) -> bool: ...
    async def undrain(self, node_id: str) -> bool: ...
    async def room_for(self, device_id: str) -> None: ...
    async def rebalance(self) -> None: ...


class TellsDevices(Protocol):
    """See `ingest.direct.DirectDownlink`."""

    async def claim(self, device_id: str, command_id: str) -> None:
        """As `DirectDownlink.claim`."""
        ...


@dataclass(frozen=True)
class Services:
    """Everything the app calls, opened by whoever builds it and closed by them.

    Attributes:
        checks: what `readyz` tries, by name.
        statistics: counters of each process, as `Coordinator.statistics` gives them.
        cluster: machines and hosts; None: there are none to speak of.
        now_ms: the clock, milliseconds since 1970 UTC.
        timeout_s: how long a device may take to answer.
        max_body_bytes, max_requests: bounds of a request and of requests at once.
    """

    router: Asks
    pipeline: TakesTelemetry
    registry: ReadsDevices
    history: ReadsHistory
    rules: KeepsRules
    alarms: ReadsAlarms
    anomalies: ReadsAnomalies
    figures: ReadsFigures
    dead_letters: ReadsDeadLetters
    projections: SteersProjections
    commands: ReadsCommands
    events: ReadsEvents
    twins: ReadsTwins
    jobs: KeepsBulkJobs
    waits: CommandWaits
    backtests: TriesRules
    now_ms: Callable[[], int]
    audit: KeepsAudit
    erasures: ReadsErasures
    past_states: ReadsPastStates
    checks: Mapping[str, Check] = field(default_factory=dict)
    statistics: Callable[[], Awaitable[Mapping[str, Any]]] = _no_statistics
    cluster: RunsHosts | None = None
    timeout_s: float = 10.0
    max_body_bytes: int = 1_048_576
    max_requests: int = 1000
    bounds: Bounds = field(default_factory=Bounds)
    """Of telemetry; those that the pipeline has."""
    limiter: RateLimiter | None = None
    """Of what devices send; None: there is no limit."""
    profiles: Profiles = field(default_factory=Profiles)
    replay: Replay | None = None
    """What tries dead letters again."""
    lorawan: LorawanAdapter | None = None
    tts_secret: str | None = None
    """What webhooks of The Things Stack must send; None: there is no such webhook."""
    direct: TellsDevices | None = None
    """What tells devices of commands as they are sent; None: the downlink finds them."""
    feed: LiveFeed | None = None
    """What the live feed follows; None: there is none."""
    actions: ActionSide | None = None
    """What rules have done; None: nothing is told of it."""
    models: ListsModels | None = None
    """Trained models; None: there are none to speak of."""
    batched: ReadsForMany | None = None
    """What GraphQL reads many devices by; None: there is no GraphQL."""
