"""Rows of the log as PostgreSQL's binary COPY format, and values back from columns. No connection, no clock.

Source of the format: the PostgreSQL manual, COPY, "Binary Format"; arrays as `array_recv` reads them.
"""

from collections.abc import Sequence
from struct import Struct
from struct import error as struct_error
from typing import Final

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, TEXT, MetricSet
from sensorium.actors.records import ReadingRow
from sensorium.storage._rows_py import (
    FLOAT8_OID,
    READING_FIXED,
    READING_START,
    array_start,
)
from sensorium.storage.database import EPOCH_2000_MS

try:
    from sensorium.storage._rows import pack_readings
except ImportError:
    from sensorium.storage._rows_py import pack_readings

READING_COLUMNS: Final = (
    *("shard", "log_offset", "device", "time", "key", "flags", "metric_set", "numbers", "texts"),
)

_TEXT_OID: Final = 25
_NULL: Final = b"\xff\xff\xff\xff"

_reading_fixed: Final = Struct(">" + READING_FIXED).pack
_int32: Final = Struct(">i").pack
_float_item: Final = Struct(">id").pack


def encode_readings(rows: Sequence[ReadingRow]) -> bytes:
    """The rows as input to `COPY readings (READING_COLUMNS) FROM STDIN (FORMAT binary)`.

    Raises:
        InvalidMessage: a value does not fit its kind or column, such as a text with a NUL.
    """
    return pack_readings(rows, _reading)


def _reading(row: ReadingRow) -> bytes:
    shard, offset, device, time_ms, key, flags, metrics, values = row
    if len(values) != len(metrics.names):
        raise InvalidMessage(f"{len(values)} values for the {len(metrics.names)} metrics of {metrics!r}")
    numbers: list[float | None] = []
    texts: list[str | None] = []
    for kind, value in zip(metrics.kinds, values, strict=True):
        if kind == TEXT:
            if value is not None and not isinstance(value, str):
                raise InvalidMessage(f"{value!r} is no text")
            texts.append(value)
        else:
            if isinstance(value, str):
                raise InvalidMessage(f"{value!r} is no number")
            numbers.append(None if value is None else float(value))
    try:
        fixed = _reading_fixed(
            *(READING_START, shard, 8, offset, 8, device, 8, (time_ms - EPOCH_2000_MS) * 1000),
            *(8, key, 2, flags, 8, metrics.id),
        )
    except struct_error as e:
        raise InvalidMessage(f"a reading's time, key or flags do not fit their column: {e}") from e
    number_items = [_NULL if number is None else _float_item(8, number) for number in numbers]
    text_items = [_NULL if text is None else text_item(text) for text in texts]
    return fixed + _array(number_items, FLOAT8_OID) + _array(text_items, _TEXT_OID)


def _array(items: list[bytes], oid: int) -> bytes:
    if not items:
        return _NULL
    body = b"".join((array_start(1, int(_NULL in items), oid, len(items), 1), *items))
    return _int32(len(body)) + body


def text_item(text: str) -> bytes:
    """A text as a field or an item of an array.

    Raises:
        InvalidMessage: it is no Unicode, or has a NUL.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as e:
        raise InvalidMessage(f"a text is not valid Unicode: {e.reason}") from e
    if b"\0" in data:
        raise InvalidMessage("a text contains a NUL character, which cannot be stored")
    return _int32(len(data)) + data


def decode_values(
    metrics: MetricSet, numbers: list[float | None] | None, texts: list[str | None] | None
) -> list[Value | None]:
    """A row's values by position in its metric set, from its two columns."""
    if metrics.only_numbers:
        return list[Value | None](numbers or ())
    next_number = iter(numbers or ())
    next_text = iter(texts or ())
    values: list[Value | None] = []
    for kind in metrics.kinds:
        if kind == TEXT:
            values.append(next(next_text))
        else:
            number = next(next_number)
            values.append(number != 0.0 if kind == BOOL and number is not None else number)
    return values
