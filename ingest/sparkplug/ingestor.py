"""Sparkplug B over MQTT: reads what edge nodes say, tells them commands, and says that we are there."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from zlib import crc32

import msgspec

from sensorium.actors.profile import RateLimit, RateLimits
from sensorium.ingest.decode import Bounds
from sensorium.ingest.dispatch import Dispatcher, ReadyCommands
from sensorium.ingest.errors import Disconnected
from sensorium.ingest.mqtt_acks import Acks
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions, Will
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import DUP, Packet, packet_id
from sensorium.ingest.pipeline import Pipeline, Router
from sensorium.ingest.sparkplug.adapter import SparkplugAdapter
from sensorium.ingest.sparkplug.address import NAMESPACE, Address, Naming, subscriptions
from sensorium.ingest.sparkplug.commands import REBIRTH_METRIC, SparkplugCarrier
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import Metric, Payload
from sensorium.ingest.sparkplug.session import Definitions

REBIRTHS_PER_S: Final = 50
"""Asked for at most, so that not all edge nodes say everything at once after a restart of ours."""


class SparkplugSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the way in from Sparkplug needs to know.

    Attributes:
        client_id: unique at the broker and stable over restarts.
        groups: whose edge nodes are read; empty: all.
        host_id: given, `spBv1.0/STATE/{host_id}` says whether we are there, which edge nodes may wait for.
        max_pending: messages accepted and not committed, above which reading stops; it goes on at the half.
        drain_timeout_s: how long `stop` waits for what was accepted.
        limit: on the messages of each device.
    """

    address: BrokerAddress
    client_id: str = "sensorium-sparkplug-0"
    groups: tuple[str, ...] = ()
    naming: Naming = Naming()
    host_id: str | None = None
    max_qos: int = 1
    options: MqttOptions = MqttOptions()
    bounds: Bounds = Bounds()
    max_pending: int = 20_000
    drain_timeout_s: float = 10.0
    limit: RateLimit | RateLimits | None = None


