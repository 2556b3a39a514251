"""Commands to frames of LoRaWAN devices: raw, by a layout, by a vendor's encoder; and what cannot be one."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.messages import Telling
from sensorium.ingest.dispatch import Untold
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.lorawan import chirpstack, layout
from sensorium.ingest.lorawan.adapter import CayenneCodec, CommandLayout, ScriptCodec
from sensorium.ingest.lorawan.frames import Frame, FrameEncoder
from sensorium.ingest.lorawan.layout import Field

LAMP = """
function encodeDownlink(input) {
    if (input.data.level > 100) { return {errors: ["too bright"]}; }
    if (input.data.loop) { while (true) {} }
    return {bytes: [7, input.data.level], fPort: 9};
}
"""
OLD = "function Encoder(data, port) { return [data.level, port]; }"
VALVE = CommandLayout(
    3,
    (
        Field(name="percent", offset=0, type="u8", scale=0.5),
        Field(name="angle", offset=1, type="i16", endian="little", optional=True),
        Field(name="mode", offset=3, type="u8", bits=(0, 3), optional=True),
        Field(name="lock", offset=3, type="bool", bits=(7, 1), optional=True),
    ),
    confirmed=False,
)


def telling(command: str, **parameters: Any) -> Telling:
    return Telling("c", command, parameters, 1, 10**15)


@pytest.fixture(scope="module")
async def encoder() -> AsyncIterator[FrameEncoder]:
    codecs = {"lamp": ScriptCodec(LAMP), "old": ScriptCodec(OLD), "valve": CayenneCodec()}
    made = FrameEncoder(codecs, {"valve": {"open": VALVE}})
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("profile", "command", "frame"),
    [
        ("x", telling("downlink", f_port=2, hex="01 ff"), Frame(2, b"\x01\xff", True)),
        ("x", telling("downlink", f_port=2, base64="Af8=", confirmed=False), Frame(2, b"\x01\xff", False)),
        ("x", telling("downlink", f_port=2, object={"a": 1}), Frame(2, b"", True, {"a": 1})),
        ("valve", telling("open", percent=50), Frame(3, b"\x64", False)),
        (
            "valve",
            telling("open", percent=0, angle=-2, mode=5, lock=True),
            Frame(3, b"\x00\xfe\xff\x85", False),
        ),
        ("lamp", telling("dim", level=40), Frame(9, b"\x07\x28", True)),
        ("lamp", telling("dim", level=40, confirmed=False), Frame(9, b"\x07\x28", False)),
        ("old", telling("dim", level=40, f_port=5), Frame(5, b"\x28\x05", True)),
    ],
)
async def test_commands_become_frames(
    encoder: FrameEncoder, profile: str, command: Telling, frame: Frame
) -> None:
    assert await encoder.encode(command, profile) == frame


@pytest.mark.parametrize(
    ("profile", "command", "says"),
    [
        ("x", telling("open"), "no codec of profile 'x' encodes 'open'"),
        ("valve", telling("close"), "no codec of profile 'valve' encodes 'close'"),
        ("x", telling("downlink", f_port=0, hex="01"), "f_port is 1 to 223"),
        ("x", telling("downlink", f_port=1, hex="0"), "not hexadecimal"),
        ("x", telling("downlink", f_port=1, base64="*"), "not base64"),
        ("x", telling("downlink", f_port=1, hex="01", base64="AQ=="), "one of hex, base64"),
        ("x", telling("downlink", f_port=1, hex="01", confirmed=1), "true or false"),
        ("x", telling("downlink", f_port=1, hex="00" * 243), "takes 242 bytes"),
        ("valve", telling("open", percent=128), "does not fit its 8 bits"),
        ("valve", telling("open", percent=-1), "does not fit"),
        ("valve", telling("open", percent="all"), "must be a number"),
        ("valve", telling("open", percent=1, speed=1), "no 'speed'"),
        ("lamp", telling("dim", level=400), "too bright"),
        ("lamp", telling("dim", level=1, loop=True), "interrupted"),
        ("old", telling("dim", level=300), "gave no bytes"),
    ],
)
async def test_what_cannot_be_a_frame_is_said(
    encoder: FrameEncoder, profile: str, command: Telling, says: str
) -> None:
    with pytest.raises(Untold, match=says) as untold:
        await encoder.encode(command, profile)
    assert untold.value.final


TYPES = ("u8", "i8", "u16", "i16", "u24", "i24", "u32", "i32", "f64")


@given(st.sampled_from(TYPES), st.sampled_from(["big", "little"]), st.integers(-(2**31), 2**32), st.data())
def test_a_layout_reads_what_it_has_written(
    kind: layout.FieldType, endian: Any, number: int, data: st.DataObject
) -> None:
    field = Field(name="n", offset=data.draw(st.integers(0, 3)), type=kind, endian=endian)
    try:
        frame = layout.encode((field,), {"n": number})
    except Undecodable:
        bits = 8 * layout.SIZES[kind]
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "i" else (0, 2**bits - 1)
        assert not least <= number <= most
    else:
        assert layout.decode((field,), 1, frame) == {"n": float(number)}


@given(st.uuids(), st.booleans())
def test_a_queue_item_is_the_command_again(command: Any, confirmed: bool) -> None:
    item = chirpstack.queue_item_of(command.hex, confirmed=confirmed)
    assert item is not None
    assert chirpstack.queue_item_of(item, confirmed=confirmed) == str(command)
    assert chirpstack.queue_item_of("no-uuid", confirmed=True) is None
