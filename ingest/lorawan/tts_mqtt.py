"""The Things Stack v3 over its own MQTT server: messages in, commands out. At QoS 0, as it has it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.messages import Outcome, Telling, TwinTelling
from sensorium.actors.profile import RateLimits
from sensorium.ingest.decode import Bounds
from sensorium.ingest.dispatch import Dispatcher, ReadyCommands, Untold
from sensorium.ingest.errors import Disconnected
from sensorium.ingest.lorawan.adapter import LorawanAdapter, LorawanSettings
from sensorium.ingest.lorawan.carriers import as_command, level_of, profile_of, tts_downlink
from sensorium.ingest.lorawan.frames import FrameEncoder
from sensorium.ingest.mqtt311 import Mqtt311Client, Mqtt311Options
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.pipeline import Pipeline, Router

KINDS: Final = ("up", "join", "location/solved", "down/sent", "down/ack", "down/nack", "down/failed")
"""What is subscribed to of each device."""


class TtsMqttSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to talk to The Things Stack's MQTT server.

    Attributes:
        address: of the server, with the application as user and an API key as password.
        commands: whether commands go this way.
        max_pending: messages accepted and not committed, above which reading stops.
        limit: on the uplinks of each device.
        drain_timeout_s: how long `stop` waits for what was accepted.
    """

    address: BrokerAddress
    client_id: str = "sensorium-tts-0"
    commands: bool = False
    lorawan: LorawanSettings = LorawanSettings()
    bounds: Bounds = Bounds()
    options: Mqtt311Options = Mqtt311Options()
    max_pending: int = 5_000
    limit: RateLimits | None = None
    drain_timeout_s: float = 10.0

    @property
    def user(self) -> str:
        """The application with its tenant, such as `app@ttn`."""
        return self.address.username or ""


class TtsMqtt:
    """Reads all that is said of an application's devices, and pushes their downlinks. Start and stop it once.

    What comes while it is away is lost: webhooks are repeated, this is not.
    """

    def __init__(
        self,
        settings: TtsMqttSettings,
        router: Router,
        sources: Sequence[ReadyCommands] = (),
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._router = router
        self._clock_ms = clock_ms
        self._pipeline = Pipeline(router, settings.bounds, "lorawan", settings.limit)
        self._adapter = LorawanAdapter(self._pipeline, router, settings.lorawan, settings.bounds)
        self._client = Mqtt311Client(
            settings.address,
            settings.client_id,
            tuple(f"v3/{settings.user}/devices/+/{kind}" for kind in KINDS),
            self._take,
            settings.options,
        )
        self._encoder = FrameEncoder(settings.lorawan.codecs, settings.lorawan.commands)
        carrier = TtsMqttCarrier(self._client, settings.user, self._encoder)
        self._dispatcher = Dispatcher(router, sources if settings.commands else (), carrier, carrier)
        self._received = self._finished = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin connecting; returns at once."""
        self._task = asyncio.create_task(self._run(), name=self._settings.client_id)

    async def connected(self) -> None:
        """Return once messages can come."""
        await self._client.connected()

    def check(self) -> None:
        """Raise what ended it, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Claim nothing more, stop reading, wait for what was accepted."""
        if self._task is not None:
            self._stop.set()
            await self._task

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the states of the client, the adapter and the dispatcher."""
        return {
            "received": self._received,
            "pending": self._received - self._finished,
            "connected": self._client.is_connected,
            "client": self._client.statistics(),
            **self._pipeline.statistics(),
            "lorawan": self._adapter.statistics(),
            "commands": self._dispatcher.statistics(),
        }

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                dispatching = tasks.create_task(self._dispatcher.run(tasks))
                reading = tasks.create_task(self._client.run())
                await self._stop.wait()
                dispatching.cancel()
                try:
                    async with asyncio.timeout(self._settings.drain_timeout_s):
                        await self._dispatcher.drained()
                        reading.cancel()
                        await self._idle.wait()
                except TimeoutError:
                    reading.cancel()
        finally:
            await self._adapter.close()
            await self._encoder.close()

    async def _take(self, topic: str, payload: bytes) -> None:
        self._received += 1
        self._idle.clear()
        application = self._settings.user.partition("@")[0]
        await self._adapter.tts(application, payload, self._clock_ms(), self._done, None, address=topic)
        if self._router.load > self._settings.max_pending:
            await self._router.eased(self._settings.max_pending // 2)

    def _done(self, _: None, __: Outcome) -> None:
        self._finished += 1
        if self._finished == self._received:
            self._idle.set()


class TtsMqttCarrier:
    """Publishes into the queue of a device. Nothing says that it was taken but what comes of it."""

    def __init__(self, client: Mqtt311Client, user: str, encoder: FrameEncoder) -> None:
        self._client = client
        self._user = user
        self._encoder = encoder

    async def ready(self) -> None:
        """Return once connected."""
        await self._client.connected()

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Queue it; see `Carrier.tell`."""
        device, application = (level_of(telling.route, name) for name in ("device", "application"))
        if application != self._user.partition("@")[0]:
            raise Untold(f"it is of the application {application!r}, and the key of another", final=True)
        frame = await self._encoder.encode(telling, profile_of(telling.route))
        payload = msgspec.json.encode({"downlinks": [tts_downlink(frame, telling.command_id)]})
        try:
            await self._client.publish(f"v3/{self._user}/devices/{device}/down/push", payload)
        except Disconnected as error:
            raise Untold(str(error), final=False, count="unreached") from None

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """Queue it; see `TwinCarrier.tell_twin`."""
        await self.tell(device_id, as_command(telling))
