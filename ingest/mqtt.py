"""Telemetry from MQTT: a subscription, shared or not, into the pipeline; acknowledged after the commit."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import Any
from zlib import crc32

import msgspec

from sensorium.actors.profile import RateLimit, RateLimits
from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.lorawan.adapter import LorawanAdapter, LorawanSettings
from sensorium.ingest.lorawan.chirpstack import TOPIC as CHIRPSTACK
from sensorium.ingest.message_ids import IN_PAYLOAD, identified
from sensorium.ingest.mqtt_acks import Acks
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import DUP, Packet, Properties, packet_id
from sensorium.ingest.pipeline import Pipeline, Router

TELEMETRY = "devices/+/telemetry"
_KNOWN_TOPICS = 65_536


class MqttSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingestor needs to know.

    Attributes:
        client_id: unique among ingestors and stable over restarts.
        share: the shared subscription's name; the broker spreads messages over the ingestors of one name.
            None: a subscription of its own, which Mosquitto keeps over its restart, unlike shared ones.
        max_qos: at which the broker shall deliver at most.
        max_pending: messages accepted and not committed, above which reading stops; it goes on at the half.
        drain_timeout_s: how long `stop` waits for what was accepted.
        limit: on the messages of each device.
        lorawan: given, the ingestor reads ChirpStack's events instead of telemetry.
    """

    address: BrokerAddress
    client_id: str = "sensorium-ingest-0"
    share: str | None = "sensorium"
    max_qos: int = 2
    options: MqttOptions = MqttOptions()
    bounds: Bounds = Bounds()
    max_pending: int = 20_000
    drain_timeout_s: float = 10.0
    limit: RateLimit | RateLimits | None = None
    lorawan: LorawanSettings | None = None


