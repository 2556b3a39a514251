"""What the platform's services are given by its configuration, and which there are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.runtime import NAMESPACE
from sensorium.cluster.adapters import adapter_service
from sensorium.cluster.config import Config
from sensorium.cluster.processes import peer_adapter, rollup_service
from sensorium.cluster.streams import projections
from sensorium.ingest.downlink import DownlinkSettings
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.serve.deployment import ApiSettings
from sensorium.storage.action_sink import NAME as ACTIONS
from sensorium.storage.compaction import CompactionSettings
from sensorium.storage.retention import AlarmRetention, RetentionKeeper, RetentionSettings
from sensorium.storage.rollup_sink import NAME as ROLLUPS

_SERVICES: Final = 12
"""That use the database, at most: retention, commands, bulk jobs, peers, projections with one to come and go,
and actions, which have as many connections as four."""


def api_settings(config: Config, dsn: str, broker: BrokerAddress | None) -> ApiSettings:
    """What a replica of the API is given; without a broker it tells no devices itself."""
    return ApiSettings(
        dsn=dsn,
        downlink=None if broker is None else downlink_settings(config, broker),
        further_dsns=config.storage.further_urls,
        archive=config.timeseries.settings(),
        namespace=NAMESPACE,
        bounds=config.bounds,
        max_body_bytes=config.http.max_body_bytes,
        max_subscribers=config.http.max_subscribers,
        lorawan=config.lorawan.settings(),
        limit=config.limits("http"),
        lorawan_limit=config.limits("lorawan"),
        profiles=config.device_profiles,
        webhook_schemes=tuple(config.actions.webhook_schemes),
        webhook_networks=tuple(config.actions.webhook_networks),
        keys=config.security.keys(),
        models=config.models,
    )


def downlink_settings(config: Config, broker: BrokerAddress) -> DownlinkSettings:
    """How devices are told of commands and twins by MQTT."""
    return DownlinkSettings(
        address=broker,
        client_id=f"{config.mqtt.client_id}-commands-0",
        properties=config.mqtt.url is not None,
        limit=config.limits("mqtt"),
    )


def connections_needed(config: Config) -> int:
    """How many connections a database has to grant at most to hosts, replicas of the API, and services.

    A host, and so an isolated device, has one to commit, two to load, two to select and two that listen; a
    replica its pool, one that listens and one that sees whether the downlink is there; a service two; the
    membership two, claims two, the downlink's presence one.
    """
    hosts = config.cluster.hosts + config.cluster.max_isolated_devices
    per_database = 7 * hosts + (ApiSettings("").pool_size + 2) * config.http.replicas
    return per_database + 2 * _SERVICES + 5


def storage_services(
    config: Config, dsns: Sequence[str], folder: Path | None = None
) -> Iterator[ServiceSpec]:
    """What each database of the log is given: retention, and its own projections.

    `folder` is that of the first one, if it is embedded.
    """
    for position, dsn in enumerate(dsns):
        name = f"-{position}" if position else ""
        kept = (dsn, retention_settings(config), None if position else folder)
        yield ServiceSpec(f"retention{name}", RetentionKeeper, kept)
        if config.storage.rollups:
            yield ServiceSpec(f"projection-rollups{name}", rollup_service, (dsn, position))


def retention_settings(config: Config) -> RetentionSettings:
    """For how long what is kept. A day of the log stays until every projection has read it."""
    return RetentionSettings(
        config.kept[0],
        ((ROLLUPS,) if config.storage.rollups else ())
        + ((ACTIONS,) if config.actions.enabled else ())
        + projections(config),
        config.timeseries.hot_days if config.timeseries.url is not None else None,
        config.storage.retention.audit_days,
        alarm_retention(config),
        CompactionSettings(config.storage.compaction.enabled, config.storage.compaction.after_days),
    )


def alarm_retention(config: Config) -> AlarmRetention:
    """For how long ended alarms are kept. The profile `default` speaks for types without their own."""
    own = {name: section.retention.alarm_days for name, section in config.profiles.items()}
    default = own.pop("default", None)
    by_type = tuple((name, days) for name, days in sorted(own.items()) if days is not None)
    return AlarmRetention(config.storage.retention.alarm_days if default is None else default, by_type)


def peer_services(config: Config, dsns: Sequence[str], namespace: str) -> Iterator[ServiceSpec]:
    """What compares devices with their peers, where that is wanted."""
    if config.compares_peers:
        yield adapter_service("peers", None, namespace, peer_adapter, dsns, config.analytics.peer_place)
