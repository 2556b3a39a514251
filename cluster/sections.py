"""The sections of the platform's configuration: what each setting means, its default and its bounds.

How they are read (file, environment, flags) is in `config`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.isolation import DEFAULT_MAX_ISOLATED
from sensorium.actors.placement import DEDICATED_SHARDS
from sensorium.actors.profile import (
    MAX_WATCHED,
    DetectorSpec,
    ProcessNeeds,
    Profile,
    Profiles,
    RateLimit,
    Rates,
    WindowSpec,
)
from sensorium.actors.schema import MetricSpec, MetricType, Outside, Schema
from sensorium.actors.units import MAX_UNIT_CHARS
from sensorium.cluster import urls
from sensorium.ingest.decode import Bounds
from sensorium.storage.retention_classes import Days as KeptDays
from sensorium.storage.sealing import MAX_OLD_KEYS, MIN_KEY_CHARS, Keys


class Later(NamedTuple):
    """Marks a setting whose feature does not exist yet: giving it anything but its default is refused."""

    feature: str


class Address(NamedTuple):
    """Marks a URL, which may hold a password: it is never shown as it stands."""


def _mqtt_url(url: str) -> str:
    return urls.check(url, {"mqtt", "mqtts"}, path=False)


def _postgres_url(url: str) -> str:
    # A PostgreSQL URL may name a socket directory by ?host= instead of a host, and several hosts.
    for one in urls.by_host(url):
        urls.check(one, {"postgresql", "postgres"}, host=False)
    return url


def _http_url(url: str) -> str:
    return urls.check(url, {"http", "https"})


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("no such file")
    return path


def _existing_directory(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("no such directory")
    return path


# The rooms that use these know best what they should be.
_ACTIVATION = ActivationSettings()
_BOUNDS = Bounds()

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MqttUrl = Annotated[str, Address(), AfterValidator(_mqtt_url)]
PostgresUrl = Annotated[str, Address(), AfterValidator(_postgres_url)]
HttpUrl = Annotated[str, Address(), AfterValidator(_http_url)]
File = Annotated[Path, Field(strict=False), AfterValidator(_existing)]
Directory = Annotated[Path, Field(strict=False), AfterValidator(_existing_directory)]
PerSecond = Annotated[float, Field(gt=0, le=1_000_000)]
Burst = Annotated[int, Field(ge=1, le=1_000_000)]
Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class Section(BaseModel):
    """A part of the configuration: nothing is coerced, nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Mqtt(Section):
    """The broker. Without `url` an embedded one listens on loopback."""

    url: MqttUrl | None = None
    port: Port = 1883
    """Of the embedded broker; `url` carries its own."""
    username: Annotated[str, Field(min_length=1)] | None = None
    password: SecretStr | None = None
    ca_file: File | None = None
    cert_file: File | None = None
    key_file: File | None = None
    share_group: Id | None = None
    """Ingestors of one group share the telemetry among them. Without, the platform has a subscription of its
    own, which the broker keeps while we are away; Mosquitto 2.0 forgets shared ones when it restarts, and
    acknowledges to devices what then nobody gets."""
    client_id: Id = "sensorium"
    """Stable, so that the broker keeps the session of an ingestor that is away. Two platforms on one broker
    need two."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        tls = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        given = [name for name, value in tls.items() if value is not None]
        if self.url is None:
            given += [name for name in ("username", "password") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} needs mqtt.url: the embedded broker takes none")
            return self
        if given and not self.url.startswith("mqtts://"):
            raise ValueError(f"{given[0]} needs a url that starts with mqtts://")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.username is not None and "@" in self.url:
            raise ValueError("username stands in the url already; give it once")
        if self.password is not None and self.username is None and "@" not in self.url:
            raise ValueError("password needs a username")
        return self


Days = Annotated[int, Field(ge=2, le=36_500)]


class Retention(Section):
    """After how many days what is dropped, in whole partitions; what is left out is kept for ever."""

    raw_days: Days | None = None
    """Readings, by the day of their commit, and commands and anomalies that have ended. Rollups go on
    counting what was dropped."""
    event_days: Days | None = None
    """Events, by the day of their commit; left out: as `raw_days`."""
    rollup_1m_days: Days | None = None
    """By event time. Partitions of one-minute rollups are a week long …"""
    rollup_1h_days: Days | None = None
    """… those of one-hour rollups 13 weeks …"""
    rollup_1d_days: Days | None = None
    """… and those of one-day rollups four years."""
    alarm_days: Days | None = None
    """Alarms, by when they ended. What a profile says of its own (`profiles: TYPE: retention`) goes first."""
    audit_days: Days | None = None
    """Entries of the audit log, the oldest first; what is left stays a chain that can be checked."""


class Compaction(Section):
    """Readings of days that are over move into chunks, which take about a third of the space."""

    enabled: bool = True
    """What was compacted stays so when it is switched off."""
    after_days: Annotated[int, Field(ge=0, le=36_500)] = 0
    """For how many more days readings stay rows. A day is compacted two hours after its end (UTC) at the
    soonest, when its rollups and other projections have read it."""


class Storage(Section):
    """Where the log is. Without `url` an embedded PostgreSQL keeps it under `data_dir`."""

    data_dir: Annotated[Path, Field(strict=False)] = Path(".sensorium")
    url: PostgresUrl | None = None
    log_urls: Annotated[list[PostgresUrl], Address(), Field(min_length=1, max_length=64)] | None = None
    """All databases that the log is spread over, in an order that never changes. The first is `url`."""
    rollups: bool = True
    """Whether figures by minute, hour and day are kept, which long queries are answered from."""
    retention: Retention = Retention()
    compaction: Compaction = Compaction()

    @model_validator(mode="after")
    def _databases_fit_together(self) -> Self:
        if self.log_urls:
            if self.url not in (None, self.log_urls[0]):
                raise ValueError("log_urls begins with another database than url; the first one is both")
            if len(set(self.log_urls)) < len(self.log_urls):
                raise ValueError("log_urls names a database twice")
        return self

    @property
    def main_url(self) -> str | None:
        """The database that has everything which is not spread; None: the embedded one."""
        return self.log_urls[0] if self.log_urls else self.url

    @property
    def further_urls(self) -> tuple[str, ...]:
        """The databases besides it that the log is spread over."""
        return tuple(self.log_urls[1:]) if self.log_urls else ()


class Http(Section):
    """The HTTP API."""

    host: Literal["127.0.0.1", "localhost", "0.0.0.0"] = "127.0.0.1"
    """This machine alone, or all of its addresses: Ray Serve's proxy asks a replica beside it by loopback."""
    port: Port = 8000
    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    proxies: Literal["every_node", "head"] = "every_node"
    """Where the port is: on every node that has a replica, or on Ray's head only."""
    max_subscribers: Annotated[int, Field(ge=0, le=100_000)] = 2_000
    """Of the live feed, in each replica."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20


class Coap(Section):
    """The CoAP endpoint, on UDP."""

    enabled: bool = True
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """One address to listen at; `::` is all of them, IPv4 too."""
    port: Port = 5683
    contexts_dir: Directory | None = None
    """OSCORE contexts: a directory for each device, named as the device. They are read at the start."""
    require_oscore: bool = False
    """Whether those without a context or key are refused. A device that has one must use it in any case."""
    dtls_keys: File | None = None
    """Pre-shared keys, `device id:key in hex` a line: with them DTLS is served, by the extra `dtls`."""
    dtls_port: Port = 5684

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.require_oscore and self.contexts_dir is None and self.dtls_keys is None:
            raise ValueError("require_oscore needs contexts_dir or dtls_keys: without them nobody could send")
        return self


class Rate(Section):
    """How much a device may send by one protocol."""

    rate_per_s: PerSecond
    burst: Burst = 10

    def limit(self) -> RateLimit:
        """As the ways in take it."""
        return RateLimit(self.rate_per_s, self.burst)


ProtocolName = Literal["mqtt", "coap", "http", "lorawan", "sparkplug", "kafka"]


class DeviceRates(Section):
    """How much a device may send."""

    rate_per_s: PerSecond | None = None
    """Messages a second by each of MQTT, CoAP, HTTP, Sparkplug, in the long run; without it, any number."""
    burst: Burst = 10
    """Messages that it may send at once."""
    by_protocol: dict[ProtocolName, Rate] = Field(default_factory=dict)
    """For these instead. LoRaWAN and Kafka are limited here only."""

    def rates(self) -> Rates:
        """As the ways in take it."""
        every = None if self.rate_per_s is None else RateLimit(self.rate_per_s, self.burst)
        return Rates(every, {name: rate.limit() for name, rate in self.by_protocol.items()})


class Ingest(DeviceRates):
    """What is taken from devices, whatever the protocol."""

    auto_register: bool = False
    """Whether the first reading of an unknown device registers it; otherwise it goes to the dead letters."""
    auto_register_type: Annotated[str, Field(min_length=1, max_length=128)] = "generic"
    """The device type of those that registered themselves so."""
    max_payload_bytes: Annotated[int, Field(ge=64, le=16 << 20)] = _BOUNDS.max_payload_bytes
    max_metrics: Annotated[int, Field(ge=1, le=10_000)] = _BOUNDS.max_metrics
    """In one message. How many a device may have in all is its profile's `max_metrics`."""
    max_future_s: Annotated[float, Field(ge=0, le=86_400)] = _BOUNDS.max_future_s
    """A reading this much ahead of our clock is a dead letter. The log's queries rely on at most one day."""
    max_past_s: Seconds = _BOUNDS.max_past_s
    receive_maximum: Annotated[int, Field(ge=1, le=65_535)] = 20_000
    """Unacknowledged QoS 1 and 2 messages that the broker may have under way to one ingestor."""
    max_pending: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Readings on their way to a commit, at which an ingestor stops reading from the broker."""


class Cluster(Section):
    """How the platform is spread over processes and nodes."""

    hosts: Annotated[int, Field(ge=1, le=1024)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Device hosts, by default one a core."""
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    """A running Ray cluster to join; without it, one is started on this machine."""
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Nodes of that cluster to wait for before hosts are started, so that these spread over them …"""
    nodes_timeout_s: Seconds = 600.0
    """… for so long at most."""
    max_isolated_devices: Annotated[int, Field(ge=0, le=DEDICATED_SHARDS)] = DEFAULT_MAX_ISOLATED
    """With a process of their own, at some 60 MB and up to seven database connections each; 0 allows none."""
    snapshot_every_turns: Annotated[int, Field(ge=1, le=1_000_000)] = _ACTIVATION.snapshot_every_turns
    """A device's snapshot is due after so many turns …"""
    snapshot_every_s: Seconds = _ACTIVATION.snapshot_every_s
    """… or so many seconds, whichever is first: the bounds on what a recovery replays."""
    max_active_devices: Annotated[int, Field(ge=100, le=10_000_000)] = _ACTIVATION.max_active
    """In the memory of one host; the ones used least lately are passivated beyond it."""
    max_active_mb: Annotated[int, Field(ge=16, le=1 << 20)] = _ACTIVATION.max_active_bytes >> 20
    """MiB that the devices in the memory of one host may take; beyond it likewise."""
    idle_after_s: Seconds = _ACTIVATION.idle_after_s
    """A device that was not used for so long is passivated."""
    local_calls: bool = True
    """Whether what runs on a host's machine calls it over a Unix socket; off, all goes by Ray."""


