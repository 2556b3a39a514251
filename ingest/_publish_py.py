"""Cutting the plain PUBLISH packets off a stream, in Python; `_publish.c` does the same faster."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sensorium.ingest.mqtt_wire import Packet

PUBLISH: Final = 0x30
PUBACK_WORD: Final = 0x4002_0000
_TYPE_BITS: Final = 0xF0
_QOS_BITS: Final = 0x06
_QOS_1: Final = 0x02
_MAX_LENGTH_BYTES: Final = 4


def cut_plain(data: bytes, position: int, max_packet_bytes: int) -> "tuple[list[Packet], list[int], int]":
    """The plain PUBLISH packets from `position` on, up to the first packet that is not one.

    Plain is a complete one of QoS 0 or 1, with a topic, without properties, of at most `max_packet_bytes`.

    Returns:
        The packets; the ack words of those that have one; the position behind the last.
    """
    packets: list[Packet] = []
    words: list[int] = []
    end = len(data)
    if not 0 <= position <= end or max_packet_bytes < 0:
        raise ValueError("the position is not in the data, or the bound is negative")
    while end - position >= 2:
        head = data[position]
        if head & _TYPE_BITS != PUBLISH or head & _QOS_BITS > _QOS_1:
            break
        length, start = _length(data, position + 1, end)
        stop = start + length
        if not start or length > max_packet_bytes or stop > end or length < 2:
            break
        body = start + 2 + (data[start] << 8 | data[start + 1])
        topic = data[start + 2 : body]
        ack = 0
        if head & _QOS_BITS:
            if body + 2 > stop:
                break
            ack = PUBACK_WORD | data[body] << 8 | data[body + 1]
            body += 2
        if body >= stop or data[body] or not topic:
            break
        if ack:
            words.append(ack)
        packets.append((topic, data[body + 1 : stop], ack, head, None))
        position = stop
    return packets, words, position


def _length(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A variable byte integer and the position after it; position 0 when it is not complete or too long."""
    value = 0
    for place in range(_MAX_LENGTH_BYTES):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position
    return 0, 0
