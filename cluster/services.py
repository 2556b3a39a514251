"""Services as the coordinator runs them: adapters of the lower rooms, given what they need."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.router import Router
from sensorium.actors.runtime import NAMESPACE
from sensorium.cluster.adapters import TaskAdapter, adapter_service, opened_pools
from sensorium.cluster.config import Config
from sensorium.cluster.streams import projections
from sensorium.ingest.coap import CoapServer, CoapSettings
from sensorium.ingest.downlink import Downlink, DownlinkSettings
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.serve.deployment import ApiSettings
from sensorium.serve.peers import PeerWatch
from sensorium.serve.spreader import Spreader
from sensorium.storage.action_sink import NAME as ACTIONS
from sensorium.storage.attendance import DOWNLINK, attend
from sensorium.storage.bulk_jobs import BulkJobs
from sensorium.storage.command_notices import PgReadyCommands
from sensorium.storage.commands import PgCommands
from sensorium.storage.compaction import CompactionSettings
from sensorium.storage.peer_means import PeerMeans
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.retention import AlarmRetention, RetentionKeeper, RetentionSettings
from sensorium.storage.rollup_sink import NAME as ROLLUPS
from sensorium.storage.rollup_sink import SETTINGS as ROLLUP_SETTINGS
from sensorium.storage.rollup_sink import RollupSink
from sensorium.storage.spread_reads import SpreadCommands

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


def rollup_service(dsn: str, position: int) -> ProjectionRunner:
    """The projection of one database into its rollups, in a process of its own."""
    return ProjectionRunner(dsn, ROLLUP_SETTINGS, RollupSink(), position=position)


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


async def mqtt_adapter(settings: MqttSettings, router: Router, _: AsyncExitStack) -> MqttIngestor:
    """Telemetry by MQTT, or what ChirpStack says there."""
    return MqttIngestor(settings, router)


async def coap_adapter(
    settings: CoapSettings, dsns: Sequence[str], router: Router, _: AsyncExitStack
) -> CoapServer:
    """All that devices do by CoAP."""
    return CoapServer(settings, router, sources=[PgReadyCommands(dsn, "coap") for dsn in dsns])


async def command_adapter(
    settings: DownlinkSettings, dsns: Sequence[str], router: Router, stack: AsyncExitStack
) -> "CommandAdapter":
    """Commands and twins to devices by MQTT, and bulk jobs."""
    pools = await opened_pools(stack, dsns, "sensorium-bulk-jobs")
    commands = SpreadCommands(pools) if len(pools) > 1 else PgCommands(pools[0])
    downlink = Downlink(settings, router, [PgReadyCommands(dsn) for dsn in dsns])
    spreader = Spreader(router, BulkJobs(pools[0]), commands)
    jobs = TaskAdapter("bulk jobs", spreader.run, spreader.statistics)
    presence = TaskAdapter("presence", partial(attend, dsns[0], DOWNLINK), dict)
    return CommandAdapter(downlink, jobs, presence)


class CommandAdapter:
    """The downlink of MQTT, and beside it what gives out bulk jobs, to devices of all protocols.

    `presence` says to replicas of the API that answers are heard.
    """

    def __init__(self, downlink: Downlink, jobs: TaskAdapter, presence: TaskAdapter) -> None:
        self._downlink = downlink
        self._jobs = jobs
        self._presence = presence

    async def start(self) -> None:
        """Begin to connect to the broker, and keep trying while it is away."""
        await self._downlink.start()
        await self._jobs.start()
        await self._presence.start()

    def check(self) -> None:
        """Raise what ended one of them."""
        self._downlink.check()
        self._jobs.check()
        self._presence.check()

    def statistics(self) -> dict[str, Any]:
        """Of the downlink, with those of bulk jobs under "bulk"."""
        return {**self._downlink.statistics(), "bulk": self._jobs.statistics()}

    async def stop(self) -> None:
        """Give out and claim nothing more, finish what is under way."""
        await self._presence.stop()
        await self._jobs.stop()
        await self._downlink.stop()


async def peer_adapter(
    dsns: Sequence[str], place_key: str, router: Router, stack: AsyncExitStack
) -> TaskAdapter:
    """Devices compared with their peers, as hours settle."""
    pools = await opened_pools(stack, dsns, "sensorium-peers")
    watch = PeerWatch(router, PeerMeans(pools), _now_ms, place_key)
    return TaskAdapter("peers", watch.run, watch.statistics)


def peer_services(config: Config, dsns: Sequence[str], namespace: str) -> Iterator[ServiceSpec]:
    """What compares devices with their peers, where that is wanted."""
    if config.compares_peers:
        yield adapter_service("peers", None, namespace, peer_adapter, dsns, config.analytics.peer_place)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