class MqttIngestor:
    """Reads telemetry of QoS 0, 1 and 2 and acknowledges what is committed. Start and stop it once."""

    def __init__(
        self,
        settings: MqttSettings,
        router: Router,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._router = router
        self._clock_ms = clock_ms
        lorawan = settings.lorawan
        source = "mqtt" if lorawan is None else "lorawan"
        self._pipeline = Pipeline(router, settings.bounds, source, settings.limit)
        self._lorawan = (
            None if lorawan is None else LorawanAdapter(self._pipeline, router, lorawan, settings.bounds)
        )
        topic = TELEMETRY if lorawan is None else CHIRPSTACK
        self._decode = TelemetryDecoder(settings.bounds).decode
        self._client = MqttClient(
            settings.address,
            settings.client_id,
            subscriptions=(
                (
                    topic if settings.share is None else f"$share/{settings.share}/{topic}",
                    settings.max_qos,
                ),
            ),
            on_packets=self._take if lorawan is None else self._take_lorawan,
            options=settings.options,
        )
        # Packet ids are the session's, which is known by the client id.
        self._origin = crc32(settings.client_id.encode()) << 16
        self._acks: Acks | None = None
        self._full = asyncio.Event()
        self._fewer = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._stopping = False
        self._received = 0
        self._finished = 0
        self._acked = 0
        self._redelivered = 0
        self._pauses = 0

    async def start(self) -> None:
        """Begin connecting; returns at once. `connected` tells when messages can come."""
        self._task = asyncio.create_task(self._run(), name=f"ingest {self._settings.client_id}")

    async def connected(self) -> None:
        """Return once subscribed."""
        await self._client.connected()

    def check(self) -> None:
        """Raise what ended the ingestor, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Stop reading, wait for what was accepted, acknowledge it, disconnect.

        What is not committed within `drain_timeout_s` stays unacknowledged: the broker delivers it again.
        """
        if self._task is None:
            return
        self._stopping = True
        self._client.pause()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        self._stop.set()
        await self._task

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the states of the client and the pipeline."""
        return {
            "received": self._received,
            "pending": self._received - self._finished,
            "acked": self._acked,
            "redelivered": self._redelivered,
            "pauses": self._pauses,
            "paused": self._full.is_set(),
            "connected": self._client.is_connected,
            "client": self._client.statistics(),
            **self._pipeline.statistics(),
            **({} if self._lorawan is None else {"lorawan": self._lorawan.statistics()}),
        }

    async def _run(self) -> None:
        async with AsyncExitStack() as stack, self._client, asyncio.TaskGroup() as tasks:
            if self._lorawan is not None:
                stack.push_async_callback(self._lorawan.close)
            self._tasks = tasks
            throttle = tasks.create_task(self._throttle())
            await self._stop.wait()
            throttle.cancel()

    async def _throttle(self) -> None:
        while True:
            await self._full.wait()
            half = self._settings.max_pending // 2
            await self._router.eased(half)
            while self._received - self._finished - self._held() > half:
                self._fewer.clear()
                await self._fewer.wait()
            self._full.clear()
            if not self._stopping:
                self._client.resume()

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        acks = self._begin(connection, packets)
        telemetry = self._pipeline.telemetry
        received_ms = self._clock_ms()
        origin = self._origin
        for topic, payload, ack, head, properties in packets:
            address, device_id = _device_of(topic)
            redelivered = head & DUP != 0
            self._redelivered += redelivered
            if properties is not None or IN_PAYLOAD in payload:
                self._take_identified(address, device_id, payload, received_ms, acks, ack, head, properties)
                continue
            telemetry(
                address,
                device_id,
                payload,
                received_ms,
                origin | packet_id(ack) if ack else None,
                acks.done,
                ack,
                redelivered=redelivered,
            )
        self._pause_when_full()

    def _take_identified(
        self,
        address: str,
        device_id: str,
        payload: bytes,
        received_ms: int,
        acks: Acks,
        ack: int,
        head: int,
        properties: Properties | None,
    ) -> None:
        """Take a message that may have an id of its own, which a repetition has, too."""
        try:
            said = identified(device_id, self._decode(payload, received_ms), properties)
        except Undecodable as error:
            self._pipeline.refuse(address, device_id, payload, received_ms, error, acks.done, ack)
            return
        by_packet = self._origin | packet_id(ack) if ack else None
        self._pipeline.telemetry(
            *(address, device_id, payload, received_ms),
            by_packet if said.identity is None else said.identity % 2**64,
            *(acks.done, ack),
            redelivered=head & DUP != 0,
            decode=lambda _, __: said.readings,
            identity=said.identity,
            known_again=said.identity is not None,
        )

    def _take_lorawan(self, connection: Connection, packets: list[Packet]) -> None:
        assert self._lorawan is not None
        acks = self._begin(connection, packets)
        received_ms = self._clock_ms()
        for topic, payload, ack, _, _ in packets:
            # The adapter takes them in the order in which the tasks begin.
            self._tasks.create_task(
                self._lorawan.chirpstack(topic.decode(errors="replace"), payload, received_ms, acks.done, ack)
            )
        self._pause_when_full()

    def _begin(self, connection: Connection, packets: list[Packet]) -> Acks:
        acks = self._acks
        if acks is None or acks.connection is not connection:
            acks = self._acks = Acks(connection, self._count)
        self._received += len(packets)
        self._idle.clear()
        return acks

    def _pause_when_full(self) -> None:
        # What waits for a codec of LoRaWAN is not the router's yet.
        pending = max(self._router.load, self._received - self._finished - self._held())
        if pending > self._settings.max_pending and not self._full.is_set():
            self._pauses += 1
            self._full.set()
            self._client.pause()

    def _held(self) -> int:
        return self._router.pending - self._router.load

    def _count(self, finished: int, acked: int) -> None:
        self._finished += finished
        self._acked += acked
        self._fewer.set()
        if self._finished == self._received:
            self._idle.set()


@lru_cache(_KNOWN_TOPICS)
def _device_of(topic: bytes) -> tuple[str, str]:
    """A topic as text and the device id in it; "" if there is none."""
    address = topic.decode(errors="replace")
    levels = address.split("/")
    return address, levels[1] if len(levels) == 3 else ""
