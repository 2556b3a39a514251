"""Rows of readings out of PostgreSQL's binary COPY format, as it streams. No connection, no clock.

Source of the format: the PostgreSQL manual, COPY, "Binary Format"; arrays as `array_send` writes them.
"""

from functools import lru_cache
from struct import Struct
from typing import Final

from sensorium.storage.database import EPOCH_2000_MS

COLUMNS: Final = "log_offset, time, key, flags, metric_set, numbers, texts"
"""What a `COPY (SELECT …) TO STDOUT (FORMAT binary)` must select to be read by `CopiedReadings`."""

_SIGNATURE_BYTES: Final = 11
_HEADER_BYTES: Final = _SIGNATURE_BYTES + 8
_TRAILER: Final = -1
_FIELDS: Final = 7
_fields_of: Final = Struct(">h").unpack_from
_int32_of: Final = Struct(">i").unpack_from
# Field count, then length and value of each fixed column, then the length of `numbers`.
_FIXED: Final = Struct(">hiqiqiqihiqi")


CopiedReading = tuple[int, int, int, int, int, list[float | None] | None, list[str | None] | None]
"""A row as it stands in the database: the columns in their order, the time in milliseconds since 1970.

A plain tuple, because millions of them live for a moment only.
"""


@lru_cache(maxsize=1024)
def _numbers_row(count: int) -> Struct:
    """The whole row that has so many numbers, none of them null, and no texts."""
    return Struct(f">hiqiqiqihiqi5i{'id' * count}i")


class CopiedReadings:
    """Takes the stream's bytes in any parts and gives the rows that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def feed(self, data: bytes) -> list[CopiedReading]:
        """The rows that this part completes.

        Raises:
            ValueError: these are no such rows.
        """
        data = self._rest + data if self._rest else data
        at = 0
        if not self._begun:
            if len(data) < _HEADER_BYTES:
                self._rest = data
                return []
            if data[:_SIGNATURE_BYTES] != b"PGCOPY\n\xff\r\n\0":
                raise ValueError("not a binary COPY stream")
            at = _HEADER_BYTES + _int32_of(data, _SIGNATURE_BYTES + 4)[0]
            self._begun = True
        rows: list[CopiedReading] = []
        at = self._rows(data, at, rows)
        self._rest = data[at:]
        return rows

    def _rows(self, data: bytes, at: int, rows: list[CopiedReading]) -> int:
        """Append the complete rows from `at` on; returns where the first incomplete one begins."""
        end = len(data)
        bytes_of = size = 0
        plain: Struct | None = None
        while at + 2 <= end:
            if plain is not None and at + size <= end:
                # Rows of one device are mostly alike: no text, no null, as many numbers as the one before.
                fields = plain.unpack_from(data, at)
                if fields[11] == bytes_of and not fields[13] and fields[-1] == -1:
                    time_ms = fields[4] // 1000 + EPOCH_2000_MS
                    numbers = list(fields[18:-1:2])
                    rows.append((fields[2], time_ms, fields[6], fields[8], fields[10], numbers, None))
                    at += size
                    continue
            (count,) = _fields_of(data, at)
            if count == _TRAILER:
                return at + 2
            if count != _FIELDS:
                raise ValueError(f"a row of {count} columns")
            length = _row_bytes(data, at, end)
            if length is None:
                return at
            rows.append(_row(data, at))
            *_, found, texts = rows[-1]
            if found and texts is None and None not in found:
                plain, bytes_of = _numbers_row(len(found)), 20 + 12 * len(found)
                size = plain.size
            at += length
        return at


def _row_bytes(data: bytes, start: int, end: int) -> int | None:
    """The length of the row that starts there; None while it is incomplete."""
    at = start + 2
    for _ in range(_FIELDS):
        if at + 4 > end:
            return None
        at += 4 + max(_int32_of(data, at)[0], 0)
    return at - start if at <= end else None


def _row(data: bytes, at: int) -> CopiedReading:
    fields = _FIXED.unpack_from(data, at)
    at += _FIXED.size
    numbers_bytes = fields[11]
    numbers = _array(data, at, numbers_bytes)
    at += max(numbers_bytes, 0)
    texts = _array(data, at + 4, _int32_of(data, at)[0])
    return (
        fields[2],
        fields[4] // 1000 + EPOCH_2000_MS,
        fields[6],
        fields[8],
        fields[10],
        None if numbers is None else [None if n is None else _float(n) for n in numbers],
        None if texts is None else [None if t is None else t.decode() for t in texts],
    )


def _float(data: bytes) -> float:
    value: float = Struct(">d").unpack(data)[0]
    return value


def _array(data: bytes, at: int, length: int) -> list[bytes | None] | None:
    """The items of an array of one dimension, as bytes; None for null."""
    if length < 0:
        return None
    dimensions, _, _ = Struct(">iii").unpack_from(data, at)
    if not dimensions:
        return []
    (count,) = _int32_of(data, at + 12)
    items: list[bytes | None] = []
    at += 20
    for _ in range(count):
        (size,) = _int32_of(data, at)
        at += 4
        items.append(None if size < 0 else data[at : at + size])
        at += max(size, 0)
    return items