class Window(Section):
    """A rolling window; its length must be a whole number of slides, at most 1,440."""

    length_s: Seconds
    slide_s: Seconds

    @model_validator(mode="after")
    def _whole_slides(self) -> Self:
        self.spec()
        return self

    def spec(self) -> WindowSpec:
        """The window as devices know it."""
        try:
            return WindowSpec(self.length_s, self.slide_s)
        except InvalidMessage as error:
            raise ValueError(str(error)) from None


class DetectorSetting(Section):
    """A detector that watches metrics of a device type; see docs/detectors.md."""

    detector: Literal["ensemble", "zscore", "robust", "level_shift", "seasonal", "spectral", "flatline"] = (
        "ensemble"
    )
    metrics: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=MAX_WATCHED)
    ] = Field(default_factory=list)
    """Those that it watches; without any, all numbers (at most 64)."""
    threshold: Annotated[float, Field(ge=0.05, le=1)] = 0.5
    """The score from which a reading is an anomaly."""
    limit: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    """What scores 0.5, in the detector's own unit, such as deviations; the ensemble has none."""
    period: Literal["day", "week"] = "day"
    """Of the seasonal detector."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.spec()
        return self

    def spec(self) -> DetectorSpec:
        """The detector as devices know it."""
        try:
            return DetectorSpec(self.detector, tuple(self.metrics), self.threshold, self.limit, self.period)
        except InvalidMessage as error:
            raise ValueError(str(error)) from None


Text = Annotated[str, Field(max_length=256)]


class Metric(Section):
    """What the readings of a device type must have as one metric."""

    type: Literal["number", "integer", "boolean", "string"] | None = None
    """Another one is rejected; without it, any is taken."""
    unit: Annotated[str, Field(min_length=1, max_length=MAX_UNIT_CHARS)] | None = None
    """That it is stored in. Where the sender tells another one, values are converted, or rejected."""
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    values: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    """The texts that it may be."""
    required: bool = False
    """Whether every reading must have it."""
    outside: Literal["allow", "flag", "reject"] = "flag"
    """What becomes of readings outside of these: stored as they are, stored as suspect, or a dead letter."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.spec()
        return self

    def spec(self) -> MetricSpec:
        """The metric as devices know it."""
        try:
            return MetricSpec(
                kind=None if self.type is None else MetricType(self.type),
                unit=self.unit,
                minimum=self.min,
                maximum=self.max,
                values=tuple(self.values or ()),
                required=self.required,
                outside=Outside(self.outside),
            )
        except InvalidMessage as error:
            raise ValueError(str(error)) from None


