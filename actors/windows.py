"""Rolling windows of constant size: time panes that merge, whatever the rate of readings.

A window of length L and slide S is L/S panes; pane p holds the readings with event time in [p·S, (p+1)·S).
The window ends with the newest pane that has been reached, and a late reading still lands in its pane.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sensorium.actors.messages import Value
from sensorium.actors.profile import WindowSpec

# A pane's cells. Sum and sum of squares are of (value - shift), where the shift is the metric's first value:
# otherwise squares of large values with little spread cancel out (Chan, Golub, LeVeque 1983, "shifted data").
COUNT: Final = 0
SUM: Final = 1
SQUARES: Final = 2
MIN: Final = 3
MAX: Final = 4
FIRST: Final = 5
LAST: Final = 6
FIRST_MS: Final = 7
LAST_MS: Final = 8
CELLS: Final = 9

# Behind the panes: the shift, and count, sum, squares over all panes but the newest, with the pane number
# that was the newest when they were added up (they are added up when asked for, once a pane).
_TAIL: Final = 5
_EMPTY_PANE: Final = array("d", bytes(8 * CELLS))
_NO_PANE: Final = -1.0


@dataclass(frozen=True, slots=True)
class Moments:
    """Count (at least 1), mean and population standard deviation of a window."""

    count: int
    mean: float
    stddev: float


@dataclass(frozen=True, slots=True)
class Aggregate(Moments):
    """All that a window knows of one metric."""

    sum: float
    min: float
    max: float
    first: float
    last: float


class Window:
    """One rolling window over all number metrics of a device, by their position in its metric set."""

    __slots__ = ("_metrics", "_panes", "_slide_ms", "newest", "spec")

    def __init__(self, spec: WindowSpec) -> None:
        self.spec = spec
        self.newest: int | None = None
        self._panes = spec.panes
        self._slide_ms = spec.slide_ms
        self._metrics: list[array[float] | None] = []

    def observe(self, values: Sequence[Value | None], time_ms: int) -> None:
        """Take in a reading: one value by position, of which only floats count.

        A reading that is older than the window changes nothing.
        """
        pane = time_ms // self._slide_ms
        panes = self._panes
        newest = self.newest
        if newest is None or pane > newest:
            self._move_to(pane)
        elif pane <= newest - panes:
            return
        closed = newest is not None and pane < newest
        metrics = self._metrics
        if len(metrics) < len(values):
            metrics.extend([None] * (len(values) - len(metrics)))
        base = pane % panes * CELLS
        sum_ = base + SUM
        squares = base + SQUARES
        least = base + MIN
        most = base + MAX
        last = base + LAST
        last_ms = base + LAST_MS
        for position, value in enumerate(values):
            if type(value) is float:
                cells = metrics[position]
                if cells is None:
                    cells = metrics[position] = self._new_cells(value)
                off = value - cells[-1]
                count = cells[base]
                if count:
                    cells[base] = count + 1.0
                    cells[sum_] += off
                    cells[squares] += off * off
                    if value < cells[least]:
                        cells[least] = value
                    elif value > cells[most]:
                        cells[most] = value
                    if time_ms >= cells[last_ms]:
                        cells[last] = value
                        cells[last_ms] = time_ms
                    elif time_ms < cells[base + FIRST_MS]:
                        cells[base + FIRST] = value
                        cells[base + FIRST_MS] = time_ms
                else:
                    cells[base : base + CELLS] = array(
                        "d", (1.0, off, off * off, value, value, value, value, time_ms, time_ms)
                    )
                if closed:
                    cells[-2] = _NO_PANE

    def advance(self, time_ms: int) -> None:
        """Move the window's end to the pane of `time_ms`, if it lies behind it."""
        pane = time_ms // self._slide_ms
        if self.newest is not None and pane > self.newest:
            self._move_to(pane)

    def moments(self, position: int) -> Moments | None:
        """Count, mean and deviation of a metric in constant time; None without a reading in the window."""
        cells = self._cells(position)
        if cells is None or self.newest is None:
            return None
        if cells[-2] != self.newest:
            self._add_up_closed(cells)
        base = self.newest % self._panes * CELLS
        count = cells[base] + cells[-5]
        if not count:
            return None
        mean_off = (cells[base + SUM] + cells[-4]) / count
        variance = (cells[base + SQUARES] + cells[-3]) / count - mean_off * mean_off
        return Moments(int(count), cells[-1] + mean_off, math.sqrt(variance) if variance > 0.0 else 0.0)

    def aggregate(self, position: int) -> Aggregate | None:
        """All aggregates of a metric, merged over the panes; None without a reading in the window."""
        moments = self.moments(position)
        cells = self._cells(position)
        if moments is None or cells is None:
            return None
        filled = [b for b in range(0, self._panes * CELLS, CELLS) if cells[b]]
        first = min(filled, key=lambda b: cells[b + FIRST_MS])
        last = max(filled, key=lambda b: cells[b + LAST_MS])
        return Aggregate(
            count=moments.count,
            mean=moments.mean,
            stddev=moments.stddev,
            sum=moments.mean * moments.count,
            min=min(cells[b + MIN] for b in filled),
            max=max(cells[b + MAX] for b in filled),
            first=cells[first + FIRST],
            last=cells[last + LAST],
        )

    def bounds_ms(self) -> tuple[int, int] | None:
        """Start (included) and end (excluded) of the window in event time; None before the first reading."""
        if self.newest is None:
            return None
        end = (self.newest + 1) * self._slide_ms
        return end - self._panes * self._slide_ms, end

    def dump(self) -> list[bytes | None]:
        """The cells by position, to be given to `restore` with the value of `newest`."""
        return [None if cells is None else cells.tobytes() for cells in self._metrics]

    @classmethod
    def restore(cls, spec: WindowSpec, newest: int | None, dump: Sequence[bytes | None]) -> "Window":
        """The window as it was when `dump` was taken from one of the same spec."""
        window = cls(spec)
        window.newest = newest
        window._metrics = [None if cells is None else array("d", cells) for cells in dump]
        return window

    def _cells(self, position: int) -> "array[float] | None":
        return self._metrics[position] if position < len(self._metrics) else None

    def _new_cells(self, first_value: float) -> "array[float]":
        cells = array("d", bytes(8 * (self._panes * CELLS + _TAIL)))
        cells[-1] = first_value
        cells[-2] = _NO_PANE
        return cells

    def _move_to(self, pane: int) -> None:
        newest = self.newest
        self.newest = pane
        if newest is None:
            return
        for stale in range(max(newest, pane - self._panes) + 1, pane + 1):
            base = stale % self._panes * CELLS
            for cells in self._metrics:
                if cells is not None and cells[base]:
                    cells[base : base + CELLS] = _EMPTY_PANE

    def _add_up_closed(self, cells: "array[float]") -> None:
        newest = self.newest
        assert newest is not None
        skip = newest % self._panes * CELLS
        bases = [b for b in range(0, self._panes * CELLS, CELLS) if b != skip]
        cells[-5] = sum(cells[b] for b in bases)
        cells[-4] = math.fsum(cells[b + SUM] for b in bases)
        cells[-3] = math.fsum(cells[b + SQUARES] for b in bases)
        cells[-2] = newest
