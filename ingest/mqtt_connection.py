"""One network connection to a broker, from CONNECT to its loss. Does not reconnect: `MqttClient` does."""

import asyncio
import struct
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, cast

from gmqtt.client import Message
from gmqtt.mqtt.constants import MQTTCommands
from gmqtt.mqtt.package import (
    CommandWithMidPacket,
    DisconnectPacket,
    LoginPackageFactor,
    SimpleCommandPacket,
    SubscribePacket,
)
from gmqtt.subscription import Subscription

from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_outbox import Codec, Outbox
from sensorium.ingest.mqtt_wire import (
    AckOrder,
    InboundParser,
    MalformedPacket,
    Packet,
    Properties,
    ack_bytes,
    is_exactly_once,
    packet_id,
    pubrec_word,
    split_properties,
)

OnPackets = Callable[["Connection", list[Packet]], None]
_REFUSED = 0x80
_NO_KEEPALIVE = 0
_RETAINED_ONCE = 1
# A peer that says nothing for this many keepalive intervals, although pinged in each, is gone.
_SILENT_INTERVALS = 2


class Connection(asyncio.Protocol):
    """Parses what comes, acknowledges what is done, and knows when it was lost.

    Acknowledgements belong to the connection that brought the packet: on a lost one they are no-ops, since
    the broker delivers again.

    Args:
        released: ids of QoS 2 messages between PUBREC and PUBREL; part of the MQTT session, shared by its
            connections.
        on_packets: called with each batch of PUBLISH packets as it is read.
    """

    def __init__(
        self,
        codec: Codec,
        outbox: Outbox,
        released: set[int],
        on_packets: OnPackets,
        keepalive_s: int,
        max_packet_bytes: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._codec = codec
        self._outbox = outbox
        self._released = released
        self._on_packets = on_packets
        self._acks = AckOrder()
        self._parser = InboundParser(self._acks, released, self._control, self._repeat, max_packet_bytes)
        self._transport: asyncio.Transport | None = None
        self._keepalive_s = keepalive_s
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._said = monotonic()
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._reason = "the peer closed it"
        self._connack: asyncio.Future[tuple[bool, Properties]] = loop.create_future()
        self._subacks: dict[int, asyncio.Future[bytes]] = {}
        self.lost: asyncio.Future[str] = loop.create_future()
        self._handlers: dict[int, Callable[[bytes], None]] = {
            MQTTCommands.CONNACK: self._on_connack,
            MQTTCommands.PUBACK: self._on_puback,
            MQTTCommands.PUBREC: self._on_pubrec,
            MQTTCommands.PUBREL: self._on_pubrel,
            MQTTCommands.PUBCOMP: self._on_puback,
            MQTTCommands.SUBACK: self._on_suback,
            MQTTCommands.PINGRESP: lambda body: None,
            MQTTCommands.DISCONNECT: self._on_disconnect,
        }

    async def login(
        self,
        client_id: str,
        clean_start: bool,
        username: str | None,
        password: str | None,
        will: Message | None,
        **properties: Any,
    ) -> tuple[bool, Properties]:
        """CONNECT and CONNACK: whether the broker kept our session, and its properties.

        Raises `BrokerRefused` or `Disconnected`. Waits without bound; give it one.
        """
        packet = LoginPackageFactor.build_package(
            client_id,
            None if username is None else username.encode(),
            None if password is None else password.encode(),
            clean_start,
            self._keepalive_s,
            self._codec,
            will_message=will,
            **properties,
        )
        self.write(packet)
        session_present, granted = await self._connack
        self._keepalive_s = granted.get("server_keep_alive", [self._keepalive_s])[0]
        if self._keepalive_s != _NO_KEEPALIVE:
            self._timer = self._loop.call_later(self._keepalive_s / 2, self._tick)
        return session_present, granted

    async def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        """Subscribe to filters with their maximum QoS. Raises `BrokerRefused` or `Disconnected`.

        A filter that the session has already stays as it is, and its retained messages are not sent again.
        """
        wanted = [
            Subscription(topic, qos=qos, retain_handling_options=_RETAINED_ONCE) for topic, qos in filters
        ]
        mid, packet = SubscribePacket.build_package(wanted, self._codec)
        answer = self._subacks[mid] = self._loop.create_future()
        try:
            self.write(packet)
            codes = await answer
        finally:
            self._subacks.pop(mid, None)
            self._codec.id_generator.free_id(mid)
        for subscription, code in zip(wanted, codes, strict=False):
            if code >= _REFUSED:
                raise BrokerRefused(code, f"the subscription {subscription.topic!r}")

    def acknowledge(self, words: Iterable[int]) -> int:
        """Acknowledge packets by ack word, all in one write, as far as the order allows.

        Returns how many acknowledgements were sent.
        """
        if self.lost.done():
            return 0
        ready = self._acks.ready(words)
        if ready:
            self._released.update(packet_id(word) for word in ready if is_exactly_once(word))
            self.write(ack_bytes(ready))
        return len(ready)

    @property
    def unacknowledged(self) -> int:
        """Packets delivered here that still have to be acknowledged."""
        return len(self._acks)

    def write(self, data: bytes | bytearray) -> None:
        """Queue bytes for sending; without effect on a lost connection."""
        if self._transport is not None and not self._transport.is_closing():
            self._said = monotonic()
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the socket takes more, or is lost."""
        await self._writable.wait()

    def pause(self) -> None:
        """Stop reading. At most one batch more may come. Pings go on, so the broker keeps the connection."""
        self._paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._heard = monotonic()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def close(self, grace_s: float = 2.0) -> None:
        """Say goodbye and close, within `grace_s` seconds. What is not acknowledged the broker keeps."""
        if self._transport is not None and not self.lost.done():
            self.write(DisconnectPacket.build_package(self._codec))
            self._transport.close()
            await asyncio.wait([self.lost], timeout=grace_s)
        self.abort("closed by us")

    def abort(self, reason: str) -> None:
        """Drop the connection at once."""
        if not self.lost.done():
            self._reason = reason
            if self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not derived from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = monotonic()
        try:
            packets = self._parser.feed(data)
        except MalformedPacket as error:
            self.abort(f"the broker sent {error}")
            return
        if packets:
            self._on_packets(self, packets)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason = str(exc) if exc is not None else self._reason
        self.lost.set_result(reason)
        self._writable.set()
        self._outbox.disconnected()
        waited_for: list[asyncio.Future[Any]] = [self._connack, *self._subacks.values()]
        for future in waited_for:
            if not future.done():
                future.set_exception(Disconnected(f"the connection to the broker was lost: {reason}"))
                # Whoever waited may have been cancelled meanwhile.
                future.exception()

    def _tick(self) -> None:
        now = monotonic()
        if not self._paused and now - self._heard > _SILENT_INTERVALS * self._keepalive_s:
            self.abort(f"nothing was heard from the broker for {now - self._heard:.0f} s")
            return
        self.write(SimpleCommandPacket.build_package(MQTTCommands.PINGREQ))
        self._timer = self._loop.call_later(self._keepalive_s / 2, self._tick)

    def _repeat(self, mid: int) -> None:
        self.write(ack_bytes([pubrec_word(mid)]))

    def _control(self, head: int, body: bytes) -> None:
        handler = self._handlers.get(head & 0xF0)
        if handler is None:
            raise MalformedPacket(f"a packet of type 0x{head:02x}, which brokers do not send")
        try:
            handler(body)
        except (struct.error, IndexError) as error:
            raise MalformedPacket(f"a packet of type 0x{head:02x} that is too short") from error

    def _on_connack(self, body: bytes) -> None:
        session_present, code = body[0], body[1]
        if self._connack.done():
            raise MalformedPacket("a second CONNACK")
        if code:
            self._connack.set_exception(BrokerRefused(code, "the connection"))
            return
        properties, _ = split_properties(body[2:])
        self._connack.set_result((bool(session_present & 1), properties))

    def _on_suback(self, body: bytes) -> None:
        (mid,) = struct.unpack_from("!H", body)
        _, codes = split_properties(body[2:])
        if (answer := self._subacks.get(mid)) is not None and not answer.done():
            answer.set_result(codes)

    def _on_puback(self, body: bytes) -> None:
        (mid,) = struct.unpack_from("!H", body)
        self._outbox.puback(mid, body[2] if len(body) > 2 else 0)

    def _on_pubrec(self, body: bytes) -> None:
        (mid,) = struct.unpack_from("!H", body)
        self._outbox.pubrec(mid, body[2] if len(body) > 2 else 0)

    def _on_pubrel(self, body: bytes) -> None:
        (mid,) = struct.unpack_from("!H", body)
        self._released.discard(mid)
        self.write(CommandWithMidPacket.build_package(MQTTCommands.PUBCOMP, mid, False))

    def _on_disconnect(self, body: bytes) -> None:
        self._reason = f"the broker ended it with reason code 0x{body[0] if body else 0:02x}"
