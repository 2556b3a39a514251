"""Reading SKAB's recordings: a CSV each, `;` between fields, a label at each row."""

import csv
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

_NO_METRICS: Final = {"datetime", "anomaly", "changepoint"}


class RecordingError(Exception):
    """There is nothing here to judge by, or a file is no recording; says what."""


class Recording(NamedTuple):
    """One experiment. `labels` is None where nothing is labelled, as in the file without anomalies."""

    group: str
    name: str
    metrics: tuple[str, ...]
    rows: npt.NDArray[np.float64]
    labels: npt.NDArray[np.bool_] | None


def load_recordings(folder: Path) -> list[Recording]:
    """All CSV files in the folders of `folder`, in order of group and number. Raises `RecordingError`."""
    files = sorted(folder.glob("*/*.csv"), key=lambda f: (f.parent.name, len(f.stem), f.stem))
    if not files:
        raise RecordingError(f"no recordings in {folder}: it should have folders with .csv files in them")
    return [_read(file) for file in files]


def _read(file: Path) -> Recording:
    try:
        with file.open(newline="") as lines:
            header, *rows = csv.reader(lines, delimiter=";")
        metrics = tuple(name for name in header if name not in _NO_METRICS)
        places = [header.index(name) for name in metrics]
        values = np.array([[float(row[i]) for i in places] for row in rows])
        labels = None
        if "anomaly" in header:
            place = header.index("anomaly")
            labels = np.array([float(row[place]) > 0 for row in rows])
    except (ValueError, IndexError, OSError) as error:
        raise RecordingError(f"{file}: {error}") from error
    return Recording(file.parent.name, file.stem, metrics, values, labels)
