"""Services as the coordinator runs them: adapters of the lower rooms, given the router they need."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.runtime import NAMESPACE, make_router
from sensorium.cluster.config import Config
from sensorium.cluster.streams import projections
from sensorium.ingest.coap import CoapServer, CoapSettings
from sensorium.ingest.downlink import Downlink, DownlinkSettings
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
from sensorium.serve.deployment import ApiSettings
from sensorium.serve.peers import PeerWatch
from sensorium.serve.spreader import Spreader
from sensorium.storage.action_sink import NAME as ACTIONS
from sensorium.storage.bulk_jobs import BulkJobs
from sensorium.storage.command_notices import PgReadyCommands
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.peer_means import PeerMeans
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.retention import RetentionKeeper, RetentionSettings
from sensorium.storage.rollup_sink import NAME as ROLLUPS
from sensorium.storage.rollup_sink import SETTINGS as ROLLUP_SETTINGS
from sensorium.storage.rollup_sink import RollupSink
from sensorium.storage.spread_reads import SpreadCommands

_SERVICES: Final = 12
"""That use the database, at most: retention, commands, bulk jobs, peers, projections with one to come and go,
and actions, which have as many connections as four."""


def api_settings(config: Config, dsn: str) -> ApiSettings:
    """What a replica of the API is given."""
    return ApiSettings(
        dsn=dsn,
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
        profiles=config.device_profiles,
    )


def connections_needed(config: Config) -> int:
    """How many connections a database has to grant at most to hosts, replicas of the API, and services.

    A host has one to commit, two to load, two to select and one that listens; a replica its pool and one that
    listens; a service two; the membership two, claims two.
    """
    per_database = 6 * config.cluster.hosts + (ApiSettings("").pool_size + 1) * config.http.replicas
    return per_database + 2 * _SERVICES + 4


def storage_services(config: Config, dsns: Sequence[str]) -> Iterator[ServiceSpec]:
    """What each database of the log is given: retention, and its own projections."""
    for position, dsn in enumerate(dsns):
        name = f"-{position}" if position else ""
        yield ServiceSpec(f"retention{name}", RetentionKeeper, (dsn, retention_settings(config)))
        if config.storage.rollups:
            yield ServiceSpec(f"projection-rollups{name}", rollup_service, (dsn, position))


def rollup_service(dsn: str, position: int) -> ProjectionRunner:
    """The projection of one database into its rollups, in a process of its own."""
    return ProjectionRunner(dsn, ROLLUP_SETTINGS, RollupSink(), position=position)


def retention_settings(config: Config) -> RetentionSettings:
    """For how long what is kept. A day of the log stays until every projection has read it."""
    keep = config.storage.retention
    days = {"1m": keep.rollup_1m_days, "1h": keep.rollup_1h_days, "1d": keep.rollup_1d_days}
    return RetentionSettings(
        keep.raw_days,
        tuple((level, n) for level, n in days.items() if n is not None),
        ((ROLLUPS,) if config.storage.rollups else ())
        + ((ACTIONS,) if config.actions.enabled else ())
        + projections(config),
        config.timeseries.hot_days if config.timeseries.url is not None else None,
        keep.audit_days,
    )


class MqttService:
    """An MQTT ingestor in a process of its own."""

    def __init__(self, name: str, settings: MqttSettings, namespace: str) -> None:
        self._name = name
        self._settings = settings
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect to the broker, and keep trying while it is away."""
        await self._router.start()
        self._ingestor = MqttIngestor(self._settings, self._router)
        await self._ingestor.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._ingestor.check()

    def statistics(self) -> dict[str, Any]:
        """Of the ingestor, with the router's under "router"."""
        return {
            "name": self._name,
            "protocol": "mqtt" if self._settings.lorawan is None else "lorawan",
            **msgspec.to_builtins(self._ingestor.statistics()),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Stop reading, wait for what was read, acknowledge it."""
        await self._ingestor.stop()
        await self._router.close()


class CommandService:
    """Commands and twins to devices over MQTT, and bulk jobs to many of them, in a process of its own."""

    def __init__(self, name: str, settings: DownlinkSettings, dsns: Sequence[str], namespace: str) -> None:
        self._name = name
        self._settings = settings
        self._dsns = dsns
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect to the broker, and keep trying while it is away."""
        await self._router.start()
        self._downlink = Downlink(self._settings, self._router, [PgReadyCommands(dsn) for dsn in self._dsns])
        await self._downlink.start()
        pools = [await open_pool(dsn, 1, "sensorium-bulk-jobs") for dsn in self._dsns]
        self._pools = pools
        commands = SpreadCommands(pools) if len(pools) > 1 else PgCommands(pools[0])
        self._spreader = Spreader(self._router, BulkJobs(pools[0]), commands)
        self._spreading = asyncio.create_task(self._spreader.run(), name="bulk jobs")

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._downlink.check()
        if self._spreading.done() and not self._spreading.cancelled():
            self._spreading.result()

    def statistics(self) -> dict[str, Any]:
        """Of the downlink, with the router's under "router" and those of bulk jobs under "bulk"."""
        return {
            "name": self._name,
            **msgspec.to_builtins(self._downlink.statistics()),
            "bulk": self._spreader.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Give out and claim nothing more, finish what is under way."""
        self._spreading.cancel()
        await asyncio.gather(self._spreading, return_exceptions=True)
        await self._downlink.stop()
        await asyncio.gather(*map(close_pool, self._pools))
        await self._router.close()


class PeerService:
    """Devices compared with their peers, in a process of its own."""

    def __init__(self, name: str, dsns: Sequence[str], place_key: str, namespace: str) -> None:
        self._name = name
        self._dsns = dsns
        self._place_key = place_key
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to look for hours that have settled."""
        await self._router.start()
        self._pools = [await open_pool(dsn, 1, "sensorium-peers") for dsn in self._dsns]
        self._watch = PeerWatch(self._router, PeerMeans(self._pools), _now_ms, self._place_key)
        self._watching = asyncio.create_task(self._watch.run(), name="peers")

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        if self._watching.done() and not self._watching.cancelled():
            self._watching.result()

    def statistics(self) -> dict[str, Any]:
        """How many were compared and told, with the router's under "router"."""
        return {"name": self._name, **self._watch.statistics(), "router": self._router.statistics()}

    async def stop(self) -> None:
        """Compare nothing more."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*map(close_pool, self._pools))
        await self._router.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def peer_services(config: Config, dsns: Sequence[str], namespace: str) -> Iterator[ServiceSpec]:
    """What compares devices with their peers, where that is wanted."""
    if config.compares_peers:
        yield ServiceSpec("peers", PeerService, ("peers", dsns, config.analytics.peer_place, namespace))


class CoapService:
    """A CoAP server in a process of its own."""

    def __init__(self, name: str, settings: CoapSettings, dsns: Sequence[str], namespace: str) -> None:
        self._dsns = dsns
        self._name = name
        self._settings = settings
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Listen. Raises `OSError` when the port is taken, `InvalidContext` over an OSCORE context."""
        await self._router.start()
        sources = [PgReadyCommands(dsn, "coap") for dsn in self._dsns]
        self._server = CoapServer(self._settings, self._router, sources=sources)
        await self._server.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._server.check()

    def statistics(self) -> dict[str, Any]:
        """Of the server, with the router's under "router"."""
        return {
            "name": self._name,
            "protocol": "coap",
            **self._server.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Refuse what is new, answer what was taken, close."""
        await self._server.stop()
        await self._router.close()
