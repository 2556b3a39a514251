"""The types of Sparkplug's values by number, and how wide each is; arrays, which are packed."""

import struct
from enum import IntEnum
from typing import Any, Final

from sensorium.ingest.sparkplug.wire import malformed


class DataType(IntEnum):
    """Types of metrics, properties and columns."""

    UNKNOWN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14
    UUID = 15
    DATASET = 16
    BYTES = 17
    FILE = 18
    TEMPLATE = 19
    PROPERTY_SET = 20
    PROPERTY_SET_LIST = 21
    INT8_ARRAY = 22
    INT16_ARRAY = 23
    INT32_ARRAY = 24
    INT64_ARRAY = 25
    UINT8_ARRAY = 26
    UINT16_ARRAY = 27
    UINT32_ARRAY = 28
    UINT64_ARRAY = 29
    FLOAT_ARRAY = 30
    DOUBLE_ARRAY = 31
    BOOLEAN_ARRAY = 32
    STRING_ARRAY = 33
    DATETIME_ARRAY = 34


SIGNED_BITS: Final = {DataType.INT8: 8, DataType.INT16: 16, DataType.INT32: 32, DataType.INT64: 64}
UNSIGNED_BITS: Final = {
    DataType.UINT8: 8,
    DataType.UINT16: 16,
    DataType.UINT32: 32,
    DataType.UINT64: 64,
    DataType.DATETIME: 64,
}
TEXTS: Final = frozenset((DataType.STRING, DataType.TEXT, DataType.UUID))
_LETTERS: Final = {
    DataType.INT8_ARRAY: "b",
    DataType.INT16_ARRAY: "h",
    DataType.INT32_ARRAY: "i",
    DataType.INT64_ARRAY: "q",
    DataType.UINT8_ARRAY: "B",
    DataType.UINT16_ARRAY: "H",
    DataType.UINT32_ARRAY: "I",
    DataType.UINT64_ARRAY: "Q",
    DataType.FLOAT_ARRAY: "f",
    DataType.DOUBLE_ARRAY: "d",
    DataType.DATETIME_ARRAY: "q",
}
ARRAYS: Final = frozenset((*_LETTERS, DataType.BOOLEAN_ARRAY, DataType.STRING_ARRAY))


def data_type(number: int) -> DataType:
    """The type of a number. Raises `Undecodable`."""
    try:
        return DataType(number)
    except ValueError:
        raise malformed(f"there is no type {number}") from None


def array_of(datatype: DataType, packed: bytes) -> list[Any]:
    """The members of an array, which are packed in bytes. Raises `Undecodable`."""
    if datatype is DataType.STRING_ARRAY:
        if packed and not packed.endswith(b"\0"):
            raise malformed("an array of texts whose last one does not end")
        try:
            return [text.decode() for text in packed.split(b"\0")[:-1]]
        except UnicodeDecodeError:
            raise malformed("a text is not UTF-8") from None
    if datatype is DataType.BOOLEAN_ARRAY:
        count = int.from_bytes(packed[:4], "little")
        if len(packed) < 4 or (count + 7) // 8 != len(packed) - 4:
            raise malformed("an array of booleans whose length is not its own")
        return [bool(packed[4 + index // 8] >> (7 - index % 8) & 1) for index in range(count)]
    letter = _LETTERS[datatype]
    size = struct.calcsize(f"<{letter}")
    if len(packed) % size:
        raise malformed(f"a {datatype.name} of {len(packed)} bytes")
    return list(struct.unpack(f"<{len(packed) // size}{letter}", packed))
