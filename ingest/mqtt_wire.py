"""MQTT 5 as bytes, without a socket: inbound packets parsed in one loop, acknowledgements in their order.

Packets other than PUBLISH are rare and are built and taken apart with gmqtt's codec.
"""

import struct
import sys
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from gmqtt.mqtt.property import Property

from sensorium.ingest._publish_py import PUBACK_WORD, PUBLISH

try:
    from sensorium.ingest._publish import cut_plain
except ImportError:
    from sensorium.ingest._publish_py import cut_plain

Properties = dict[str, list[Any]]
"""A packet's properties by gmqtt's names, such as `response_topic`; each may stand several times."""

Packet = tuple[bytes, bytes, int, int, Properties | None]
"""An inbound PUBLISH: topic, payload, ack word, first byte, and properties if it has any.

The ack word is what `AckOrder` takes back (0 for QoS 0). The first byte holds `DUP` and `RETAIN`.
A plain tuple, because tens of thousands are made in a second.
"""

DUP: Final = 0x08
RETAIN: Final = 0x01
_PUBREC_WORD: Final = 0x5002_0000
_MAX_VARINT_SHIFT: Final = 21


class MalformedPacket(Exception):
    """The peer broke the protocol; the connection cannot go on (OASIS MQTT 5.0, section 4.13)."""


class InboundParser:
    """Cuts one connection's byte stream into packets.

    Args:
        acks: told of each packet that must be acknowledged, in order of arrival.
        released: ids of QoS 2 messages taken but not yet released by the broker; a repetition of one is
            answered again through `on_repeated(packet id)` and not delivered twice.
        on_control: called in order with type byte and body of every packet that is not PUBLISH.
        max_packet_bytes: what we told the broker to be our limit.
    """

    def __init__(
        self,
        acks: "AckOrder",
        released: set[int],
        on_control: Callable[[int, bytes], None],
        on_repeated: Callable[[int], None],
        max_packet_bytes: int,
    ) -> None:
        self._acks = acks
        self._released = released
        self._on_control = on_control
        self._on_repeated = on_repeated
        self._max_packet_bytes = max_packet_bytes
        self._aliases: dict[int, bytes] = {}
        self._rest = b""

    def feed(self, data: bytes) -> list[Packet]:
        """The PUBLISH packets completed by `data`. Raises `MalformedPacket`."""
        if self._rest:
            data = self._rest + data
        packets: list[Packet] = []
        expect = self._acks.expect
        position, end = 0, len(data)
        while end - position >= 2:
            plain, words, position = cut_plain(data, position, self._max_packet_bytes)
            packets += plain
            self._acks.expect_all(words)
            if end - position < 2:
                break
            head = data[position]
            length = data[position + 1]
            start = position + 2
            if length > 127:
                length, start = _varint(data, position + 1, end)
                if not start:
                    break
                if length > self._max_packet_bytes:
                    raise MalformedPacket(f"a packet of {length} bytes, more than we announced to take")
            stop = start + length
            if stop > end:
                break
            position = stop
            if head & 0xF0 != PUBLISH:
                self._on_control(head, data[start:stop])
                continue
            qos = head & 6
            body = start + 2 + int.from_bytes(data[start : start + 2], "big")
            if body + (2 if qos else 0) >= stop:
                raise MalformedPacket("a PUBLISH that ends within its header")
            topic = data[start + 2 : body]
            ack = 0
            if qos:
                ack = data[body] << 8 | data[body + 1]
                body += 2
                if qos == 2:
                    ack |= PUBACK_WORD
                elif qos == 6:
                    raise MalformedPacket("a PUBLISH of QoS 3")
                elif ack in self._released:
                    self._on_repeated(ack)
                    continue
                else:
                    ack |= _PUBREC_WORD
            properties = None
            if data[body]:
                properties, payload = split_properties(data[body:stop])
                topic = self._topic(topic, properties)
            else:
                payload = data[body + 1 : stop]
            if not topic:
                raise MalformedPacket("a PUBLISH without a topic")
            if ack:
                expect(ack)
            packets.append((topic, payload, ack, head, properties))
        self._rest = data[position:]
        return packets

    def _topic(self, topic: bytes, properties: Properties) -> bytes:
        if "topic_alias" not in properties:
            return topic
        alias = properties["topic_alias"][0]
        if topic:
            self._aliases[alias] = topic
        return topic or self._aliases.get(alias, b"")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A variable byte integer and the position after it; position 0 when it is not complete."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > _MAX_VARINT_SHIFT:
            raise MalformedPacket("a variable byte integer of more than four bytes")
    return 0, 0


def parse_properties(data: bytes) -> Properties:
    """The properties in a property block without its length. Raises `MalformedPacket`."""
    properties: Properties = defaultdict(list)
    try:
        while data:
            known = Property.factory(id_=data[0])
            if known is None:
                raise MalformedPacket(f"unknown property {data[0]}")
            found, data = known.loads(data[1:])
            for name, value in found.items():
                properties[name].append(value)
    except (struct.error, IndexError, ValueError) as error:
        raise MalformedPacket(f"a property block that cannot be read: {error}") from error
    return dict(properties)


def split_properties(body: bytes) -> tuple[Properties, bytes]:
    """The property block that `body` starts with, if any, and what follows it."""
    if not body:
        return {}, b""
    length, start = _varint(body, 0, len(body))
    if not start or start + length > len(body):
        raise MalformedPacket("a property block longer than its packet")
    return parse_properties(body[start : start + length]), body[start + length :]


class AckOrder:
    """The acknowledgements that a connection owes, given in the order its packets came.

    MQTT 5.0 section 4.6 demands that order, and rumqttd closes connections that do not keep it; commits
    on several hosts do not finish in it.
    """

    def __init__(self) -> None:
        self._owed: deque[int] = deque()
        self._ready: dict[int, int] = {}
        self.expect = self._owed.append
        self.expect_all = self._owed.extend

    def __len__(self) -> int:
        return len(self._owed)

    def ready(self, words: Iterable[int]) -> list[int]:
        """Mark packets as done, by ack word; returns the words that may be sent now."""
        ready = self._ready
        for word in words:
            ready[word] = ready.get(word, 0) + 1
        owed = self._owed
        out = []
        while owed and (left := ready.get(owed[0])):
            word = owed.popleft()
            out.append(word)
            if left == 1:
                del ready[word]
            else:
                ready[word] = left - 1
        return out


def ack_bytes(words: list[int]) -> bytes:
    """The PUBACK and PUBREC packets (reason: success) of these ack words."""
    packets = array("I", words)
    if sys.byteorder == "little":
        packets.byteswap()
    return packets.tobytes()


def packet_id(word: int) -> int:
    """The packet id in an ack word."""
    return word & 0xFFFF


def is_exactly_once(word: int) -> bool:
    """Whether an ack word belongs to a QoS 2 packet."""
    return word >= _PUBREC_WORD


def pubrec_word(mid: int) -> int:
    """The ack word of a QoS 2 packet."""
    return _PUBREC_WORD | mid
