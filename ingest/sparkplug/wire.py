"""The wire format of Protocol Buffers: fields by number, without a schema. Bytes in, fields out, and back.

Source: the encoding page of the Protocol Buffers documentation. Groups, which are deprecated, are refused.
"""

import struct
from collections.abc import Iterator
from typing import Final

from sensorium.ingest.errors import Reason, Undecodable

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

_MAX_VARINT_BYTES: Final = 10
_MASK: Final = 2**64 - 1
_FLOAT: Final = struct.Struct("<f")
_DOUBLE: Final = struct.Struct("<d")


def malformed(detail: str) -> Undecodable:
    """Of a payload that breaks the format."""
    return Undecodable(Reason.MALFORMED_PROTOBUF, detail)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of 64 bits, and the position after it. Raises `Undecodable`."""
    value = shift = 0
    for position in range(at, min(len(data), at + _MAX_VARINT_BYTES)):
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, position + 1
        shift += 7
    raise malformed(f"a number at byte {at} does not end")


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, wire type and content of each field, in order: a varint as a number, all else as bytes.

    Raises:
        Undecodable: the bytes are no message.
    """
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise malformed(f"a field without a number before byte {at}")
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise malformed(f"field {number} has the wire type {kind}")
        if at + size > len(data):
            raise malformed(f"field {number} is longer than what is left")
        yield number, kind, data[at : at + size]
        at += size


def as_number(kind: int, value: int | bytes) -> int:
    """The content of a field that must be a number."""
    if kind != VARINT or not isinstance(value, int):
        raise malformed(f"a number has the wire type {kind}")
    return value


def as_bytes(kind: int, value: int | bytes) -> bytes:
    """The content of a field that must be bytes or a message."""
    if kind != BYTES or not isinstance(value, bytes):
        raise malformed(f"bytes have the wire type {kind}")
    return value


def as_text(kind: int, value: int | bytes) -> str:
    """The content of a field that must be a text."""
    try:
        return as_bytes(kind, value).decode()
    except UnicodeDecodeError:
        raise malformed("a text is not UTF-8") from None


def as_float(kind: int, value: int | bytes) -> float:
    """The content of a float or a double."""
    if isinstance(value, bytes) and kind in (FIXED32, FIXED64):
        found: float = (_FLOAT if kind == FIXED32 else _DOUBLE).unpack(value)[0]
        return found
    raise malformed(f"a floating-point number has the wire type {kind}")


def as_numbers(kind: int, value: int | bytes) -> list[int]:
    """One number of a repeated field, or all of them when they are packed."""
    if isinstance(value, int):
        return [value]
    packed = as_bytes(kind, value)
    numbers, at = [], 0
    while at < len(packed):
        number, at = varint(packed, at)
        numbers.append(number)
    return numbers


def put_varint(value: int) -> bytes:
    """A number, the negative ones in two's complement of 64 bits."""
    value &= _MASK
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def put(number: int, value: bool | int | bytes | str) -> bytes:
    """A field: a number or boolean as varint, anything else with its length."""
    if isinstance(value, int):
        return put_varint(number << 3 | VARINT) + put_varint(value)
    content = value.encode() if isinstance(value, str) else value
    return put_varint(number << 3 | BYTES) + put_varint(len(content)) + content


def put_float(number: int, value: float) -> bytes:
    """A float of 32 bits. Raises `OverflowError` for what is too large."""
    return put_varint(number << 3 | FIXED32) + _FLOAT.pack(value)


def put_double(number: int, value: float) -> bytes:
    """A float of 64 bits."""
    return put_varint(number << 3 | FIXED64) + _DOUBLE.pack(value)
