"""Recordings: CSV files of one device's readings over time, read row by row."""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Final, NamedTuple, Self

from sensorium.cluster.errors import BadRecording, ConfigError

DELIMITERS: Final = (",", ";", "\t", "|")
_MILLISECONDS_FROM: Final = 1e11
"""A bare number at least this large is ms since 1970, a smaller one seconds (good until the year 5138)."""
_BOOLS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns to take.

    Attributes:
        time: the column of times.
        metrics: metric by column; None takes every other column under its own name.
        delimiter: between fields; None finds out from the header.
    """

    time: str = "timestamp"
    metrics: dict[str, str] | None = None
    delimiter: str | None = None


def columns(
    time: str, metrics: Sequence[str], value_column: str | None, all_columns: bool, delimiter: str | None
) -> Columns:
    """The columns that a command line asks for.

    One metric comes from `value_column`, or else from a column called `value`; several come from the columns
    of their names. `NAME=COLUMN` says it outright.

    Raises:
        ConfigError: what is asked for contradicts itself.
    """
    if all_columns:
        if metrics or value_column:
            raise ConfigError("--all-columns goes without --metric and --value-column")
        return Columns(time, None, delimiter)
    if not metrics:
        raise ConfigError("name the metric: --metric NAME, or --all-columns")
    if value_column and (len(metrics) > 1 or "=" in metrics[0]):
        raise ConfigError("--value-column goes with one --metric NAME; use --metric NAME=COLUMN for more")
    if len(metrics) == 1 and "=" not in metrics[0]:
        return Columns(time, {value_column or "value": metrics[0]}, delimiter)
    pairs = [metric.partition("=") for metric in metrics]
    return Columns(time, {column or name: name for name, _, column in pairs}, delimiter)


class Row(NamedTuple):
    """A reading of the recording: the line that it ends on, event time, values by metric."""

    line: int
    time_ms: int
    values: dict[str, float | bool]


class Recording:
    """An open recording; iterate once. Use as a context manager.

    Attributes:
        skipped: bad rows passed over so far.

    Raises:
        BadRecording: on entering, when the header lacks a column; while iterating, at a bad row, unless
            `skip_bad`.
    """

    def __init__(self, path: Path, wanted: Columns, skip_bad: bool = False) -> None:
        self.skipped = 0
        self._path = path
        self._wanted = wanted
        self._skip_bad = skip_bad

    def __enter__(self) -> Self:
        try:
            # What is no UTF-8 becomes U+FFFD and then a bad row, instead of ending the whole reading.
            self._bytes: IO[bytes] = self._path.open("rb")
            self._file: IO[str] = TextIOWrapper(
                self._bytes, encoding="utf-8-sig", errors="replace", newline=""
            )
        except OSError as error:
            raise BadRecording(f"{self._path}: {error.strerror}") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return os.fstat(self._bytes.fileno()).st_size

    @property
    def bytes_read(self) -> int:
        """How far into the file the reading is; it reads ahead by a buffer."""
        return self._bytes.tell()

    def __iter__(self) -> Iterator[Row]:
        while True:
            try:
                fields = next(self._rows, None)
                row = self._row(fields) if fields else None
            except (csv.Error, BadRecording) as error:
                if not self._skip_bad:
                    raise BadRecording(
                        f"{self._path}:{self._rows.line_num}: {error} (--skip-bad passes over such rows)"
                    ) from None
                self.skipped += 1
                continue
            if fields is None:
                return
            if row is not None:
                yield row

    def _open(self) -> None:
        header = self._file.readline()
        delimiter = self._wanted.delimiter or max(DELIMITERS, key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        metrics = self._wanted.metrics
        if metrics is None:
            metrics = {name: name for name in names if name and name != self._wanted.time}
        for name in (self._wanted.time, *metrics):
            if name not in names:
                raise BadRecording(
                    f"{self._path}:1: no column {name!r}; there are {', '.join(map(repr, names)) or 'none'}"
                )
        self._time = names.index(self._wanted.time)
        self._metrics = [(metric, names.index(column)) for column, metric in metrics.items()]
        self._width = len(names)
        self._rows = _Lines(self._file, delimiter)

    def _row(self, fields: list[str]) -> Row:
        if len(fields) != self._width:
            raise BadRecording(f"{len(fields)} fields where the header has {self._width}")
        values = {
            metric: _value(fields[position], metric)
            for metric, position in self._metrics
            if fields[position].strip()
        }
        if not values:
            raise BadRecording("no value")
        return Row(self._rows.line_num, time_ms(fields[self._time]), values)


class _Lines(Iterator[list[str]]):
    """A CSV reader that counts the file's lines, header included."""

    def __init__(self, file: IO[str], delimiter: str) -> None:
        self._reader = csv.reader(file, delimiter=delimiter, strict=True)

    @property
    def line_num(self) -> int:
        return self._reader.line_num + 1

    def __next__(self) -> list[str]:
        return next(self._reader)


def time_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time (UTC unless it says otherwise) or a number.

    Raises:
        BadRecording: it is neither.
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadRecording(f"{text!r} is no time: ISO 8601, or seconds or ms since 1970") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    if not math.isfinite(number):
        raise BadRecording(f"{text!r} is no time")
    return round(number if abs(number) >= _MILLISECONDS_FROM else number * 1000)


def _value(text: str, metric: str) -> float | bool:
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        if text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        raise BadRecording(f"{metric}: {text!r} is neither a number nor true or false") from None
    if not math.isfinite(number):
        raise BadRecording(f"{metric}: {text!r} is not a finite number")
    return number
