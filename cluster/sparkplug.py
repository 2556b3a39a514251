"""The way in from Sparkplug B as a service of the coordinator."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.runtime import make_router
from sensorium.cluster.config import Config
from sensorium.ingest.mqtt import MqttSettings
from sensorium.ingest.sparkplug.adapter import ROUTE
from sensorium.ingest.sparkplug.address import Address, address_of
from sensorium.ingest.sparkplug.ingestor import SparkplugIngestor, SparkplugSettings
from sensorium.storage.command_notices import PgReadyCommands
from sensorium.storage.routes import routes

_log = logging.getLogger(__name__)


def sparkplug_services(
    config: Config, mqtt: MqttSettings, dsns: Sequence[str], namespace: str
) -> list[ServiceSpec]:
    """One, where it is configured; `mqtt` says how to talk to the broker, `dsns` where commands are."""
    section = config.sparkplug
    if not section.enabled:
        return []
    settings = SparkplugSettings(
        address=mqtt.address,
        client_id=f"{config.mqtt.client_id}-sparkplug-0",
        groups=tuple(section.groups),
        naming=section.naming(),
        host_id=section.host_id,
        options=mqtt.options,
        bounds=config.bounds,
        max_pending=config.ingest.max_pending,
        limit=config.limits("sparkplug"),
    )
    return [ServiceSpec("sparkplug-0", SparkplugService, ("sparkplug-0", settings, dsns, namespace))]


class SparkplugService:
    """Sparkplug messages in and commands out, in a process of its own."""

    def __init__(self, name: str, settings: SparkplugSettings, dsns: Sequence[str], namespace: str) -> None:
        self._dsns = dsns
        self._name = name
        self._settings = settings
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect to the broker, and keep trying while it is away."""
        await self._router.start()
        sources = [PgReadyCommands(dsn, ROUTE) for dsn in self._dsns]
        known = [address for dsn in self._dsns for address in await _known(dsn)]
        self._ingestor = SparkplugIngestor(self._settings, self._router, sources, known=known)
        await self._ingestor.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._ingestor.check()

    def statistics(self) -> dict[str, Any]:
        """Of the ingestor, with the router's under "router"."""
        return {
            "name": self._name,
            "protocol": "sparkplug",
            **msgspec.to_builtins(self._ingestor.statistics()),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Stop reading, wait for what was read, acknowledge it."""
        await self._ingestor.stop()
        await self._router.close()


async def _known(dsn: str) -> list[Address]:
    """Without the database there are none: then each is asked for its birth when it is heard of."""
    try:
        found = await routes(dsn, ROUTE)
    except LogUnavailable as error:
        _log.warning("edge nodes are not known before they are heard of: %s", error)
        return []
    return [address for route in found if (address := address_of(route)) is not None]