class SparkplugIngestor:
    """Reads all of a namespace, in order, and acknowledges what is committed. Start and stop it once.

    There is one for a broker: the order of an edge node's messages is what tells that one is missing.

    Args:
        sources: where it stands which commands edge nodes and devices may be told.
        known: edge nodes and devices that were there before, whose births are asked for.
    """

    def __init__(
        self,
        settings: SparkplugSettings,
        router: Router,
        sources: Sequence[ReadyCommands] = (),
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        known: Iterable[Address] = (),
    ) -> None:
        self._settings = settings
        self._router = router
        self._clock_ms = clock_ms
        self._pipeline = Pipeline(router, settings.bounds, "sparkplug", settings.limit)
        carrier = SparkplugCarrier(
            router, self.connected, self.send, self._definitions, self._ask_rebirth, clock_ms
        )
        self._dispatcher = Dispatcher(router, sources, carrier, carrier)
        self.adapter = SparkplugAdapter(
            *(self._pipeline, router, settings.naming, self._ask_rebirth, settings.bounds),
            reported=carrier.reported,
            born=carrier.born,
        )
        self._since_ms = clock_ms()
        self._client = MqttClient(
            settings.address,
            settings.client_id,
            subscriptions=tuple((topic, settings.max_qos) for topic in subscriptions(settings.groups)),
            on_packets=self._take,
            options=settings.options,
            will=None
            if settings.host_id is None
            else Will(topic=self._state_topic, payload=self._state(online=False)),
            on_connect=self._connected,
        )
        self._origin = crc32(settings.client_id.encode()) << 16
        self._acks: Acks | None = None
        self._rebirths: dict[Address, None] = {}
        self._wake = asyncio.Event()
        self.adapter.remember(known, clock_ms())
        self._say_state = asyncio.Event()
        self._full = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._received = self._finished = self._acked = 0

    async def start(self) -> None:
        """Begin connecting; returns at once. `connected` tells when messages can come."""
        self._task = asyncio.create_task(self._run(), name=f"sparkplug {self._settings.client_id}")

    async def connected(self) -> None:
        """Return once subscribed."""
        await self._client.connected()

    def check(self) -> None:
        """Raise what ended the ingestor, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Stop reading, wait for what was accepted, acknowledge it, say that we go, disconnect."""
        if self._task is None:
            return
        self._stop.set()
        await self._task

    async def send(self, address: Address, metrics: tuple[Metric, ...]) -> None:
        """Publish a command to an edge node or device, at QoS 0 as the specification wants it.

        Raises:
            Disconnected: there is no connection; nothing was sent.
        """
        command = Payload(self._clock_ms(), metrics)
        await self._client.publish(address.command_topic, encode(command), 0)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the states of the client, the pipeline and the edge nodes."""
        return {
            "received": self._received,
            "pending": self._received - self._finished,
            "acked": self._acked,
            "paused": self._full.is_set(),
            "connected": self._client.is_connected,
            "client": self._client.statistics(),
            **self._pipeline.statistics(),
            "sparkplug": self.adapter.statistics(),
            "commands": self._dispatcher.statistics(),
        }

    async def _run(self) -> None:
        async with self._client, asyncio.TaskGroup() as tasks:
            ours = [
                tasks.create_task(step()) for step in (self._throttle, self._ask_for_rebirths, self._tell)
            ]
            dispatching = tasks.create_task(self._dispatcher.run(tasks))
            await self._stop.wait()
            dispatching.cancel()
            self._client.pause()
            try:
                async with asyncio.timeout(self._settings.drain_timeout_s):
                    await self._idle.wait()
                    await self._dispatcher.drained()
            except TimeoutError:
                pass
            for task in ours:
                task.cancel()
            if self._settings.host_id is not None and self._client.is_connected:
                # An ordinary end does not make the broker publish the will, and at QoS 0 nobody waits.
                await self._client.publish(self._state_topic, self._state(online=False), 0, retain=True)

    # --- in ---------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        acks = self._acks
        if acks is None or acks.connection is not connection:
            acks = self._acks = Acks(connection, self._count)
        self._received += len(packets)
        self._idle.clear()
        received_ms = self._clock_ms()
        for topic, payload, ack, head, _ in packets:
            self.adapter.take(
                topic.decode(errors="replace"),
                payload,
                received_ms,
                self._origin | packet_id(ack) if ack else None,
                acks.done,
                ack,
                redelivered=head & DUP != 0,
            )
        if self._router.load > self._settings.max_pending and not self._full.is_set():
            self._full.set()
            self._client.pause()

    async def _throttle(self) -> None:
        while True:
            await self._full.wait()
            await self._router.eased(self._settings.max_pending // 2)
            self._full.clear()
            if not self._stop.is_set():
                self._client.resume()

    def _count(self, finished: int, acked: int) -> None:
        self._finished += finished
        self._acked += acked
        if self._finished == self._received:
            self._idle.set()

    # --- out --------------------------------------------------------------------------------------------

    def _definitions(self, address: Address) -> Definitions | None:
        return self.adapter.definitions(address)

    def _ask_rebirth(self, node: Address) -> None:
        # At most as many as there are edge nodes that are remembered.
        self._rebirths[node] = None
        self._wake.set()

    async def _ask_for_rebirths(self) -> None:
        while True:
            await self._wake.wait()
            node = next(iter(self._rebirths))
            del self._rebirths[node]
            if not self._rebirths:
                self._wake.clear()
            await self._client.connected()
            try:
                await self.send(node, (REBIRTH_METRIC,))
            except Disconnected:
                continue  # it is asked again when it says something that cannot be understood
            await asyncio.sleep(1 / REBIRTHS_PER_S)

    def _connected(self) -> None:
        self._say_state.set()

    async def _tell(self) -> None:
        while True:
            await self._say_state.wait()
            self._say_state.clear()
            if self._settings.host_id is None:
                continue
            try:
                await self._client.publish(self._state_topic, self._state(online=True), 0, retain=True)
            except Disconnected:
                continue  # the next connection says it

    @property
    def _state_topic(self) -> str:
        return f"{NAMESPACE}/STATE/{self._settings.host_id}"

    def _state(self, *, online: bool) -> bytes:
        # Edge nodes know by an equal time that the will belongs to this announcement.
        return msgspec.json.encode({"online": online, "timestamp": self._since_ms})
