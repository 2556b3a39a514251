"""Readings as rows of PostgreSQL's binary COPY format, in Python; `_rows.c` does the same faster.

Source of the format: the PostgreSQL manual, COPY, "Binary Format"; arrays as `array_recv` reads them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import Final

from sensorium.actors.records import ReadingRow
from sensorium.storage.database import EPOCH_2000_MS

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
FLOAT8_OID: Final = 701
READING_COLUMN_COUNT: Final = 9

# Each field is its length in bytes, then its value. The leading 6 bytes are the number of columns and the
# first length; the constants below are named by what they measure.
READING_FIXED: Final = "6shiqiqiqiqihiq"
READING_START: Final = Struct(">hi").pack(READING_COLUMN_COUNT, 2)
array_start: Final = Struct(">iiiii").pack


class _Template:
    """Packs the rows of one number count in one call, and can while no value is absent."""

    def __init__(self, count: int) -> None:
        array = f"i{'20s'}{'id' * count}i"
        self.pack = Struct(f">{READING_FIXED}{array}").pack
        self.array_bytes = 20 + 12 * count
        self.array_start = array_start(1, 0, FLOAT8_OID, count, 1)
        self.slots: list[float] = [8] * (2 * count)
        """Lengths and values in turn. Reused from row to row: encoding never yields in between."""


@lru_cache(maxsize=1024)
def _template(count: int) -> _Template:
    return _Template(count)


def pack_readings(rows: Sequence[ReadingRow], general: Callable[[ReadingRow], bytes]) -> bytes:
    """The rows with header and trailer. A row of anything but present numbers is what `general` makes of it.

    Raises what `general` raises.
    """
    out = [HEADER]
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
                        READING_START, shard, 8, offset, 8, device, 8, time_us, 8, key, 2, flags,
                        8, metrics.id, template.array_bytes, template.array_start, *slots, -1,
                    )
                )
                # fmt: on
                continue
            except (struct_error, ValueError):
                pass
        append(general(row))
    append(TRAILER)
    return b"".join(out)
