"""Commands to devices over MQTT, and their answers back. A command that is ready is claimed at its device,
which commits that it is sent; then it is published, once. What became of it is again a message to the device.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.messages import (
    Answer,
    ChangeTwin,
    CommandReply,
    Content,
    Outcome,
    PresenceSaid,
    Refusal,
    Telling,
    TwinTelling,
)
from sensorium.actors.profile import RateLimits
from sensorium.ingest.dispatch import Dispatcher, ReadyCommands, Untold
from sensorium.ingest.errors import BrokerRefused, Reason, Undecodable
from sensorium.ingest.mqtt_acks import Acks
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import NO_SUBSCRIBERS, MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import DUP, Packet
from sensorium.ingest.pipeline import Pipeline, Router, is_device_id
from sensorium.ingest.replies import decode_presence, decode_reply
from sensorium.ingest.twin_reports import decode_report, unusable

RESPONSES: Final = "devices/+/commands/+/response"
REPORTS: Final = "devices/+/twin/reported"
PRESENCE: Final = "devices/+/status"

MAX_COMMAND_ID_CHARS: Final = 128

REFUSED_FOR_NOW: Final = frozenset((0x80, 0x88, 0x89, 0x97))
"""Unspecified, unavailable, busy, quota exceeded: the same publication may be taken later."""


TWIN_EXPIRES_S: Final = 60
"""How long the broker keeps a delta for a device that is away: when it comes back, it is told the newest."""


class DownlinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the downlink needs to know.

    Attributes:
        client_id: unique at the broker and stable over restarts; that of the publisher is derived from it.
        max_qos: at which the broker shall deliver answers at most.
        max_pending: messages accepted and not committed, above which reading stops; it goes on at the half.
        drain_timeout_s: how long `stop` waits for what was accepted.
        limit: on what each device reports of its twin; a bucket of its own, besides that of telemetry.
        properties: whether the broker can be given properties of MQTT 5: the embedded one breaks off the
            connection of a subscriber of MQTT 3.1.1 over them.
    """

    address: BrokerAddress
    client_id: str = "sensorium-commands-0"
    max_qos: int = 1
    options: MqttOptions = MqttOptions(receive_maximum=2_000)
    max_pending: int = 5_000
    drain_timeout_s: float = 10.0
    limit: RateLimits | None = None
    properties: bool = True


