"""Declarative binary layouts: fields at offsets of a frame. Bytes in, metrics out; of downlinks, back."""

import math
import struct
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from sensorium.actors.messages import Value
from sensorium.ingest.errors import Reason, Undecodable

FieldType = Literal["u8", "i8", "u16", "i16", "u24", "i24", "u32", "i32", "f32", "f64", "bool"]
SIZES: Final = {
    "u8": 1, "i8": 1, "u16": 2, "i16": 2, "u24": 3, "i24": 3, "u32": 4, "i32": 4,
    "f32": 4, "f64": 8, "bool": 1,
}  # fmt: skip


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A metric in a frame: `number * scale + add`.

    Attributes:
        offset: of its first byte; below 0 from the end.
        bits: of an unsigned number, the lowest bit and how many; None for all.
        f_port: only in frames of this port; None for all.
        optional: absent in a frame that ends before it, which is an error otherwise.
        unit: of the number as it is decoded.
    """

    name: str
    offset: int
    type: FieldType
    endian: Literal["big", "little"] = "big"
    scale: float = 1.0
    add: float = 0.0
    bits: tuple[int, int] | None = None
    f_port: int | None = None
    optional: bool = False
    unit: str | None = None


def decode(fields: tuple[Field, ...], port: int, frame: bytes) -> dict[str, Value]:
    """The metrics of a frame. Raises `Undecodable`."""
    metrics: dict[str, Value] = {}
    for field in fields:
        if field.f_port is not None and field.f_port != port:
            continue
        start = field.offset if field.offset >= 0 else len(frame) + field.offset
        raw = frame[start : start + SIZES[field.type]] if start >= 0 else b""
        if len(raw) < SIZES[field.type]:
            if field.optional:
                continue
            raise Undecodable(
                Reason.BAD_FRAME, f"the frame of {len(frame)} bytes ends before {field.name!r} does"
            )
        metrics[field.name] = _value(field, raw)
    return metrics


def units(fields: tuple[Field, ...]) -> dict[str, str]:
    """The units of those metrics that have one."""
    return {field.name: field.unit for field in fields if field.unit is not None}


def encode(fields: tuple[Field, ...], values: Mapping[str, object]) -> bytes:
    """A frame in which each field has its value, and what is between them is 0. Raises `Undecodable`.

    Offsets count from the beginning; a field that is optional may be left out.
    """
    known = {field.name for field in fields}
    if unknown := sorted(set(values) - known):
        raise Undecodable(Reason.WRONG_TYPE, f"the layout has no {unknown[0][:60]!r}")
    frame = bytearray()
    for field in fields:
        value = values.get(field.name)
        if value is None and field.optional:
            continue
        if type(value) not in (bool, int, float):
            raise Undecodable(Reason.WRONG_TYPE, f"{field.name!r} must be a number or boolean")
        end = field.offset + SIZES[field.type]
        frame.extend(bytes(max(0, end - len(frame))))
        before = int.from_bytes(frame[field.offset : end], field.endian)
        frame[field.offset : end] = _packed(field, float(value), before)  # type: ignore[arg-type]
    return bytes(frame)


def _packed(field: Field, value: float, before: int) -> bytes:
    size = SIZES[field.type]
    number = (value - field.add) / field.scale
    if field.type in ("f32", "f64"):
        order = ">" if field.endian == "big" else "<"
        try:
            return struct.pack(order + ("f" if field.type == "f32" else "d"), number)
        except OverflowError:
            raise Undecodable(Reason.WRONG_TYPE, f"{field.name!r}: {value:g} is too large") from None
    signed = field.type.startswith("i")
    low, count = field.bits or (0, 1 if field.type == "bool" else 8 * size)
    least, most = (-(1 << count - 1), (1 << count - 1) - 1) if signed else (0, (1 << count) - 1)
    if not math.isfinite(number) or not least <= round(number) <= most:
        raise Undecodable(Reason.WRONG_TYPE, f"{field.name!r}: {value:g} does not fit its {count} bits")
    # Several fields may share a byte.
    whole = before | (round(number) & ((1 << count) - 1)) << low
    return whole.to_bytes(size, field.endian)


def _value(field: Field, raw: bytes) -> Value:
    if field.type in ("f32", "f64"):
        order = ">" if field.endian == "big" else "<"
        number: float = struct.unpack(order + ("f" if field.type == "f32" else "d"), raw)[0]
    else:
        whole = int.from_bytes(raw, field.endian, signed=field.type.startswith("i"))
        if field.bits is not None:
            low, count = field.bits
            whole = whole >> low & ((1 << count) - 1)
        if field.type == "bool":
            return bool(whole)
        number = float(whole)
    number = number * field.scale + field.add
    if not math.isfinite(number):
        raise Undecodable(Reason.NOT_FINITE, f"{field.name!r} is no finite number")
    return number
