"""What one device's past teaches: its readings as rows, its reference, its windows with labels. Pure."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sensorium.actors.messages import ReadingFlag
from sensorium.actors.metrics import NUMBER
from sensorium.actors.models.failure import STEPS_A_WINDOW
from sensorium.actors.models.features import Floats, sliding, window_features
from sensorium.actors.models.outliers import (
    MIN_READINGS,
    Reference,
    carried_forward,
    reference_of,
)
from sensorium.actors.records import TailReading

MAX_ROWS: Final = 200_000
"""Of a device: the newest ones count."""
MAX_WINDOWS: Final = 20_000
"""Of a device: of the windows without a failure every second, third, … is taken beyond it."""
LARGEST: Final = 1e100
"""Values beyond it are taken as missing: their squares would not fit."""


class Rows:
    """A device's numbers, gathered page by page: a `past.Take`."""

    def __init__(self, metrics: Sequence[str] | None) -> None:
        self._wanted = metrics
        self._columns: dict[str, int] = {m: i for i, m in enumerate(metrics or ())}
        self._rows: deque[tuple[int, dict[int, float]]] = deque(maxlen=MAX_ROWS)

    def take(self, page: Sequence[TailReading]) -> None:
        """Add a page. What came late, is no number or is beyond `LARGEST` does not count."""
        for row in page:
            if row.flags & ReadingFlag.LATE:
                continue
            found: dict[int, float] = {}
            names, kinds = row.metric_set.names, row.metric_set.kinds
            for name, kind, value in zip(names, kinds, row.values, strict=True):
                if kind != NUMBER or value is None:
                    continue
                column = self._columns.get(name)
                if column is None:
                    if self._wanted is not None:
                        continue
                    column = self._columns[name] = len(self._columns)
                number = float(value)
                if -LARGEST < number < LARGEST:
                    found[column] = number
            if found:
                self._rows.append((row.time_ms, found))

    @property
    def metrics(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)

    def arrays(self) -> tuple[npt.NDArray[np.int64], Floats]:
        """Times and rows in order of time, NaN for what is missing."""
        ordered = sorted(self._rows, key=lambda row: row[0])
        values = np.full((len(ordered), len(self._columns)), np.nan)
        for i, (_, found) in enumerate(ordered):
            for column, number in found.items():
                values[i, column] = number
        return np.array([time_ms for time_ms, _ in ordered], dtype=np.int64), values


class DeviceReference(NamedTuple):
    """A device's reference over `metrics`; None when nothing can be learnt from it, with the reason."""

    device_id: str
    metrics: tuple[str, ...]
    reference: Reference | None
    rows: int
    reason: str = ""


def reference(device_id: str, rows: Rows) -> DeviceReference:
    """Learn what a sound device is like; metrics with too few readings are left out."""
    _, values = rows.arrays()
    enough = np.isfinite(values).sum(axis=0) >= MIN_READINGS
    metrics = tuple(m for m, there in zip(rows.metrics, enough, strict=True) if there)
    if not metrics:
        reason = f"{len(values)} readings with these metrics are fewer than {MIN_READINGS}"
        return DeviceReference(device_id, (), None, len(values), reason)
    return DeviceReference(device_id, metrics, reference_of(values[:, enough]), len(values))


class Labelled(NamedTuple):
    """Windows of a device, whether each is before a failure, and whether it is among its last ones."""

    device_id: str
    features: Floats
    labels: npt.NDArray[np.bool_]
    later: npt.NDArray[np.bool_]
    reason: str = ""


def labelled(
    device_id: str,
    rows: Rows,
    failures: Sequence[tuple[int, int | None]],
    before_ms: int,
    window: int,
    later_share: float,
) -> Labelled:
    """A device's windows. Those within a failure, from its start to its end (None: it goes on), do not count.

    Args:
        failures: start and end of each, epoch milliseconds.
        before_ms: how long before a failure windows are the ones to be recognised.
    """
    times, values = rows.arrays()
    width = values.shape[1]
    empty = Labelled(device_id, np.empty((0, 0)), np.empty(0, bool), np.empty(0, bool))
    present = np.isfinite(values).sum(axis=0)
    if len(values) < window or width == 0 or not present.all():
        missing = [m for m, n in zip(rows.metrics, present, strict=True) if not n]
        reason = (
            f"no readings of {', '.join(missing)}"
            if missing and len(values) >= window
            else (f"{len(values)} readings with these metrics are fewer than a window of {window}")
        )
        return empty._replace(reason=reason)
    step = max(1, window // STEPS_A_WINDOW)
    windows = sliding(carried_forward(values), window, step)
    ends = times[window - 1 :: step][: len(windows)]
    starts = times[::step][: len(windows)]
    labels = np.zeros(len(windows), dtype=bool)
    during = np.zeros(len(windows), dtype=bool)
    for start_ms, end_ms in failures:
        labels |= (ends <= start_ms) & (ends > start_ms - before_ms)
        until_ms = times[-1] if end_ms is None else end_ms
        during |= (ends > start_ms) & (starts <= until_ms)
    kept = np.flatnonzero(~during)
    if len(kept) > MAX_WINDOWS:
        others = kept[~labels[kept]]
        thinned = others[:: -(-len(others) // MAX_WINDOWS)]
        kept = np.sort(np.concatenate([kept[labels[kept]][-MAX_WINDOWS:], thinned]))
    later = np.arange(len(kept)) >= len(kept) * (1 - later_share)
    return Labelled(device_id, window_features(windows[kept]), labels[kept], later)