MetricName = Annotated[str, Field(min_length=1, max_length=128)]


class TypeRetention(Section):
    """How long what is kept of devices of a type. What is left out is as in the profile `default`, and, left
    out there, as in `storage.retention`."""

    raw_days: Days | None = None
    """Readings, by the day of their commit."""
    event_days: Days | None = None
    """Events, by the day of their commit; left out everywhere: as `raw_days`."""
    rollup_1m_days: Days | None = None
    """Rollups, by event time."""
    rollup_1h_days: Days | None = None
    rollup_1d_days: Days | None = None
    alarm_days: Days | None = None
    """Alarms that have ended."""

    def over(self, base: "TypeRetention") -> "TypeRetention":
        """`base` with what this section says."""
        return base.model_copy(update=self.model_dump(exclude_none=True))

    def days(self) -> KeptDays:
        """For the database."""
        return KeptDays(
            self.raw_days,
            self.raw_days if self.event_days is None else self.event_days,
            self.rollup_1m_days,
            self.rollup_1h_days,
            self.rollup_1d_days,
        )


def kept(storage: Retention, types: Mapping[str, "DeviceType"]) -> tuple[KeptDays, dict[str, KeptDays]]:
    """How long what is kept: of all types, and of those that are named with a retention of their own."""
    of_all = TypeRetention(**storage.model_dump(exclude={"audit_days"}))
    default = types["default"].retention.over(of_all) if "default" in types else of_all
    own = {name: section.retention.over(default).days() for name, section in types.items()}
    own.pop("default", None)
    return default.days(), {name: days for name, days in own.items() if days != default.days()}


