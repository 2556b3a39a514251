"""Frames of LoRaWAN devices: Cayenne LPP, layouts, and vendors' scripts in their sandbox."""

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest.errors import Undecodable
from sensorium.ingest.lorawan import cayenne, layout
from sensorium.ingest.lorawan.layout import Field
from sensorium.ingest.lorawan.scripts import ScriptCodecs

LHT65N = b64decode("y/YLDQN2AQrdf/8=")
LHT65N_FIELDS = (
    Field(name="BatV", offset=0, type="u16", bits=(0, 14), scale=0.001, f_port=2),
    Field(name="TempC_SHT", offset=2, type="i16", scale=0.01, f_port=2),
    Field(name="Hum_SHT", offset=4, type="u16", scale=0.1, f_port=2),
    Field(name="TempC_DS", offset=7, type="i16", scale=0.01, f_port=2),
)
LHT65N_SCRIPT = """
function decodeUplink(input) {
    var b = input.bytes;
    if (input.fPort !== 2) return { errors: ["unknown port"] };
    function s16(i) { var v = b[i] << 8 | b[i + 1]; return v > 32767 ? v - 65536 : v; }
    return { data: {
        BatV: ((b[0] << 8 | b[1]) & 0x3fff) / 1000, TempC_SHT: s16(2) / 100,
        Hum_SHT: (b[4] << 8 | b[5]) / 10, TempC_DS: s16(7) / 100, at: input.recvTime.toISOString()
    } };
}
"""
EXPECTED = {"BatV": 3.062, "TempC_SHT": 28.29, "Hum_SHT": 88.6, "TempC_DS": 27.81}


def test_cayenne_reads_the_known_frame() -> None:
    assert cayenne.decode(b64decode("A2cBEAVnAP8=")) == {"temperature_3": 27.2, "temperature_5": 25.5}


def test_cayenne_reads_signs_axes_and_places() -> None:
    assert cayenne.decode(bytes.fromhex("0167ffd7")) == {"temperature_1": -4.1}
    assert cayenne.decode(bytes.fromhex("067104d2fb2e0000")) == {
        "accelerometer_6_x": 1.234,
        "accelerometer_6_y": -1.234,
        "accelerometer_6_z": 0.0,
    }
    assert cayenne.decode(bytes.fromhex("018806765ff2960a0003e8")) == {
        "latitude_1": 42.3519,
        "longitude_1": -87.9094,
        "altitude_1": 10.0,
    }


@pytest.mark.parametrize("frame", ["01", "0167", "016701", "01ff00"])
def test_cayenne_refuses_what_it_cannot_read(frame: str) -> None:
    with pytest.raises(Undecodable, match="bad_frame"):
        cayenne.decode(bytes.fromhex(frame))


def test_a_layout_reads_the_known_frame() -> None:
    assert layout.decode(LHT65N_FIELDS, 2, LHT65N) == pytest.approx(EXPECTED)
    assert layout.decode(LHT65N_FIELDS, 3, LHT65N) == {}


def test_layouts_know_bits_ends_and_orders() -> None:
    fields = (
        Field(name="low", offset=0, type="u8", bits=(0, 4)),
        Field(name="door", offset=0, type="bool", bits=(7, 1)),
        Field(name="little", offset=1, type="i24", endian="little", add=1),
        Field(name="last", offset=-1, type="u8"),
        Field(name="more", offset=90, type="u8", optional=True),
    )
    assert layout.decode(fields, 1, bytes.fromhex("85feffff07")) == {
        "low": 5.0,
        "door": True,
        "little": -1.0,
        "last": 7.0,
    }
    with pytest.raises(Undecodable, match="ends before 'little'"):
        layout.decode(fields, 1, b"\x00")
    with pytest.raises(Undecodable, match="not_finite"):
        layout.decode((Field(name="f", offset=0, type="f32"),), 1, bytes.fromhex("7f800000"))


TYPES = st.sampled_from(sorted(layout.SIZES))


@given(st.binary(max_size=20), TYPES, st.integers(-20, 20))
def test_any_frame_is_metrics_or_undecodable(frame: bytes, kind: layout.FieldType, offset: int) -> None:
    for decode in (
        lambda: cayenne.decode(frame),
        lambda: layout.decode((Field(name="a", offset=offset, type=kind),), 1, frame),
    ):
        try:
            metrics = decode()
        except Undecodable:
            continue
        assert all(type(value) in (float, bool) for value in metrics.values())


SCRIPTS = {
    "lht65n": LHT65N_SCRIPT,
    "old": "function Decoder(bytes, port) { return { first: bytes[0], port: port }; }",
    "older": "function Decode(fPort, bytes, variables) { return { first: bytes[0], port: fPort }; }",
    "throws": "function decodeUplink(input) { throw new Error('no ' + input.fPort); }",
    "loops": "function decodeUplink(input) { while (true) {} }",
    "eats": "function decodeUplink(input) { var a = []; while (true) a.push(new Array(10000).fill(1)); }",
    "recurses": "function decodeUplink(input) { return decodeUplink(input); }",
    "talks": "function decodeUplink(input) { return { data: { a: 'x'.repeat(1000000) } }; }",
    "garbage": "function (",
    "empty": "var x = 1;",
    "nothing": "function decodeUplink(input) {}",
    "array": "function decodeUplink(input) { return { data: [1] }; }",
}


async def test_scripts_of_all_generations() -> None:
    async with ScriptCodecs(SCRIPTS) as codecs:
        decoded = await codecs.decode("lht65n", 2, LHT65N, 1_704_110_400_000)
        assert decoded.pop("at") == "2024-01-01T12:00:00.000Z"
        assert decoded == EXPECTED
        assert await codecs.decode("old", 7, b"\x05", 0) == {"first": 5, "port": 7}
        assert await codecs.decode("older", 7, b"\x05", 0) == {"first": 5, "port": 7}


async def test_a_bad_script_costs_its_own_frame_only() -> None:
    async with ScriptCodecs(SCRIPTS) as codecs:
        bad = [name for name in SCRIPTS if name not in ("lht65n", "old", "older")]
        for name in bad:
            with pytest.raises(Undecodable) as caught:
                await codecs.decode(name, 1, b"\x01", 0)
            assert caught.value.code == "codec_failed"
            assert await codecs.decode("old", 1, b"\x01", 0) == {"first": 1, "port": 1}
        with pytest.raises(Undecodable, match="unknown port"):
            await codecs.decode("lht65n", 1, LHT65N, 0)
        assert codecs.statistics()["failures"] == len(bad) + 1


async def test_a_process_that_dies_is_made_anew() -> None:
    async with ScriptCodecs(SCRIPTS) as codecs:
        await codecs.decode("old", 1, b"\x01", 0)
        assert codecs._process is not None
        codecs._process.kill()
        await codecs._process.wait()
        with pytest.raises(Undecodable, match="made anew"):
            await codecs.decode("old", 1, b"\x01", 0)
        assert await codecs.decode("old", 1, b"\x02", 0) == {"first": 2, "port": 1}
        assert codecs.statistics()["restarts"] == 1
