"""Messages on their way to the broker: what of them survives a broken connection. Not a socket."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gmqtt.client import Message
from gmqtt.mqtt.constants import MQTTCommands
from gmqtt.mqtt.package import CommandWithMidPacket, PublishPacket
from gmqtt.mqtt.utils import IdGenerator

from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_wire import DUP

_REFUSED = 0x80
_MAX_IN_FLIGHT = 65_535
_FIRST_BYTE = 0


class Codec:
    """What gmqtt's packet builders want to know of a connection."""

    proto_name = b"MQTT"
    proto_ver = 5

    def __init__(self) -> None:
        self.id_generator = IdGenerator()


def build_publish(codec: Codec, message: Message) -> tuple[int | None, bytearray]:
    """The packet id (None for QoS 0) and the bytes of a PUBLISH."""
    mid, packet = PublishPacket.build_package(message, codec)
    return mid, packet


@dataclass(slots=True, eq=False)
class _Outgoing:
    packet: bytearray
    qos: int
    answered: asyncio.Future[int]
    released: bool = False


class Outbox:
    """QoS 1 and 2 messages from `send` until the broker has them.

    At most as many are in flight as the broker's Receive Maximum allows; further senders wait. After a
    reconnect the unanswered ones are sent again; QoS 2 ones fail if the broker has lost the session.

    Args:
        repeat: False: what is unanswered when the connection breaks fails at once and is never sent again.
    """

    def __init__(self, codec: Codec, repeat: bool = True) -> None:
        self._codec = codec
        self._repeat = repeat
        self._open: dict[int, _Outgoing] = {}
        self._unsent: deque[int] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._admitted = 0
        """Waiters that were given a place and have not taken it yet."""
        self._limit = _MAX_IN_FLIGHT
        self._write: Callable[[bytes | bytearray], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    async def send(self, message: Message) -> int:
        """Returns the reason code of PUBACK or PUBCOMP: the broker has taken responsibility for the message.

        Waits for a connection and for room in the window; bound it with `asyncio.timeout`. A message whose
        sender gave up waiting for the answer may still be delivered.

        Raises:
            BrokerRefused: the broker answered with a failure.
            Disconnected: it is unknown whether the broker has it, or the client was closed.
        """
        if any(not waiter.done() for waiter in self._waiting) or not self._has_room():
            await self._turn()
        mid, packet = build_publish(self._codec, message)
        assert mid is not None
        outgoing = _Outgoing(packet, message.qos, asyncio.get_running_loop().create_future())
        self._open[mid] = outgoing
        if self._write is not None:  # else it was lost since the turn came, and `connected` sends it
            self._write(packet)
        return await outgoing.answered

    def connected(
        self, write: Callable[[bytes | bytearray], None], receive_maximum: int, session_present: bool
    ) -> None:
        """A connection stands: send again what is open, let waiting senders in."""
        self._write = write
        self._limit = receive_maximum
        if not session_present:
            for mid in [mid for mid, out in self._open.items() if out.qos == 2]:
                self._end(mid, Disconnected("the broker lost the session: the message may have arrived"))
        self._unsent = deque(self._open)
        for outgoing in self._open.values():
            if session_present:
                outgoing.packet[_FIRST_BYTE] |= DUP
            else:
                outgoing.packet[_FIRST_BYTE] &= ~DUP
        for _ in range(min(receive_maximum, len(self._unsent))):
            self._send_next()
        self._admit()

    def disconnected(self) -> None:
        """No connection: what is open waits for the next one, or fails if it must not be repeated."""
        self._write = None
        if not self._repeat:
            for mid in list(self._open):
                self._end(mid, Disconnected("the connection broke: the message may have arrived"))

    def close(self) -> None:
        """Fail all senders."""
        self._write = None
        for mid in list(self._open):
            self._end(mid, Disconnected("closed before the broker had acknowledged the message"))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Disconnected("closed before the message was sent"))
        self._waiting.clear()

    def puback(self, mid: int, reason_code: int) -> None:
        """PUBACK, PUBCOMP or a refusing PUBREC: the exchange is over."""
        refused = BrokerRefused(reason_code, "a publication") if reason_code >= _REFUSED else None
        self._end(mid, refused, reason_code)
        if self._unsent:
            self._send_next()
        else:
            self._admit()

    def pubrec(self, mid: int, reason_code: int) -> None:
        """PUBREC: release the message, unless it was refused."""
        if reason_code >= _REFUSED:
            self.puback(mid, reason_code)
            return
        if (outgoing := self._open.get(mid)) is not None:
            outgoing.released = True
        if self._write is not None:
            self._write(_pubrel(mid))

    def _send_next(self) -> None:
        while self._unsent and self._write is not None:
            mid = self._unsent.popleft()
            if (outgoing := self._open.get(mid)) is not None:
                self._write(_pubrel(mid) if outgoing.released else outgoing.packet)
                return

    async def _turn(self) -> None:
        """Wait for a place in the window. Places are handed over in the order of asking: none overtakes."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # A cancelled waiter that still stands in the queue is passed over by `_admit`.
            if not waiter.cancelled() and waiter.exception() is None:
                self._admitted -= 1
                self._admit()
            raise
        self._admitted -= 1

    def _has_room(self) -> bool:
        return self._write is not None and len(self._open) + self._admitted < self._limit

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._admitted += 1

    def _end(self, mid: int, error: Exception | None, reason_code: int = 0) -> None:
        outgoing = self._open.pop(mid, None)
        if outgoing is None:
            return
        self._codec.id_generator.free_id(mid)
        if outgoing.answered.done():
            return
        if error is None:
            outgoing.answered.set_result(reason_code)
        else:
            outgoing.answered.set_exception(error)


def _pubrel(mid: int) -> bytes:
    packet: Any = CommandWithMidPacket.build_package(MQTTCommands.PUBREL | 2, mid, False)
    return bytes(packet)
