"""Every decoder, over anything: a value or its documented error, and nothing else.

A few examples of each run always; thousands with the tests that are marked slow.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import fuzz_seeds as seeds
import pytest
from fuzzing import (
    FAST_EXAMPLES,
    NOW_MS,
    SLOW_EXAMPLES,
    are_readings,
    fuzz,
    is_storable,
    payloads,
)
from hypothesis import strategies as st

from sensorium.actors.twin_documents import MAX_DOCUMENT_BYTES
from sensorium.ingest.cbor import CborDecoder
from sensorium.ingest.command_requests import QUEUED, decode_request
from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Disconnected, Undecodable
from sensorium.ingest.front_door import protocol_level
from sensorium.ingest.lorawan import cayenne, chirpstack, layout, tts
from sensorium.ingest.lorawan.events import Event
from sensorium.ingest.message_ids import identified
from sensorium.ingest.mqtt311 import _published
from sensorium.ingest.mqtt_wire import AckOrder, InboundParser, MalformedPacket, split_properties
from sensorium.ingest.replies import decode_presence, decode_reply
from sensorium.ingest.senml import SenmlDecoder
from sensorium.ingest.sparkplug import payload as sparkplug
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.values import unit_of, values
from sensorium.ingest.twin_reports import decode_report

BOUNDS = Bounds(max_metrics=40, max_array=20, max_text_chars=100)
MAX_PACKET_BYTES = 5_000

telemetry, cbor, senml = TelemetryDecoder(BOUNDS), CborDecoder(BOUNDS), SenmlDecoder(BOUNDS)


def readings_by(decode: Callable[[bytes, int], Any]) -> Callable[[bytes], None]:
    return lambda payload: are_readings(decode(payload, NOW_MS), BOUNDS)


def message_ids(payload: bytes) -> None:
    said = payload[:20].decode("latin-1")
    for properties in (None, {"user_property": [("message_id", said)]}):
        found = identified("d", telemetry.decode(payload, NOW_MS), properties)
        are_readings(found.readings, BOUNDS)
        assert found.identity is None or -(2**63) <= found.identity < 2**63


def reply(payload: bytes) -> None:
    said = decode_reply(payload)
    assert said.status in ("delivered", "succeeded", "failed")
    is_storable(said)


def request(payload: bytes) -> None:
    try:
        asked = decode_request("d", payload, None, "t/0/1", NOW_MS)
    except Undecodable:
        asked = decode_request("d", payload, QUEUED, "t/0/1", NOW_MS)
    assert asked is not None
    assert len(asked.command_id) >= 1
    is_storable([asked.command, asked.parameters, asked.expires_ms, asked.timeout_ms])


def presence(payload: bytes) -> None:
    assert decode_presence(payload) in (None, True, False)


def report(payload: bytes) -> None:
    assert len(payload) <= MAX_DOCUMENT_BYTES
    is_storable(decode_report(payload))


FIELDS = (
    layout.Field(name="low", offset=0, type="u8", bits=(0, 4), scale=0.1),
    layout.Field(name="door", offset=0, type="bool", bits=(7, 1)),
    layout.Field(name="little", offset=1, type="i24", endian="little", add=1),
    layout.Field(name="half", offset=4, type="f32", scale=1e300, optional=True),
    layout.Field(name="whole", offset=8, type="f64", scale=1e300, optional=True),
    layout.Field(name="last", offset=-2, type="i16", f_port=2),
)
COMMAND_FIELDS = tuple(field for field in FIELDS if field.offset >= 0)


def frame(metrics: dict[str, Any]) -> None:
    assert all(type(value) in (float, bool) and value == value for value in metrics.values())


def layout_frame(payload: bytes) -> None:
    for port in (1, 2):
        frame(layout.decode(FIELDS, port, payload))


def layout_command(parameters: dict[str, Any]) -> None:
    assert len(layout.encode(COMMAND_FIELDS, parameters)) <= 16


def event(found: Event | None) -> None:
    if found is None:
        return
    assert len(found.device_id) == 16
    for heard in found.heard:
        assert heard.status in ("delivered", "succeeded", "failed")
        is_storable([heard.reason, heard.command_id])
    is_storable(found.route)
    assert all(type(value) in (float, bool, str) for value in found.facts.values())
    if found.uplink is not None:
        is_storable([found.uplink.counter, found.uplink.port])


def chirpstack_event(payload: bytes) -> None:
    for kind in ("up", "join", "status", "ack", "txack", "log", "location", "other"):
        try:
            event(chirpstack.decode(kind, payload))
        except Undecodable as error:
            is_storable(error.code)


def sparkplug_payload(payload: bytes) -> None:
    said = sparkplug.decode(payload)
    for metric in said.metrics:
        is_storable(unit_of(metric))
        for datatype in DataType if metric.datatype is None else (metric.datatype,):
            try:
                found = list(values("m", datatype, metric))
            except Undecodable:
                continue
            assert all(type(value) in (float, bool, str) for _, value in found)


def mqtt_stream(stream: bytes) -> None:
    """However it is cut in pieces, the same packets; and none of them has more than there was."""
    outcomes = []
    for pieces in ([stream], [stream[at : at + 3] for at in range(0, len(stream), 3)]):
        packets, control, acks = [], [], AckOrder()
        parser = InboundParser(
            acks, {7}, lambda head, body, c=control: c.append((head, body)), lambda _: None, MAX_PACKET_BYTES
        )
        broken = False
        try:
            for piece in pieces:
                packets += parser.feed(piece)
        except MalformedPacket:
            broken = True
        assert all(type(packet[0]) is type(packet[1]) is bytes for packet in packets)
        assert sum(3 + len(body) for _, body, _, _, _ in packets) <= len(stream)
        outcomes.append((broken, None if broken else (packets, control, len(acks))))
    assert outcomes[0] == outcomes[1]


def mqtt_properties(body: bytes) -> None:
    found, rest = split_properties(body)
    assert body.endswith(rest)
    assert all(isinstance(said, list) for said in found.values())


def mqtt311(body: bytes) -> None:
    topic, payload = _published(0x30, body)
    assert body.endswith(payload)
    assert isinstance(topic, str)


def hello(data: bytes) -> None:
    level = protocol_level(data)
    assert level is None or 0 <= level < 256


class Target(NamedTuple):
    """A decoder under test: `check` decodes and holds the value against what it must be."""

    check: Callable[[Any], None]
    drawn: st.SearchStrategy[Any]
    error: type[Exception] | None = Undecodable


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.integers(-5, 300)
COMMANDS = st.dictionaries(
    st.sampled_from([field.name for field in COMMAND_FIELDS]) | st.sampled_from(["", "x"]),
    st.none() | st.booleans() | NUMBERS | st.just("text"),
)
TARGETS = {
    "json": Target(readings_by(telemetry.decode), payloads(*seeds.JSON)),
    "cbor": Target(readings_by(cbor.decode), payloads(*seeds.CBOR, seeds.TAGGED)),
    "senml json": Target(readings_by(senml.decode_json), payloads(seeds.SENML)),
    "senml cbor": Target(readings_by(senml.decode_cbor), payloads(*seeds.SENML_CBOR)),
    "message ids": Target(message_ids, payloads(*seeds.JSON)),
    "replies": Target(reply, payloads(seeds.REPLY)),
    "command requests": Target(request, payloads(*seeds.REQUESTS)),
    "presence": Target(presence, payloads(*seeds.STATUSES)),
    "twin reports": Target(report, payloads(seeds.REPORT)),
    "cayenne": Target(lambda payload: frame(cayenne.decode(payload)), payloads(*seeds.LPP)),
    "layout": Target(layout_frame, payloads(*seeds.FRAMES)),
    "layout commands": Target(layout_command, COMMANDS),
    "chirpstack": Target(chirpstack_event, payloads(*seeds.CHIRPSTACK)),
    "the things stack": Target(lambda payload: event(tts.decode(payload, "app")), payloads(*seeds.TTS)),
    "sparkplug": Target(sparkplug_payload, payloads(*seeds.SPARKPLUG)),
    "mqtt": Target(mqtt_stream, payloads(*seeds.STREAM), None),
    "mqtt properties": Target(mqtt_properties, payloads(seeds.PROPERTY_BLOCK), MalformedPacket),
    "mqtt 3.1.1": Target(mqtt311, payloads(seeds.STREAM[0][2:]), Disconnected),
    "mqtt connect": Target(hello, payloads(seeds.CONNECT), None),
}


def run(name: str, examples: int) -> None:
    target = TARGETS[name]

    def check(example: Any) -> None:
        with suppress(*(() if target.error is None else (target.error,))):
            target.check(example)

    fuzz(check, target.drawn, examples)


@pytest.mark.parametrize("name", TARGETS)
def test_a_value_or_the_documented_error(name: str) -> None:
    run(name, FAST_EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_so_it_is_with_thousands(name: str) -> None:
    run(name, SLOW_EXAMPLES)


GOOD = {
    "json": seeds.JSON,
    "cbor": seeds.CBOR,
    "senml json": (seeds.SENML,),
    "senml cbor": seeds.SENML_CBOR,
    "replies": (seeds.REPLY,),
    "command requests": seeds.REQUESTS,
    "twin reports": (seeds.REPORT,),
    "presence": seeds.STATUSES,
    "cayenne": seeds.LPP,
    "the things stack": seeds.TTS,
    "sparkplug": seeds.SPARKPLUG,
}


@pytest.mark.parametrize("name", GOOD)
def test_the_seeds_are_values(name: str) -> None:
    """Damage to what is refused anyhow would test nothing."""
    for seed in GOOD[name]:
        TARGETS[name].check(seed)


def test_a_property_block_that_does_not_end_is_no_payload() -> None:
    parser = InboundParser(AckOrder(), set(), lambda *_: None, lambda _: None, MAX_PACKET_BYTES)
    with pytest.raises(MalformedPacket, match="property block"):
        parser.feed(b"\x30\x04\0\x01t\x80")
