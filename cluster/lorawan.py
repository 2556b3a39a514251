"""Commands to LoRaWAN devices, and The Things Stack by MQTT, as services of the coordinator."""

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.router import Router
from sensorium.cluster.adapters import adapter_service
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
        yield adapter_service(name, None, namespace, command_adapter, settings, dsns)
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
        yield adapter_service("tts-0", "lorawan", namespace, tts_adapter, reader, dsns)


async def command_adapter(
    settings: LorawanDownlinkSettings, dsns: Sequence[str], router: Router, _: AsyncExitStack
) -> LorawanDownlinks:
    """Queues commands at network servers."""
    sources = {kind: [PgReadyCommands(dsn, kind) for dsn in dsns] for kind in (CHIRPSTACK, TTS)}
    return LorawanDownlinks(settings, router, sources)


async def tts_adapter(
    settings: TtsMqttSettings, dsns: Sequence[str], router: Router, _: AsyncExitStack
) -> TtsMqtt:
    """The Things Stack by its MQTT server."""
    return TtsMqtt(settings, router, [PgReadyCommands(dsn, TTS) for dsn in dsns])
