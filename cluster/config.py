"""The platform's configuration, read once: flags over environment over file over defaults.

Nothing else in Sensorium looks at the environment; other rooms are handed small frozen values made here.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from msgspec.structs import replace
from pydantic import BaseModel, Field, SecretStr, model_validator

from sensorium.actors.profile import Profiles, RateLimits
from sensorium.cluster import explain, sections, tracked_yaml, urls
from sensorium.cluster.action_section import Actions
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.lorawan_section import Lorawan
from sensorium.cluster.sections import Section
from sensorium.cluster.sparkplug_section import Sparkplug
from sensorium.cluster.stream_sections import Streaming, Timeseries
from sensorium.cluster.tracked_yaml import Path as SettingPath
from sensorium.cluster.tracked_yaml import dotted
from sensorium.ingest.decode import Bounds
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address
from sensorium.storage.models.opening import RegistrySettings
from sensorium.storage.retention_classes import MAX_CLASSES, Days

ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "DEVICE_DB_URL": ("storage", "url"),
    "LOG_DB_URLS": ("storage", "log_urls"),
    "MQTT_BROKER_URL": ("mqtt", "url"),
    "MQTT_USERNAME": ("mqtt", "username"),
    "MQTT_PASSWORD": ("mqtt", "password"),
    "MQTT_CA_FILE": ("mqtt", "ca_file"),
    "MQTT_CERT_FILE": ("mqtt", "cert_file"),
    "MQTT_KEY_FILE": ("mqtt", "key_file"),
    "TIMESERIES_DB_URL": ("timeseries", "url"),
    "INFLUXDB_TOKEN": ("timeseries", "token"),
    "KAFKA_BROKERS": ("streaming", "brokers"),
    "SMTP_PASSWORD": ("actions", "smtp_password"),
    "DEVICE_CA_CERT_PATH": ("security", "device_ca_cert_path"),
    "DEVICE_CA_KEY_PATH": ("security", "device_ca_key_path"),
    "ENCRYPTION_KEY": ("security", "encryption_key"),
    "ML_MODEL_REGISTRY_URL": ("analytics", "model_registry_url"),
    "ANOMALY_DETECTION_ENABLED": ("analytics", "anomaly_detection_enabled"),
}
"""The environment variables and the settings that they stand for. An empty one counts as unset."""


TypeName = Annotated[str, Field(min_length=1, max_length=128)]


class Config(Section):
    """All settings of one platform. Everything in it is valid."""

    storage: sections.Storage = sections.Storage()
    mqtt: sections.Mqtt = sections.Mqtt()
    http: sections.Http = sections.Http()
    coap: sections.Coap = sections.Coap()
    lorawan: Lorawan = Field(default_factory=Lorawan)
    sparkplug: Sparkplug = Field(default_factory=Sparkplug)
    ingest: sections.Ingest = sections.Ingest()
    cluster: sections.Cluster = Field(default_factory=sections.Cluster)
    profiles: dict[TypeName, sections.DeviceType] = Field(default_factory=dict)
    timeseries: Timeseries = Field(default_factory=Timeseries)
    streaming: Streaming = Field(default_factory=Streaming)
    actions: Actions = Field(default_factory=Actions)
    edge: sections.Edge = sections.Edge()
    security: sections.Security = sections.Security()
    analytics: sections.Analytics = sections.Analytics()

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.mqtt.url is None and self.mqtt.port == self.http.port:
            raise ValueError(f"mqtt.port and http.port are both {self.http.port}")
        return self

    @model_validator(mode="after")
    def _peers_have_rollups(self) -> Self:
        if self.analytics.compare_peers and not self.storage.rollups:
            raise ValueError("analytics.compare_peers needs storage.rollups")
        return self

    @property
    def compares_peers(self) -> bool:
        """Whether devices are compared with their peers."""
        asked = self.analytics.compare_peers
        return self.storage.rollups and self.analytics.anomaly_detection_enabled if asked is None else asked

    @property
    def models(self) -> RegistrySettings:
        """Where trained models are registered."""
        folder = self.analytics.models_dir or self.storage.data_dir / "models"
        return RegistrySettings(str(folder.absolute()), self.analytics.model_registry_url)

    @property
    def device_profiles(self) -> Profiles:
        """The section `profiles` as devices know it."""
        return sections.profiles(self.profiles, self.analytics.anomaly_detection_enabled, self.ingest.rates())

    @property
    def kept(self) -> tuple[Days, dict[str, Days]]:
        """How long what is kept: of all types, and of those that are named with a retention of their own."""
        return sections.kept(self.storage.retention, self.profiles)

    def limits(self, protocol: sections.ProtocolName) -> RateLimits | None:
        """How much devices may send by a protocol; None: any number."""
        return self.device_profiles.limits(protocol)

    @property
    def auto_register_as(self) -> str | None:
        """The type that unknown devices get at their first reading; None refuses them."""
        return self.ingest.auto_register_type if self.ingest.auto_register else None

    @property
    def broker(self) -> BrokerAddress:
        """The broker, with its credentials; the embedded one's when none is named."""
        mqtt = self.mqtt
        if mqtt.url is None:
            return BrokerAddress(host="127.0.0.1", port=mqtt.port)
        files = (str(f) if f else None for f in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
        address = broker_address(mqtt.url, *files)
        if mqtt.username is not None:
            address = replace(address, username=mqtt.username)
        if mqtt.password is not None:
            address = replace(address, password=mqtt.password.get_secret_value())
        return address

    @property
    def bounds(self) -> Bounds:
        """What a payload may be at most."""
        take = self.ingest
        return Bounds(
            max_payload_bytes=take.max_payload_bytes,
            max_metrics=take.max_metrics,
            max_future_s=take.max_future_s,
            max_past_s=take.max_past_s,
        )

    def describe(self) -> dict[str, str]:
        """Every setting by its dotted name, fit to be printed: passwords and keys are hidden."""
        return dict(_described(self, ()))


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Config:
    """The configuration.

    Args:
        file: the YAML file, if any.
        environment: the process's environment, if it counts.
        flags: value by flag as typed, such as `{"--http-port": ("http.port", 8001)}`; None is not given.

    Raises:
        ConfigError: one line that names the first mistake and where it stands, and counts the rest.
    """
    tree: dict[str, Any] = {}
    places: dict[SettingPath, str] = {}
    if file is not None:
        try:
            read, places = tracked_yaml.read(file)
        except tracked_yaml.YamlError as error:
            raise ConfigError(str(error)) from error
        # A section whose settings are all commented out reads as null.
        tree = {
            key: {} if value is None and key in Config.model_fields else value for key, value in read.items()
        }
    for variable, path in ENVIRONMENT.items():
        if text := (environment or {}).get(variable):
            _put(tree, path, _from_text(path, text, variable))
            places[path] = variable
    for flag, (name, value) in (flags or {}).items():
        if value is not None:
            section, _, setting = name.partition(".")
            _put(tree, (section, setting), value)
            places[section, setting] = flag
    return checked(explain.validated(Config, tree, places), places)


def checked(config: Config, places: Mapping[SettingPath, str], within: SettingPath = ()) -> Config:
    """The same configuration, which stands at `within` in its file.

    Raises:
        ConfigError: it asks for what does not exist in this version.
    """
    if refused := [*_not_yet(config, places, within), *_too_many(config, places, within)]:
        raise explain.first(refused)
    return config


def _put(tree: dict[str, Any], path: tuple[str, str], value: Any) -> None:
    section = tree.setdefault(path[0], {})
    # A section of the wrong type is left for validation to report.
    if isinstance(section, dict):
        section[path[1]] = value


def _from_text(path: SettingPath, text: str, variable: str) -> Any:
    if path == ENVIRONMENT["KAFKA_BROKERS"]:
        return [broker.strip() for broker in text.split(",")]
    if path == ENVIRONMENT["LOG_DB_URLS"]:
        # A comma may also stand between the hosts of one URL.
        return [url.strip() for url in re.split(r",(?=\s*postgres(?:ql)?://)", text)]
    if path == ENVIRONMENT["ANOMALY_DETECTION_ENABLED"]:
        switch = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        if text.strip().lower() not in switch:
            raise ConfigError(f"{variable}: must be true or false")
        return switch[text.strip().lower()]
    return text


def _not_yet(config: Config, places: Mapping[SettingPath, str], within: SettingPath) -> Iterator[str]:
    for section_name in Config.model_fields:
        section = getattr(config, section_name)
        if not isinstance(section, Section):
            continue
        for name, field in type(section).model_fields.items():
            feature = sections.later(type(section), name)
            if feature and getattr(section, name) != field.default:
                path = (*within, section_name, name)
                where = explain.place(path, places)
                yield f"{where}{dotted(path)}: {feature} does not exist in this version; remove it"


def _too_many(config: Config, places: Mapping[SettingPath, str], within: SettingPath) -> Iterator[str]:
    seen = {config.kept[0]}
    for name, days in config.kept[1].items():
        if days not in seen and len(seen) == MAX_CLASSES:
            path = (*within, "profiles", name, "retention")
            yield (
                f"{explain.place(path, places)}{dotted(path)}: is the {MAX_CLASSES + 1}th retention that"
                f" differs from the others, and there may be {MAX_CLASSES}: give it those of another one"
            )
            return
        seen.add(days)


def _described(section: BaseModel, path: SettingPath) -> Iterator[tuple[str, str]]:
    for name, field in type(section).model_fields.items():
        yield from _value(
            getattr(section, name), (*path, name), _is_address(field.annotation, field.metadata)
        )


def _value(value: Any, path: SettingPath, address: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from _described(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _value(item, (*path, key), address)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value(item, (*path, index), address)
    elif isinstance(value, SecretStr):
        yield dotted(path), urls.HIDDEN
    elif value is not None:
        yield dotted(path), urls.redacted(value) if address else str(value)


def _is_address(annotation: Any, metadata: list[Any]) -> bool:
    # In `Url | None` the mark stands on the union's member, not on the field.
    marks = [
        *metadata,
        *(m for arm in getattr(annotation, "__args__", ()) for m in getattr(arm, "__metadata__", ())),
    ]
    return any(isinstance(mark, sections.Address) for mark in marks)
