"""The C modules of the ingest room against what they stand for in Python."""

import gc
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensorium.ingest import _publish_py
from sensorium.ingest._flat_py import Flat as NoShortWay
from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Undecodable

NOW_MS = 1_795_459_094_744

digits = st.text("0123456789", min_size=1, max_size=20)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e4, 1e4).map(lambda x: f"{x:.2f}"),
    st.integers().map(str),
    st.integers(-(2**54), 2**54).map(str),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), digits, digits),
    st.builds("{}e{}".format, digits, st.integers(-340, 340)),
    st.builds("{}.{}E{}{}".format, digits, digits, st.sampled_from(["", "+", "-"]), st.integers(0, 30)),
    st.sampled_from(
        ["0", "-0", "-0.0", "00", "01", "1.", ".5", "+1", "1e", "0x10", "1_0", "NaN", "-Infinity"]
    ),
)
stamps = st.one_of(
    numbers,
    st.integers(NOW_MS - 10**12, NOW_MS + 10**6).map(str),
    st.datetimes().map(lambda t: f'"{t.isoformat()}"'),
    st.datetimes().map(lambda t: f'"{t.isoformat(timespec="milliseconds")}Z"'),
    st.builds(
        '"20{:02}-{:02}-{:02}T{:02}:{:02}:{:02}{}{}"'.format,
        *(st.integers(0, top) for top in (26, 13, 32, 24, 60, 61)),
        st.sampled_from(["", ".1", ".12", ".123", ".123456", ".1234567", ".", ".999999", ",5"]),
        st.sampled_from(["", "Z", "z", "+00:00", "-14:30", "+24:00", "+01", "+0130", "+01:60", " "]),
    ),
    st.sampled_from(["true", "null", '"now"', '""', '"2024-01-01"', "{}"]),
)
keys = st.sampled_from(
    ["a", "b", "temperature", "a b", "", "é", "\\u0061", "x" * 140, "\x7f", "Timestamp", "\x01"]
)
values = st.one_of(
    numbers, numbers, st.sampled_from(["true", "false", "null", '"on"', '""', "[1]", "{}", "tru", ""])
)
space = st.sampled_from(["", "", "", " ", "\n\t\r ", "\x0b"])


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    members = draw(st.lists(st.tuples(keys, values), max_size=5))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(members)))
        members.insert(at, ("timestamp", draw(stamps)))
    parts = [f'{draw(space)}"{key}"{draw(space)}:{draw(space)}{value}{draw(space)}' for key, value in members]
    text = draw(space) + "{" + ",".join(parts) + "}" + draw(space)
    return text.encode() + draw(st.sampled_from([b"", b"", b"", b"\0", b"}", b",", b"{}"]))


def outcome(decode: Callable[[bytes, int], Any], payload: bytes) -> object:
    try:
        return [
            (*reading, [type(v) for v in reading[2]], repr(reading[2])) for reading in decode(payload, NOW_MS)
        ]
    except Undecodable as error:
        return error.code, str(error)


@pytest.fixture(scope="module")
def decoders() -> tuple[TelemetryDecoder, TelemetryDecoder]:
    """One with the short way in C, one without any."""
    native = pytest.importorskip("sensorium.ingest._flat", exc_type=ImportError)
    short, general = TelemetryDecoder(), TelemetryDecoder()
    assert isinstance(short._flat.__self__, native.Flat)
    general._flat = NoShortWay(lambda names: names, 0, 0).read
    return short, general


@given(payloads())
@example(b'{"a":1.0000000000000002,"timestamp":1795459094744.9}')
@example(b'{"a":123456789012345678,"b":0.1e-22,"c":9007199254740993}')
@example(b'{"a":1,"timestamp":"2026-11-23T18:00:00.0005","a":1}')
def test_the_short_way_reads_what_the_general_one_reads(
    decoders: tuple[TelemetryDecoder, TelemetryDecoder], payload: bytes
) -> None:
    short, general = decoders
    assert outcome(short.decode, payload) == outcome(general.decode, payload)


@given(payloads(), st.binary(max_size=2), st.integers(0, 60))
def test_so_it_is_with_damaged_payloads(
    decoders: tuple[TelemetryDecoder, TelemetryDecoder], payload: bytes, damage: bytes, at: int
) -> None:
    damaged = payload[:at] + damage + payload[at + 1 :]
    short, general = decoders
    assert outcome(short.decode, damaged) == outcome(general.decode, damaged)


