"""Rollups as rows of PostgreSQL's binary COPY format. No connection; readings are packed in `encode`.

Source of the format: the PostgreSQL manual, COPY, "Binary Format".
"""

from collections.abc import Iterable
from struct import Struct
from typing import Final

from sensorium.storage._fold_py import Folded
from sensorium.storage._rows_py import HEADER, TRAILER
from sensorium.storage.database import EPOCH_2000_MS
from sensorium.storage.encode import text_item

FOLDED: Final = (
    *("bucket", "first_at", "last_at", "total", "squares", "least", "most", "first", "last", "n", "sketch"),
    *("first_text", "last_text"),
)
COLUMNS: Final = ("device", "metric", "class", *FOLDED)

# Each field is its length in bytes, then its value; -1 is the length of NULL.
_START: Final = "hiqiiihiqiqiq"
_of_numbers: Final = Struct(f">{_START}{'id' * 6}iii").pack
_of_texts: Final = Struct(f">{_START}{'i' * 6}iii").pack
_NULLS: Final = b"\xff" * 8


def encode_rollups(rows: Iterable[tuple[int, int, Folded]], retention_class: int) -> bytes:
    """Rows of device, metric and figures as input to `COPY … (COLUMNS) FROM STDIN (FORMAT binary)`."""
    out = [HEADER]
    for device, metric, folded in rows:
        bucket_ms, first_ms, last_ms, total, squares, least, most, first, last, n, sketch, *texts = folded
        # fmt: off
        start = (
            16, 8, device, 4, metric, 2, retention_class, 8, (bucket_ms - EPOCH_2000_MS) * 1000,
            8, (first_ms - EPOCH_2000_MS) * 1000, 8, (last_ms - EPOCH_2000_MS) * 1000,
        )
        if total is None:
            out.append(_of_texts(*start, -1, -1, -1, -1, -1, -1, 4, n, -1))
            out += map(text_item, texts)
        else:
            out.append(_of_numbers(
                *start, 8, total, 8, squares, 8, least, 8, most, 8, first, 8, last, 4, n, len(sketch)
            ))
            out += (sketch, _NULLS)
        # fmt: on
    out.append(TRAILER)
    return b"".join(out)
