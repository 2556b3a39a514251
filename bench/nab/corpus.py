"""A folder of the Numenta Anomaly Benchmark as series with labelled windows; not how they are judged.

The layout: `windows.json` maps `CATEGORY/FILE.csv` to a list of [first time, last time], and each of those
files lies beside it with the columns `timestamp` (UTC) and `value`.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

LABELS: Final = "windows.json"


class CorpusError(Exception):
    """The folder does not hold what the benchmark reads; the message names the place."""


@dataclass(frozen=True, slots=True)
class Series:
    """Readings in the order of their rows, and the windows as (first row, last row), both included."""

    name: str
    category: str
    readings: Sequence[tuple[int, float]]
    """(epoch milliseconds, value)"""
    windows: Sequence[tuple[int, int]]


def load_corpus(folder: Path) -> list[Series]:
    """All series that the labels name, sorted by name. Raises CorpusError."""
    labels = folder / LABELS
    try:
        named = json.loads(labels.read_text())
    except FileNotFoundError:
        raise CorpusError(
            f"no {labels}; name a folder of the Numenta Anomaly Benchmark with --data, its"
            f" combined_windows.json as {LABELS}"
        ) from None
    except json.JSONDecodeError as error:
        raise CorpusError(f"{labels} is not JSON: {error}") from None
    if not isinstance(named, dict) or not named:
        raise CorpusError(f"{labels} has to map the files' names to their windows")
    return [_load_series(folder, name, windows) for name, windows in sorted(named.items())]


def _load_series(folder: Path, name: str, labelled: Sequence[Sequence[str]]) -> Series:
    path = folder / name
    readings = []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                value = float(row["value"])
                if not math.isfinite(value):
                    raise ValueError(f"{row['value']!r} is not a finite number")
                readings.append((_epoch_ms(row["timestamp"]), value))
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}") from None
    except KeyError as error:
        raise CorpusError(f"{path}: no column {error}") from None
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{path}, reading {len(readings) + 1}: {error}") from None
    try:
        windows = [_rows_within(readings, first, last) for first, last in labelled]
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{folder / LABELS}, windows of {name}: {error}") from None
    return Series(Path(name).stem, name.partition("/")[0], readings, windows)


def _epoch_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def _rows_within(readings: Sequence[tuple[int, float]], first: str, last: str) -> tuple[int, int]:
    # By comparison and not by search: the times of some series step back.
    first_ms, last_ms = _epoch_ms(first), _epoch_ms(last)
    rows = [row for row, (time_ms, _) in enumerate(readings) if first_ms <= time_ms <= last_ms]
    if not rows:
        raise ValueError(f"no reading lies between {first} and {last}")
    return rows[0], rows[-1]
