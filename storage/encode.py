"""Rows of the log as PostgreSQL's binary COPY format, and values back from columns. No connection, no clock.

Source of the format: the PostgreSQL manual, COPY, "Binary Format"; arrays as `array_recv` reads them.
"""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import Final

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, TEXT, MetricSet
from sensorium.actors.records import EventRow, ReadingRow
from sensorium.storage.database import EPOCH_2000_MS

READING_COLUMNS: Final = (
    *("shard", "log_offset", "device", "time", "key", "flags", "metric_set", "numbers", "texts"),
)
EVENT_COLUMNS: Final = ("shard", "log_offset", "device", "time", "kind", "body")

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_FLOAT8_OID: Final = 701
_TEXT_OID: Final = 25
_NULL: Final = b"\xff\xff\xff\xff"

# Each field is its length in bytes, then its value. The leading 6 bytes are the number of columns and the
# first length; the constants below are named by what they measure.
_FIXED: Final = "6shiqiqiqiqihiq"
_READING_START: Final = Struct(">hi").pack(len(READING_COLUMNS), 2)
_EVENT_START: Final = Struct(">hi").pack(len(EVENT_COLUMNS), 2)
_reading_fixed: Final = Struct(">" + _FIXED).pack
_event_fixed: Final = Struct(">6shiqiqiq").pack
_int32: Final = Struct(">i").pack
_array_start: Final = Struct(">iiiii").pack
_float_item: Final = Struct(">id").pack


class _Template:
    """Packs the rows of one number count in one call, and can while no value is absent."""

    def __init__(self, count: int) -> None:
        array = f"i{'20s'}{'id' * count}i"
        self.pack = Struct(f">{_FIXED}{array}").pack
        self.array_bytes = 20 + 12 * count
        self.array_start = _array_start(1, 0, _FLOAT8_OID, count, 1)
        self.slots: list[float] = [8] * (2 * count)
        """Lengths and values in turn. Reused from row to row: encoding never yields in between."""


@lru_cache(maxsize=1024)
def _template(count: int) -> _Template:
    return _Template(count)


def encode_readings(rows: Sequence[ReadingRow]) -> bytes:
    """The rows as input to `COPY readings (READING_COLUMNS) FROM STDIN (FORMAT binary)`.

    Raises:
        InvalidMessage: a value does not fit its kind or column, such as a text with a NUL.
    """
    out = [_HEADER]
    append = out.append
    for row in rows:
        shard, offset, device, time_ms, key, flags, metrics, values = row
        if metrics.only_numbers and values:
            template = _template(len(metrics.names))
            slots = template.slots
            try:
                slots[1::2] = values  # type: ignore[assignment]  # an absent or wrong one fails in pack
                time_us = (time_ms - EPOCH_2000_MS) * 1000
                # fmt: off
                append(
                    template.pack(
                        _READING_START, shard, 8, offset, 8, device, 8, time_us, 8, key, 2, flags,
                        8, metrics.id, template.array_bytes, template.array_start, *slots, -1,
                    )
                )
                # fmt: on
                continue
            except (struct_error, ValueError):
                pass
        append(_reading(row))
    append(_TRAILER)
    return b"".join(out)


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
            *(_READING_START, shard, 8, offset, 8, device, 8, (time_ms - EPOCH_2000_MS) * 1000),
            *(8, key, 2, flags, 8, metrics.id),
        )
    except struct_error as e:
        raise InvalidMessage(f"a reading's time, key or flags do not fit their column: {e}") from e
    number_items = [_NULL if number is None else _float_item(8, number) for number in numbers]
    text_items = [_NULL if text is None else _text(text) for text in texts]
    return fixed + _array(number_items, _FLOAT8_OID) + _array(text_items, _TEXT_OID)


def _array(items: list[bytes], oid: int) -> bytes:
    if not items:
        return _NULL
    body = b"".join((_array_start(1, int(_NULL in items), oid, len(items), 1), *items))
    return _int32(len(body)) + body


def _text(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as e:
        raise InvalidMessage(f"a text is not valid Unicode: {e.reason}") from e
    if b"\0" in data:
        raise InvalidMessage("a text contains a NUL character, which cannot be stored")
    return _int32(len(data)) + data


def encode_events(rows: Sequence[EventRow]) -> bytes:
    """The rows as input to `COPY events (EVENT_COLUMNS) FROM STDIN (FORMAT binary)`.

    Raises:
        InvalidMessage: as `encode_readings`.
    """
    out = [_HEADER]
    for shard, offset, device, time_ms, kind, body in rows:
        try:
            out.append(
                _event_fixed(
                    *(_EVENT_START, shard, 8, offset, 8, device, 8, (time_ms - EPOCH_2000_MS) * 1000),
                )
            )
        except struct_error as e:
            raise InvalidMessage(f"an event's time does not fit its column: {e}") from e
        # The binary form of jsonb is a version, 1, and the text.
        out += (_text(kind), _int32(len(body) + 1), b"\1", body)
    out.append(_TRAILER)
    return b"".join(out)


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
