import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest.front_door import protocol_level
from sensorium.ingest.mqtt_wire import (
    DUP,
    AckOrder,
    InboundParser,
    MalformedPacket,
    Packet,
    ack_bytes,
    is_exactly_once,
    packet_id,
    split_properties,
)


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, byte = divmod(value, 128)
        out.append(byte | (128 if value else 0))
        if not value:
            return bytes(out)


def publish(
    topic: bytes, payload: bytes, qos: int = 0, mid: int = 1, flags: int = 0, props: bytes = b""
) -> bytes:
    body = struct.pack("!H", len(topic)) + topic + (struct.pack("!H", mid) if qos else b"")
    body += varint(len(props)) + props + payload
    return bytes([0x30 | qos << 1 | flags]) + varint(len(body)) + body


class Peer:
    def __init__(self) -> None:
        self.acks = AckOrder()
        self.released: set[int] = set()
        self.control: list[tuple[int, bytes]] = []
        self.repeated: list[int] = []
        self.parser = InboundParser(
            self.acks,
            self.released,
            lambda head, body: self.control.append((head, body)),
            self.repeated.append,
            1_000_000,
        )


def test_each_qos_has_its_ack_word() -> None:
    peer = Peer()
    stream = b"".join(publish(b"t", b"%d" % qos, qos, 0x1234) for qos in range(3))
    packets = peer.parser.feed(stream)
    assert [(p[0], p[1]) for p in packets] == [(b"t", b"0"), (b"t", b"1"), (b"t", b"2")]
    assert [p[2] for p in packets] == [0, 0x40021234, 0x50021234]
    assert [is_exactly_once(p[2]) for p in packets[1:]] == [False, True]
    assert [packet_id(p[2]) for p in packets[1:]] == [0x1234, 0x1234]
    assert ack_bytes([p[2] for p in packets[1:]]) == b"\x40\x02\x12\x34\x50\x02\x12\x34"


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=8), st.data())
def test_the_stream_may_be_cut_anywhere(sizes: list[int], data: st.DataObject) -> None:
    wanted = [(b"topic/%d" % i, bytes([i]) * size) for i, size in enumerate(sizes)]
    stream = b"".join(publish(topic, payload, 1, i + 1) for i, (topic, payload) in enumerate(wanted))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    peer = Peer()
    got: list[Packet] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += peer.parser.feed(stream[start:stop])
    assert [(p[0], p[1]) for p in got] == wanted
    assert len(peer.acks) == len(wanted)


def test_other_packets_are_handed_out_in_order() -> None:
    peer = Peer()
    peer.released.add(7)
    packets = peer.parser.feed(b"\xd0\x00" + publish(b"t", b"x", 2, 7) + b"\x62\x02\x00\x07")
    assert packets == []
    assert peer.repeated == [7], "it was taken before and is not released: acknowledged again, not delivered"
    assert peer.control == [(0xD0, b""), (0x62, b"\x00\x07")]
    assert len(peer.acks) == 0


def test_topic_aliases_are_remembered() -> None:
    peer = Peer()
    first, second = peer.parser.feed(
        publish(b"long/topic", b"1", props=b"\x23\x00\x05") + publish(b"", b"2", props=b"\x23\x00\x05")
    )
    assert (first[0], second[0]) == (b"long/topic", b"long/topic")
    with pytest.raises(MalformedPacket):
        peer.parser.feed(publish(b"", b"3", props=b"\x23\x00\x06"))


def test_flags_and_properties_come_along() -> None:
    [(_, _, _, head, properties)] = Peer().parser.feed(
        publish(b"t", b"x", 1, 1, DUP, b"\x08\x00\x01r\x26\x00\x01k\x00\x01v\x26\x00\x01k\x00\x01w")
    )
    assert head & DUP
    assert properties == {"response_topic": ["r"], "user_property": [("k", "v"), ("k", "w")]}


@pytest.mark.parametrize(
    "packet",
    [
        b"\x36\x07\x00\x01t\x00\x01\x00x",  # QoS 3
        b"\x30\x02\x00\x09",  # a topic longer than the packet
        b"\x30\x03\x00\x00\x00",  # no topic
        b"\x30\x05\x00\x01t\x7fx",  # properties longer than the packet
        b"\x30\x06\x00\x01t\x02\x7fx",  # an unknown property
        b"\x30\xff\xff\xff\xff\x01",  # an endless length
        b"\x30\xff\xff\x7f" + b"x" * 10,  # more than we take
    ],
)
def test_malformed_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(MalformedPacket):
        Peer().parser.feed(packet)


@given(st.binary(max_size=100))
def test_any_bytes_are_parsed_or_refused(stream: bytes) -> None:
    for start in (b"", b"\x32\x20", b"\x30\x10\x00\x01t"):
        with suppress(MalformedPacket):
            Peer().parser.feed(start + stream)


@given(st.binary(max_size=60))
def test_any_property_block_is_parsed_or_refused(block: bytes) -> None:
    for whole in (block, varint(len(block)) + block):
        with suppress(MalformedPacket):
            split_properties(whole)


@given(st.permutations(range(20)), st.integers(1, 7))
def test_acknowledgements_keep_the_order_of_arrival(finished: list[int], step: int) -> None:
    order = AckOrder()
    for word in range(20):
        order.expect(word)
    sent: list[int] = []
    for start in range(0, 20, step):
        sent += order.ready(finished[start : start + step])
        done = set(finished[: start + step])
        assert sent == list(range(next((w for w in range(20) if w not in done), 20)))
    assert len(order) == 0


def test_a_packet_id_owed_twice_is_acknowledged_twice() -> None:
    order = AckOrder()
    order.expect(1)
    order.expect(1)
    assert order.ready([1, 1]) == [1, 1]


@pytest.mark.parametrize(
    ("hello", "level"),
    [
        (b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", 4),
        (b"\x10\x90\x01\x00\x04MQTT\x05", 5),
        (b"\x10\x12\x00\x06MQIsdp\x03", 3),
        (b"\x10\x10\x00\x04MQTT", None),
        (b"\x10", None),
        (b"", None),
        (b"GET / HTTP/1.1", None),
        (b"\x10\xff\xff\xff\xff\xff\x00\x04MQTT\x04", None),
    ],
)
def test_the_protocol_level_is_read_from_connect(hello: bytes, level: int | None) -> None:
    assert protocol_level(hello) == level
