"""Commands to LoRaWAN devices as a service of the coordinator."""

import os
from collections.abc import Sequence
from typing import Any

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.runtime import make_router
from sensorium.cluster.config import Config
from sensorium.ingest.lorawan.adapter import CHIRPSTACK, TTS
from sensorium.ingest.lorawan.downlinks import LorawanDownlinks, LorawanDownlinkSettings
from sensorium.ingest.mqtt import MqttSettings
from sensorium.storage.command_notices import PgReadyCommands


def lorawan_command_services(
    config: Config, mqtt: MqttSettings, dsns: Sequence[str], namespace: str
) -> list[ServiceSpec]:
    """One, where a network server takes commands; `mqtt` says how to talk to the broker."""
    section = config.lorawan
    if not section.chirpstack and section.tts() is None:
        return []
    settings = LorawanDownlinkSettings(
        address=mqtt.address,
        client_id=f"{config.mqtt.client_id}-lorawan-commands-0",
        lorawan=section.settings(),
        tts=section.tts(),
    )
    name = "lorawan-commands-0"
    return [ServiceSpec(name, LorawanCommandService, (name, settings, dsns, namespace))]


class LorawanCommandService:
    """Queues commands at network servers, in a process of its own."""

    def __init__(
        self, name: str, settings: LorawanDownlinkSettings, dsns: Sequence[str], namespace: str
    ) -> None:
        self._name = name
        self._settings = settings
        self._dsns = dsns
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect, and keep trying while a network server is away."""
        await self._router.start()
        sources = {
            downlink: [PgReadyCommands(dsn, downlink) for dsn in self._dsns] for downlink in (CHIRPSTACK, TTS)
        }
        self._downlinks = LorawanDownlinks(self._settings, self._router, sources)
        await self._downlinks.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._downlinks.check()

    def statistics(self) -> dict[str, Any]:
        """Of the dispatchers, with the router's under "router"."""
        return {
            "name": self._name,
            **self._downlinks.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Claim nothing more, finish what is under way."""
        await self._downlinks.stop()
        await self._router.close()