Amount = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
_LABEL: Final = r"^([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LabelName = Annotated[str, Field(pattern=_LABEL)]
ResourceAmount = Annotated[float, Field(gt=0, le=1_000_000)]
LabelWish = Annotated[str, Field(pattern=r"^!?(in\()?[A-Za-z0-9_., -]{0,1024}\)?$")]
_RAYS_OWN: Final = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


class IsolationResources(Section):
    """What the process of an isolated device claims of Ray, and which nodes it may be on."""

    num_cpus: Amount = 0.0
    num_gpus: Amount = 0.0
    memory_mb: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """MiB of what Ray accounts for; it bounds where the process is put, not what it takes."""
    resources: Annotated[dict[ResourceName, ResourceAmount], Field(max_length=16)] = {}
    """Ray's custom resources, by name."""
    label_selector: Annotated[dict[LabelName, LabelWish], Field(max_length=16)] = {}
    """Labels that the node must have; Ray's `!value` and `in(a, b)` may be said too."""

    @model_validator(mode="after")
    def _whole_units(self) -> Self:
        for name, amount in {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **self.resources}.items():
            if amount > 1 and not amount.is_integer():
                raise ValueError(f"{name}: Ray takes whole numbers above 1, not {amount:g}")
        for name in self.resources.keys() & _RAYS_OWN:
            raise ValueError(f"resources.{name}: is Ray's own; say num_cpus, num_gpus or memory_mb")
        return self

    def needs(self) -> ProcessNeeds:
        """The same for the runtime."""
        return ProcessNeeds(
            self.num_cpus, self.num_gpus, self.memory_mb << 20, self.resources, self.label_selector
        )


