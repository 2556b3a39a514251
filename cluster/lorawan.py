"""Commands to LoRaWAN devices, and The Things Stack by MQTT, as services of the coordinator."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.runtime import make_router
from sensorium.cluster.config import Config
from sensorium.ingest.lorawan.adapter import CHIRPSTACK, TTS
from sensorium.ingest.lorawan.downlinks import LorawanDownlinks, LorawanDownlinkSettings
from sensorium.ingest.lorawan.tts_mqtt import TtsMqtt, TtsMqttSettings
from sensorium.ingest.mqtt import MqttSettings
from sensorium.storage.command_notices import PgReadyCommands


def lorawan_command_services(
    config: Config, mqtt: MqttSettings, dsns: Sequence[str], namespace: str
) -> Iterator[ServiceSpec]:
    """Those that are configured; `mqtt` says how to talk to the broker, `dsns` where commands are."""
    section = config.lorawan
    if section.chirpstack or section.tts() is not None:
        settings = LorawanDownlinkSettings(
            address=mqtt.address,
            client_id=f"{config.mqtt.client_id}-lorawan-commands-0",
            lorawan=section.settings(),
            tts=section.tts(),
        )
        name = "lorawan-commands-0"
        yield ServiceSpec(name, LorawanCommandService, (name, settings, dsns, namespace))
    if (address := section.tts_mqtt()) is not None:
        reader = TtsMqttSettings(
            address=address,
            client_id=f"{config.mqtt.client_id}-tts-0",
            # By HTTP it is known whether a command was taken.
            commands=section.tts() is None,
            lorawan=section.settings(),
            bounds=config.bounds,
            max_pending=config.ingest.max_pending,
            limit=config.limits("lorawan"),
        )
        yield ServiceSpec("tts-0", TtsMqttService, ("tts-0", reader, dsns, namespace))


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


class TtsMqttService:
    """The Things Stack by its MQTT server, in a process of its own."""

    def __init__(self, name: str, settings: TtsMqttSettings, dsns: Sequence[str], namespace: str) -> None:
        self._name = name
        self._settings = settings
        self._dsns = dsns
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect, and keep trying while the server is away."""
        await self._router.start()
        sources = [PgReadyCommands(dsn, TTS) for dsn in self._dsns]
        self._reader = TtsMqtt(self._settings, self._router, sources)
        await self._reader.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._reader.check()

    def statistics(self) -> dict[str, Any]:
        """Of the reader, with the router's under "router"."""
        return {
            "name": self._name,
            "protocol": "lorawan",
            **self._reader.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Claim nothing more, stop reading, finish what was read."""
        await self._reader.stop()
        await self._router.close()
