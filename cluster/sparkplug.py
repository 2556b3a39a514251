"""The way in from Sparkplug B as a service of the coordinator."""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.router import Router
from sensorium.cluster.adapters import adapter_service
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
    return [adapter_service("sparkplug-0", "sparkplug", namespace, sparkplug_adapter, settings, dsns)]


async def sparkplug_adapter(
    settings: SparkplugSettings, dsns: Sequence[str], router: Router, _: AsyncExitStack
) -> SparkplugIngestor:
    """Sparkplug messages in and commands out."""
    sources = [PgReadyCommands(dsn, ROUTE) for dsn in dsns]
    known = [address for dsn in dsns for address in await _known(dsn)]
    return SparkplugIngestor(settings, router, sources, known=known)


async def _known(dsn: str) -> list[Address]:
    """Without the database there are none: then each is asked for its birth when it is heard of."""
    try:
        found = await routes(dsn, ROUTE)
    except LogUnavailable as error:
        _log.warning("edge nodes are not known before they are heard of: %s", error)
        return []
    return [address for route in found if (address := address_of(route)) is not None]