def test_the_usual_payload_takes_the_short_way(decoders: tuple[TelemetryDecoder, TelemetryDecoder]) -> None:
    read = decoders[0]._flat
    assert read(b'{"t": -21.5, "on": true}', NOW_MS) == (NOW_MS, ("t", "on"), [-21.5, True], False)
    stamp = (1_704_110_400_123, ("t",), [1.0], True)
    assert read(b'{"timestamp":"2024-01-01T12:00:00.123Z","t":1}', NOW_MS) == stamp
    assert read(b'{"timestamp":1704110400123,"t":1}', NOW_MS) == stamp
    again = read(b'{ "t" : 2 }', NOW_MS)
    assert again is not None
    assert again[1] is decoders[0].decode(b'{"t":"text"}', NOW_MS)[0][1], "equal names are one object"


def test_the_short_way_keeps_the_bounds() -> None:
    pytest.importorskip("sensorium.ingest._flat", exc_type=ImportError)
    tight = TelemetryDecoder(Bounds(max_metrics=1, max_future_s=1.0, max_past_s=1.0))
    for payload, code in (
        (b'{"a":1,"b":2}', "too_many_metrics"),
        (b'{"a":1,"timestamp":%d}' % (NOW_MS + 1001), "timestamp_too_far_in_future"),
        (b'{"a":1,"timestamp":%d}' % (NOW_MS - 1001), "timestamp_too_old"),
    ):
        with pytest.raises(Undecodable) as refused:
            tight.decode(payload, NOW_MS)
        assert refused.value.code == code
    assert tight.decode(b'{"a":1,"timestamp":%d}' % (NOW_MS + 1000), NOW_MS)[0][0] == NOW_MS + 1000


def test_more_layouts_than_are_remembered_are_all_read_right() -> None:
    pytest.importorskip("sensorium.ingest._flat", exc_type=ImportError)
    decoder = TelemetryDecoder()
    for _ in range(2):
        for number in range(2000):
            [(_, names, values, _)] = decoder.decode(b'{"m%d":1,"n":%d}' % (number, number), NOW_MS)
            assert (names, values) == ((f"m{number}", "n"), [1.0, float(number)])
    del decoder
    gc.collect()


# --- PUBLISH packets ------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    head = draw(st.one_of(st.sampled_from([0x30, 0x32, 0x32, 0x3A, 0x31]), st.integers(0, 255)))
    topic = draw(st.sampled_from([b"devices/a/telemetry", b"t", b""]))
    body = struct.pack("!H", len(topic)) + topic
    if head & 6:
        body += struct.pack("!H", draw(st.integers(0, 65535)))
    body += draw(st.sampled_from([b"\0", b"\0", b"\0", b"", b"\x02\x01\x01", b"\x80\0"]))
    body += draw(st.binary(max_size=4) | st.integers(0, 300).map(bytes))
    length = len(body) + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 5]))
    return bytes([head]) + varint(max(length, 0)) + body


@given(st.lists(packets(), max_size=6), st.integers(0, 8), st.integers(0, 4), st.sampled_from([0, 20, 10**6]))
def test_packets_are_cut_alike(parts: list[bytes], lost: int, start: int, most: int) -> None:
    native = pytest.importorskip("sensorium.ingest._publish", exc_type=ImportError)
    stream = b"".join(parts)
    stream = stream[: len(stream) - lost]
    start = min(start, len(stream))
    assert native.cut_plain(stream, start, most) == _publish_py.cut_plain(stream, start, most)


@given(st.binary(max_size=40), st.sampled_from([b"", b"\x32\x20", b"\x30\x10\x00\x01t"]))
def test_any_bytes_are_cut_alike(stream: bytes, start: bytes) -> None:
    native = pytest.importorskip("sensorium.ingest._publish", exc_type=ImportError)
    assert native.cut_plain(start + stream, 0, 1000) == _publish_py.cut_plain(start + stream, 0, 1000)


def test_a_position_outside_of_the_data_is_refused() -> None:
    native = pytest.importorskip("sensorium.ingest._publish", exc_type=ImportError)
    for cut in (native.cut_plain, _publish_py.cut_plain):
        for position, most in ((-1, 1), (4, 1), (0, -1)):
            with pytest.raises(ValueError, match="position"):
                cut(b"abc", position, most)
