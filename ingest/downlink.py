"""Commands to devices over MQTT, and their answers back. A command that is ready is claimed at its device,
which commits that it is sent; then it is published, once. What became of it is again a message to the device.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from sensorium.actors.messages import (
    Answer,
    ClaimCommand,
    CommandReply,
    CommandUndelivered,
    Outcome,
    PresenceSaid,
    Telling,
)
from sensorium.ingest.errors import BrokerRefused, Disconnected, Reason, Undecodable
from sensorium.ingest.mqtt_acks import Acks
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import NO_SUBSCRIBERS, MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet
from sensorium.ingest.pipeline import Pipeline, Router, is_device_id
from sensorium.ingest.replies import decode_presence, decode_reply

RESPONSES: Final = "devices/+/commands/+/response"
PRESENCE: Final = "devices/+/status"

PUBLISH_TIMEOUT_S: Final = 10.0
"""How long the broker may take with a command; whether it has it is unknown then."""
MAX_UNDER_WAY: Final = 1_000
"""Commands between their claim and the broker's answer; the rest waits where it is, in the database."""
MAX_COMMAND_ID_CHARS: Final = 128

_REFUSED_FOR_NOW: Final = frozenset((0x80, 0x88, 0x89, 0x97))
"""Unspecified, unavailable, busy, quota exceeded: the same publication may be taken later."""

Ready = tuple[str, str, int]
"""A command that may be sent: device id, command id, attempt."""


class ReadyCommands(Protocol):
    """Where it stands which commands may be sent now."""

    def watch(self) -> AsyncIterator[Sequence[Ready]]:
        """Soon after they become ready, and all there are again now and then."""
        ...


class DownlinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the downlink needs to know.

    Attributes:
        client_id: unique at the broker and stable over restarts; that of the publisher is derived from it.
        max_qos: at which the broker shall deliver answers at most.
        max_pending: messages accepted and not committed, above which reading stops; it goes on at the half.
        drain_timeout_s: how long `stop` waits for what was accepted.
    """

    address: BrokerAddress
    client_id: str = "sensorium-commands-0"
    max_qos: int = 1
    options: MqttOptions = MqttOptions(receive_maximum=2_000)
    max_pending: int = 5_000
    drain_timeout_s: float = 10.0


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
        self._sources = sources
        self._clock_ms = clock_ms
        self._pipeline = Pipeline(router, source="mqtt")
        self._listener = MqttClient(
            settings.address,
            settings.client_id,
            subscriptions=((RESPONSES, settings.max_qos), (PRESENCE, settings.max_qos)),
            on_packets=self._take,
            options=settings.options,
        )
        self._publisher = MqttClient(
            settings.address,
            f"{settings.client_id}-out",
            options=msgspec.structs.replace(settings.options, session_expiry_s=0),
            repeat=False,
        )
        self._acks: Acks | None = None
        self._under_way: set[tuple[str, int]] = set()
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
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
            "under_way": len(self._under_way),
            **{
                name: self._counts[name]
                for name in ("published", "unreached", "refused", "unanswered", "not_claimed", "replies")
            },
            "connected": self._listener.is_connected and self._publisher.is_connected,
            "listener": self._listener.statistics(),
            "publisher": self._publisher.statistics(),
            **self._pipeline.statistics(),
        }

    async def _run(self) -> None:
        async with self._publisher, self._listener, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            ours = [tasks.create_task(self._dispatch(source)) for source in self._sources]
            ours.append(tasks.create_task(self._throttle()))
            await self._stop.wait()
            for task in ours:
                task.cancel()
            self._listener.pause()
            try:
                async with asyncio.timeout(self._settings.drain_timeout_s):
                    await self._idle.wait()
                    for _ in range(MAX_UNDER_WAY):
                        await self._room.acquire()
            except TimeoutError:
                pass

    # --- out --------------------------------------------------------------------------------------------

    async def _dispatch(self, source: ReadyCommands) -> None:
        async for batch in source.watch():
            for device_id, command_id, attempt in batch:
                if (command_id, attempt) in self._under_way:
                    continue
                # While the broker is away, commands stay queued, to expire or to be cancelled.
                await self._publisher.connected()
                await self._room.acquire()
                self._under_way.add((command_id, attempt))
                claim = ClaimCommand(device_id, command_id, attempt)
                self._router.message(claim, self._claimed, claim)

    def _claimed(self, claim: ClaimCommand, outcome: Outcome) -> None:
        if isinstance(outcome, Answer) and outcome.value is not None:
            telling = msgspec.convert(outcome.value, Telling)
            self._tasks.create_task(self._publish(claim, telling))
        else:
            self._counts["not_claimed"] += 1
            self._leave(claim)

    def _leave(self, claim: ClaimCommand) -> None:
        self._under_way.discard((claim.command_id, claim.attempt))
        self._room.release()

    async def _publish(self, claim: ClaimCommand, telling: Telling) -> None:
        topic = f"devices/{claim.device_id}/commands"
        left_s = max(1, math.ceil((telling.expires_ms - self._clock_ms()) / 1000))
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                code = await self._publisher.publish(
                    topic,
                    msgspec.json.encode(telling),
                    1,
                    response_topic=f"{topic}/{claim.command_id}/response",
                    correlation_data=claim.command_id.encode(),
                    message_expiry_interval=min(left_s, 2**32 - 1),
                )
        except (TimeoutError, Disconnected):
            self._counts["unanswered"] += 1
        except BrokerRefused as error:
            self._counts["refused"] += 1
            self._undelivered(claim, str(error), final=error.reason_code not in _REFUSED_FOR_NOW)
        else:
            self._counts["published"] += 1
            if code == NO_SUBSCRIBERS:
                self._counts["unreached"] += 1
                self._undelivered(claim, f"nobody has subscribed to {topic}", final=False)
        finally:
            self._leave(claim)

    def _undelivered(self, claim: ClaimCommand, reason: str, final: bool) -> None:
        said = CommandUndelivered(claim.device_id, claim.command_id, claim.attempt, reason, final)
        self._router.message(said, _nothing, None)

    # --- in ---------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        acks = self._acks
        if acks is None or acks.connection is not connection:
            acks = self._acks = Acks(connection, self._count)
        self._received += len(packets)
        self._idle.clear()
        received_ms = self._clock_ms()
        for topic, payload, ack, _, _ in packets:
            self._hear(topic.decode(errors="replace"), payload, received_ms, acks, ack)
        if self._router.pending > self._settings.max_pending and not self._full.is_set():
            self._full.set()
            self._listener.pause()

    def _hear(self, topic: str, payload: bytes, received_ms: int, acks: Acks, ack: int) -> None:
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

    async def _throttle(self) -> None:
        while True:
            await self._full.wait()
            await self._router.drained(self._settings.max_pending // 2)
            self._full.clear()
            self._listener.resume()

    def _count(self, finished: int, _: int) -> None:
        self._finished += finished
        if self._finished == self._received:
            self._idle.set()


_NOTHING_SAID: Final = Answer(None)


def _nothing(_: Any, __: Outcome) -> None:
    return None