class MqttCarrier:
    """Tells devices that have subscribed to `devices/{id}/commands` and `devices/{id}/twin/desired`."""

    def __init__(
        self, publisher: MqttClient, clock_ms: Callable[[], int], *, properties: bool = True
    ) -> None:
        self._publisher = publisher
        self._clock_ms = clock_ms
        self._properties = properties

    async def ready(self) -> None:
        """Return once connected."""
        await self._publisher.connected()

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Publish; see `Carrier.tell`."""
        topic = f"devices/{device_id}/commands"
        left_s = max(1, math.ceil((telling.expires_ms - self._clock_ms()) / 1000))
        await self._publish(
            topic,
            telling,
            response_topic=f"{topic}/{telling.command_id}/response",
            correlation_data=telling.command_id.encode(),
            message_expiry_interval=min(left_s, 2**32 - 1),
        )

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """Publish; see `TwinCarrier.tell_twin`."""
        topic = f"devices/{device_id}/twin/desired"
        await self._publish(topic, telling, message_expiry_interval=TWIN_EXPIRES_S)

    async def _publish(self, topic: str, said: Telling | TwinTelling, **properties: Any) -> None:
        given = properties if self._properties else {}
        try:
            code = await self._publisher.publish(topic, msgspec.json.encode(said), 1, **given)
        except BrokerRefused as error:
            raise Untold(str(error), final=error.reason_code not in REFUSED_FOR_NOW) from None
        if code == NO_SUBSCRIBERS:
            raise Untold(f"nobody has subscribed to {topic}", final=False, count="unreached")


def never_repeating(settings: DownlinkSettings, client_id: str) -> MqttClient:
    """A connection to tell devices by: all is sent at most once, and no session outlives it."""
    return MqttClient(
        settings.address,
        client_id,
        options=msgspec.structs.replace(settings.options, session_expiry_s=0),
        repeat=False,
    )


class Downlink:
    """Tells devices and hears their answers. Start and stop it once.

    Answers are acknowledged after their commit and kept by the broker while we are away. Commands go out on a
    connection of their own that never repeats: whether one that was cut off has arrived, nobody knows, and it
    times out unless the device answers.
    """

    def __init__(
        self,
        settings: DownlinkSettings,
        router: Router,
        sources: Sequence[ReadyCommands],
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._router = router
        self._clock_ms = clock_ms
        self._pipeline = Pipeline(router, source="mqtt", limit=settings.limit, content=Content.OTHER)
        self._listener = MqttClient(
            settings.address,
            settings.client_id,
            subscriptions=tuple((topic, settings.max_qos) for topic in (RESPONSES, PRESENCE, REPORTS)),
            on_packets=self._take,
            options=settings.options,
        )
        self._publisher = never_repeating(settings, f"{settings.client_id}-out")
        carrier = MqttCarrier(self._publisher, clock_ms, properties=settings.properties)
        self._dispatcher = Dispatcher(router, sources, carrier, carrier)
        self._acks: Acks | None = None
        self._counts: Counter[str] = Counter()
        self._received = self._finished = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._full = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin connecting; returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"downlink {self._settings.client_id}")

    async def connected(self) -> None:
        """Return once commands can go out and answers come in."""
        await self._listener.connected()
        await self._publisher.connected()

    def check(self) -> None:
        """Raise what ended the downlink, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Claim nothing more, wait for what is under way, acknowledge what was read, disconnect."""
        if self._task is None:
            return
        self._stop.set()
        await self._task

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the states of both connections."""
        return {
            "received": self._received,
            "pending": self._received - self._finished,
            "replies": self._counts["replies"],
            "twin_reports": self._counts["twin_reports"],
            **self._dispatcher.statistics(),
            "connected": self._listener.is_connected and self._publisher.is_connected,
            "listener": self._listener.statistics(),
            "publisher": self._publisher.statistics(),
            **self._pipeline.statistics(),
        }

    async def _run(self) -> None:
        async with self._publisher, self._listener, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            ours = [tasks.create_task(self._dispatcher.run(tasks)), tasks.create_task(self._throttle())]
            await self._stop.wait()
            for task in ours:
                task.cancel()
            self._listener.pause()
            try:
                async with asyncio.timeout(self._settings.drain_timeout_s):
                    await self._idle.wait()
                    await self._dispatcher.drained()
            except TimeoutError:
                pass

    # --- in ---------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        acks = self._acks
        if acks is None or acks.connection is not connection:
            acks = self._acks = Acks(connection, self._count)
        self._received += len(packets)
        self._idle.clear()
        received_ms = self._clock_ms()
        for topic, payload, ack, head, _ in packets:
            again = head & DUP != 0
            self._hear(topic.decode(errors="replace"), payload, received_ms, acks, ack, redelivered=again)
        if self._router.load > self._settings.max_pending and not self._full.is_set():
            self._full.set()
            self._listener.pause()

    def _hear(
        self, topic: str, payload: bytes, received_ms: int, acks: Acks, ack: int, *, redelivered: bool
    ) -> None:
        levels = topic.split("/")
        device_id = levels[1]
        try:
            if not is_device_id(device_id):
                raise Undecodable(Reason.BAD_DEVICE_ID, "the topic names no device")
            if levels[2] == "status":
                online = decode_presence(payload)
                if online is None:
                    acks.done(ack, _NOTHING_SAID)
                else:
                    self._router.message(PresenceSaid(device_id, online), acks.done, ack)
                return
            if levels[2] == "twin":
                if not redelivered:
                    self._pipeline.check_rate(device_id, received_ms)
                self._report(topic, device_id, payload, received_ms, acks, ack)
                return
            command_id = levels[3]
            if not 0 < len(command_id) <= MAX_COMMAND_ID_CHARS or not command_id.isprintable():
                raise Undecodable(Reason.BAD_TEXT, "the topic names no command")
            self._reply(device_id, command_id, payload, received_ms, acks, ack)
        except Undecodable as error:
            self._pipeline.refuse(topic, device_id, payload, received_ms, error, acks.done, ack)

    def _reply(
        self, device_id: str, command_id: str, payload: bytes, received_ms: int, acks: Acks, ack: int
    ) -> None:
        self._counts["replies"] += 1
        try:
            status, result, reason = decode_reply(payload)
        except Undecodable as error:
            # It was an answer all the same: the command ends, and the next one gets its turn.
            bad = CommandReply(device_id, command_id, "failed", received_ms, None, f"bad reply: {error}")
            self._router.message(bad, _nothing, None)
            raise
        said = CommandReply(device_id, command_id, status, received_ms, result, reason)
        self._router.message(said, acks.done, ack)

    def _report(
        self, topic: str, device_id: str, payload: bytes, received_ms: int, acks: Acks, ack: int
    ) -> None:
        self._counts["twin_reports"] += 1
        report = ChangeTwin(device_id, reported=decode_report(payload), by="mqtt")

        def reported(_: None, outcome: Outcome) -> None:
            if isinstance(outcome, Refusal) and not outcome.dead_lettered:
                error = unusable(outcome)
                self._pipeline.refuse(topic, device_id, payload, received_ms, error, acks.done, ack)
            else:
                acks.done(ack, outcome)

        self._router.message(report, reported, None)

    async def _throttle(self) -> None:
        while True:
            await self._full.wait()
            await self._router.eased(self._settings.max_pending // 2)
            self._full.clear()
            self._listener.resume()

    def _count(self, finished: int, _: int) -> None:
        self._finished += finished
        if self._finished == self._received:
            self._idle.set()


_NOTHING_SAID: Final = Answer(None)


def _nothing(_: Any, __: Outcome) -> None:
    return None
