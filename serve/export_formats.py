"""How exported readings are written: lines of JSON, CSV, or Parquet. Each takes pages and gives bytes."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from typing import Any, Final, Protocol

import msgspec

from sensorium.actors.messages import Quality, ReadingFlag, Value, quality_of
from sensorium.actors.metrics import BOOL, NUMBER, TEXT
from sensorium.serve.problems import invalid_parameter

FIXED: Final = ("device_id", "time", "late", "quality")
"""The columns before those of the metrics."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ExportFormat(StrEnum):
    """NDJSON needs to know no metrics before; Parquet keeps their types."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


MEDIA_TYPES: Final = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


class Reading(Protocol):
    """A reading as `storage.History` gives it."""

    @property
    def time_ms(self) -> int: ...
    @property
    def values(self) -> Mapping[str, Value]: ...
    @property
    def flags(self) -> int: ...


class Writer(Protocol):
    """Turns readings into a file, piece by piece. Call `end` once, at last."""

    def page(self, device_id: str, readings: Sequence[Reading]) -> bytes: ...
    def end(self) -> bytes: ...


class _Line(msgspec.Struct, frozen=True):
    device_id: str
    time_ms: int
    values: Mapping[str, Value]
    late: bool
    quality: Quality


class NdjsonWriter:
    """A line each: `{"device_id", "time_ms", "values", "late", "quality"}`."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def page(self, device_id: str, readings: Sequence[Reading]) -> bytes:
        """Their lines."""
        lines = (self._encode(_line(device_id, r)) for r in readings)
        return b"".join(piece for line in lines for piece in (line, b"\n"))

    def end(self) -> bytes:
        """Nothing."""
        return b""


class CsvWriter:
    """A header, then a row each (RFC 4180). Times are ISO 8601 in UTC; what a reading lacks is empty."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._names = list(columns)
        self._buffer = io.StringIO(newline="")
        self._csv = csv.writer(self._buffer)
        self._csv.writerow([*FIXED, *self._names])

    def page(self, device_id: str, readings: Sequence[Reading]) -> bytes:
        """Their rows; before the first also the header."""
        self._csv.writerows(
            [
                *(device_id, _iso(r.time_ms), _plain(_late(r)), quality_of(r.flags)),
                *(_plain(r.values.get(n)) for n in self._names),
            ]
            for r in readings
        )
        return self._taken()

    def end(self) -> bytes:
        """The header, if no page was asked for."""
        return self._taken()

    def _taken(self) -> bytes:
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text.encode()


class _Sink:
    """A file that gives away what is written to it, and remembers only how much that was."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._written = 0

    def write(self, data: Any) -> int:
        """Keep the piece until it is taken."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._written += len(piece)
        return len(piece)

    def tell(self) -> int:
        """Bytes written since the beginning."""
        return self._written

    def flush(self) -> None:
        """There is nothing to do."""

    def close(self) -> None:
        """There is nothing to do; what was written can still be taken."""

    def taken(self) -> bytes:
        """What was written since it was asked last."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class ParquetWriter:
    """A row group a page, compressed with Zstandard; a file without its end is none.

    A metric that is a number for one device and text for another is text.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        types = {NUMBER: pyarrow.float64(), BOOL: pyarrow.bool_(), TEXT: pyarrow.string()}
        self._convert = {name: _CONVERT[kind] for name, kind in columns.items()}
        self._schema = pyarrow.schema(
            [
                ("device_id", pyarrow.string()),
                ("time", pyarrow.timestamp("ms", "UTC")),
                ("late", pyarrow.bool_()),
                ("quality", pyarrow.string()),
                *((name, types[kind]) for name, kind in columns.items()),
            ]
        )
        self._sink = _Sink()
        self._file: Any = pyarrow.parquet.ParquetWriter(
            pyarrow.PythonFile(self._sink, "w"), self._schema, compression="zstd"
        )

    def page(self, device_id: str, readings: Sequence[Reading]) -> bytes:
        """The row group, if there is anything to write."""
        if not readings:
            return b""
        arrays = [
            [device_id] * len(readings),
            [r.time_ms for r in readings],
            [_late(r) for r in readings],
            [quality_of(r.flags).value for r in readings],
            *([c(r.values.get(name)) for r in readings] for name, c in self._convert.items()),
        ]
        columns = [
            self._arrow.array(values, field.type) for values, field in zip(arrays, self._schema, strict=True)
        ]
        self._file.write_batch(self._arrow.record_batch(columns, schema=self._schema))
        return self._sink.taken()

    def end(self) -> bytes:
        """The footer, which says where everything is."""
        self._file.close()
        return self._sink.taken()


def writer(how: ExportFormat, columns: Mapping[str, str]) -> Writer:
    """A writer of files with these metrics, each with its kind; NDJSON needs none.

    Raises:
        Problem: Parquet needs a package that is not installed.
    """
    if how is ExportFormat.NDJSON:
        return NdjsonWriter()
    if how is ExportFormat.CSV:
        return CsvWriter(columns)
    if find_spec("pyarrow") is None:
        raise invalid_parameter("format", "parquet needs the package pyarrow where the API runs")
    return ParquetWriter(columns)


def _line(device_id: str, reading: Reading) -> _Line:
    return _Line(device_id, reading.time_ms, reading.values, _late(reading), quality_of(reading.flags))


def _late(reading: Reading) -> bool:
    return bool(reading.flags & ReadingFlag.LATE)


def _iso(time_ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}Z"


def _plain(value: Value | None) -> object:
    # As JSON has it; csv would write True.
    return ("true" if value else "false") if isinstance(value, bool) else value


def _number(value: Value | None) -> object:
    return value


def _text(value: Value | None) -> object:
    return value if value is None or isinstance(value, str) else str(_plain(value))


_CONVERT: Final[dict[str, Callable[[Value | None], object]]] = {NUMBER: _number, BOOL: _number, TEXT: _text}