class DeviceType(Section):
    """The profile of a device type. What is left out is as in the profile called `default`."""

    windows: Annotated[list[Window], Field(min_length=1, max_length=8)] | None = None
    lateness_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_metrics: Annotated[int, Field(ge=1, le=10_000)] | None = None
    offline_after_s: Seconds | None = None
    downlink: Literal["mqtt", "coap"] | None = None
    """How the device is told of commands: by publishing to it, or when it asks over CoAP."""
    metrics: Annotated[dict[MetricName, Metric], Field(max_length=1_000)] | None = None
    """What its readings must look like. A name that ends with `*` goes for all that begin so."""
    ingest: DeviceRates = DeviceRates()
    """How much a device of this type may send; what is left out is as in the section `ingest`."""
    retention: TypeRetention = TypeRetention()
    unknown_metrics: Literal["allow", "flag", "reject"] | None = None
    """What becomes of readings with metrics that are not named; they are allowed."""
    isolation: Literal["process", "shared"] | None = None
    """"process" gives each device of the type a process of its own (see `cluster.max_isolated_devices`)."""
    isolation_resources: IsolationResources | None = None
    """What Ray has to find for such a process."""

    @model_validator(mode="after")
    def _names_what_is_required(self) -> Self:
        for name, metric in (self.metrics or {}).items():
            if metric.required and name.endswith("*"):
                raise ValueError(f"{name} stands for many names, so it cannot be required")
        return self

    def _schema(self, base: Schema | None) -> Schema | None:
        if self.metrics is None and self.unknown_metrics is None:
            return base
        metrics = {} if base is None else base.metrics
        if self.metrics is not None:
            metrics = {name: metric.spec() for name, metric in self.metrics.items()}
        unknown = Outside.ALLOW if base is None else base.unknown
        if self.unknown_metrics is not None:
            unknown = Outside(self.unknown_metrics)
        return Schema(metrics, unknown)

    detectors: Annotated[list[DetectorSetting], Field(max_length=16)] | None = None
    """What watches for anomalies; an empty list is none. Left out: as `default`, which, left out itself, has
    the ensemble on all numbers if `analytics.anomaly_detection_enabled`."""

    def over(self, base: Profile) -> Profile:
        """`base` with what this section says."""
        windows = base.windows if self.windows is None else tuple(w.spec() for w in self.windows)
        return Profile(
            windows=windows,
            lateness_s=base.lateness_s if self.lateness_s is None else self.lateness_s,
            max_metrics=base.max_metrics if self.max_metrics is None else self.max_metrics,
            offline_after_s=base.offline_after_s if self.offline_after_s is None else self.offline_after_s,
            downlink=base.downlink if self.downlink is None else self.downlink,
            schema=self._schema(base.schema),
            detectors=base.detectors if self.detectors is None else tuple(d.spec() for d in self.detectors),
            rates=self.ingest.rates().over(base.rates),
            isolation=base.isolation if self.isolation is None else self.isolation,
            isolation_resources=(
                base.isolation_resources
                if self.isolation_resources is None
                else self.isolation_resources.needs()
            ),
        )


