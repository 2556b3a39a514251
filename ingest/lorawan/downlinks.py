"""Commands to LoRaWAN devices: a dispatcher for each network server that is configured."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from sensorium.ingest.dispatch import Dispatcher, ReadyCommands
from sensorium.ingest.lorawan.adapter import CHIRPSTACK, TTS, LorawanSettings
from sensorium.ingest.lorawan.carriers import ChirpstackCarrier, TtsCarrier, TtsSettings
from sensorium.ingest.lorawan.frames import FrameEncoder
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.pipeline import Router


class LorawanDownlinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to tell LoRaWAN devices.

    Attributes:
        address: the broker that ChirpStack has, or has its integration at.
        lorawan: codecs and commands, and whether there is a ChirpStack.
        tts: The Things Stack, if there is one.
        drain_timeout_s: how long `stop` waits for what is under way.
    """

    address: BrokerAddress
    client_id: str = "sensorium-lorawan-commands-0"
    lorawan: LorawanSettings = LorawanSettings()
    tts: TtsSettings | None = None
    options: MqttOptions = MqttOptions()
    drain_timeout_s: float = 10.0


class LorawanDownlinks:
    """Queues commands at the network servers. Start and stop it once.

    Args:
        sources: where it stands which commands are ready, by "chirpstack" and "tts".
    """

    def __init__(
        self,
        settings: LorawanDownlinkSettings,
        router: Router,
        sources: Mapping[str, Sequence[ReadyCommands]],
    ) -> None:
        self._settings = settings
        encoder = FrameEncoder(settings.lorawan.codecs, settings.lorawan.commands)
        self._encoder = encoder
        self._publisher: MqttClient | None = None
        self._tts: TtsCarrier | None = None
        carriers: dict[str, ChirpstackCarrier | TtsCarrier] = {}
        if settings.lorawan.chirpstack:
            options = msgspec.structs.replace(settings.options, session_expiry_s=0)
            self._publisher = MqttClient(settings.address, settings.client_id, options=options, repeat=False)
            carriers[CHIRPSTACK] = ChirpstackCarrier(self._publisher, encoder)
        if settings.tts is not None:
            self._tts = carriers[TTS] = TtsCarrier(settings.tts, encoder)
        self._dispatchers = {
            name: Dispatcher(router, sources[name], carrier, carrier) for name, carrier in carriers.items()
        }
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name=self._settings.client_id)

    def check(self) -> None:
        """Raise what ended it, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Claim nothing more, wait for what is under way."""
        if self._task is not None:
            self._stop.set()
            await self._task

    def statistics(self) -> dict[str, Any]:
        """Of each dispatcher."""
        return {name: dispatcher.statistics() for name, dispatcher in self._dispatchers.items()}

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._encoder.close)
            if self._tts is not None:
                stack.push_async_callback(self._tts.close)
            if self._publisher is not None:
                await stack.enter_async_context(self._publisher)
            async with asyncio.TaskGroup() as tasks:
                dispatching = [tasks.create_task(each.run(tasks)) for each in self._dispatchers.values()]
                await self._stop.wait()
                for task in dispatching:
                    task.cancel()
                try:
                    async with asyncio.timeout(self._settings.drain_timeout_s):
                        for each in self._dispatchers.values():
                            await each.drained()
                except TimeoutError:
                    pass