def profiles(types: dict[str, DeviceType], detect: bool = False, rates: Rates | None = None) -> Profiles:
    """The profiles of the section `profiles`; with `detect`, those that say nothing of detectors have one.

    `rates`: what the section `ingest` says of all devices.
    """
    rest = dict(types)
    base = Profile(detectors=(DetectorSpec(),) if detect else (), rates=rates or Rates())
    default = rest.pop("default", DeviceType()).over(base)
    return Profiles(default, {name: section.over(default) for name, section in rest.items()})


class Edge(Section):
    """Gateways near the devices."""

    enabled: Annotated[bool, Later("the edge gateway")] = False


class Security(Section):
    """Device certificates and encryption at rest."""

    device_ca_cert_path: Annotated[File | None, Later("the device certificate authority")] = None
    device_ca_key_path: Annotated[File | None, Later("the device certificate authority")] = None
    encryption_key: SecretStr | None = None
    """Or ENCRYPTION_KEY: with what addresses and secrets of webhooks are encrypted in the database; without,
    they lie there as they are. At least 16 characters, best of `openssl rand -base64 32`."""
    old_encryption_keys: list[SecretStr] = Field(default=[], max_length=MAX_OLD_KEYS)
    """Keys from before: what they sealed is opened, and sealed with `encryption_key` at the next start."""

    @field_validator("encryption_key", "old_encryption_keys")
    @classmethod
    def _long_enough(cls, value: Any) -> Any:
        for key in value if isinstance(value, list) else [value]:
            if key is not None and len(key.get_secret_value()) < MIN_KEY_CHARS:
                raise ValueError(f"needs {MIN_KEY_CHARS} characters at least; see `openssl rand -base64 32`")
        return value

    def keys(self) -> Keys:
        """As `storage.sealing` takes them."""
        present = None if self.encryption_key is None else self.encryption_key.get_secret_value()
        return Keys(present, tuple(key.get_secret_value() for key in self.old_encryption_keys))


class Analytics(Section):
    """Detectors beyond rules."""

    anomaly_detection_enabled: bool = False
    """Whether the ensemble watches all numbers of the device types whose profile says nothing of detectors.
    Those that a profile or a rule names run either way."""
    compare_peers: bool | None = None
    """Whether devices of one type at one place are compared with each other, hour by hour; left out: as
    `anomaly_detection_enabled`, where there are rollups to compare."""
    peer_place: Annotated[str, Field(min_length=1, max_length=128)] = "place"
    """The entry of a device's metadata that says where it is. Without it, a cell of the map counts: a tenth
    of a degree of its location."""
    model_registry_url: Annotated[HttpUrl | None, Address()] = None
    """MLflow's tracking server, in which trained models are registered. Without it …"""
    models_dir: Annotated[Path | None, Field(strict=False)] = None
    """… they are in this folder, by default `models` in the data directory. Where several machines train or
    list models, a folder that all of them share."""


def later(model: type[BaseModel], name: str) -> str | None:
    """The feature that the setting waits for; None when it works today."""
    found = [mark for mark in model.model_fields[name].metadata if isinstance(mark, Later)]
    return found[0].feature if found else None
