"""What a rolling window keeps of its numbers, in Python; `_panes.c` does the same faster.

Pane p of a window holds the readings with event time in [p·slide, (p+1)·slide).
"""

import math
from array import array
from collections.abc import Sequence
from operator import mul
from typing import Final

from sensorium.actors.messages import Value

# A pane's cells. Sum and squares are of (value - shift), where the shift is the pane's first value: squares
# of large values with little spread would cancel out otherwise, and a shift from outside of the window would
# not help once the values have drifted away from it (Chan, Golub, LeVeque 1983, "shifted data").
COUNT: Final = 0
SUM: Final = 1
SQUARES: Final = 2
MIN: Final = 3
MAX: Final = 4
FIRST: Final = 5
LAST: Final = 6
FIRST_MS: Final = 7
LAST_MS: Final = 8
SHIFT: Final = 9
CELLS: Final = 10

# Behind the panes: the sums over all panes but the newest, with a shift of their own, and the number of the
# newest pane when they were added up (they are added up when asked for, once a pane).
CLOSED_COUNT: Final = -5
CLOSED_SUM: Final = -4
CLOSED_SQUARES: Final = -3
CLOSED_SHIFT: Final = -2
CLOSED_BEFORE: Final = -1
_TAIL: Final = 5
_NEVER: Final = math.nan
_EMPTY_PANE: Final = array("d", bytes(8 * CELLS))


class Panes:
    """`panes` panes of `slide_ms` milliseconds each, over all number metrics of a device by position.

    `newest` is the number of the newest pane that was reached, None before the first.
    """

    __slots__ = ("_metrics", "_panes", "_slide_ms", "newest")

    def __init__(self, panes: int, slide_ms: int) -> None:
        if panes < 1 or slide_ms < 1:
            raise ValueError("a window has one pane or more, of one millisecond or more")
        self.newest: int | None = None
        self._panes = panes
        self._slide_ms = slide_ms
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
        shift = base + SHIFT
        at = float(time_ms)  # exact, and compared with the cells faster than an integer is
        for position, value in enumerate(values):
            if type(value) is float:
                cells = metrics[position]
                if cells is None:
                    cells = metrics[position] = self._new_cells()
                count = cells[base]
                if count:
                    off = value - cells[shift]
                    cells[base] = count + 1.0
                    cells[sum_] += off
                    cells[squares] += off * off
                    if value < cells[least]:
                        cells[least] = value
                    elif value > cells[most]:
                        cells[most] = value
                    if at >= cells[last_ms]:
                        cells[last] = value
                        cells[last_ms] = at
                    elif at < cells[base + FIRST_MS]:
                        cells[base + FIRST] = value
                        cells[base + FIRST_MS] = at
                else:
                    cells[base : base + CELLS] = array(
                        "d", (1.0, 0.0, 0.0, value, value, value, value, at, at, value)
                    )
                if closed:
                    cells[CLOSED_BEFORE] = _NEVER

    def advance(self, time_ms: int) -> None:
        """Move the window's end to the pane of `time_ms`, if it lies behind it."""
        pane = time_ms // self._slide_ms
        if self.newest is None or pane > self.newest:
            self._move_to(pane)

    def figures(self, position: int) -> tuple[int, float, float] | None:
        """Count, mean and deviation of a metric in constant time; None without a reading in the window."""
        newest = self.newest
        cells = self._cells(position)
        if cells is None or newest is None:
            return None
        if cells[CLOSED_BEFORE] != newest:
            self._add_up_closed(cells, newest)
        base = newest % self._panes * CELLS
        count = cells[base]
        total = count + cells[CLOSED_COUNT]
        if not total:
            return None
        sum_ = cells[base + SUM]
        squares = cells[base + SQUARES]
        shift = cells[base + SHIFT]
        if count < total:
            # (x - b) = (x - a) + (a - b) rebases the newest pane's sums on the shift of the closed ones.
            off = shift - cells[CLOSED_SHIFT]
            shift = cells[CLOSED_SHIFT]
            squares += cells[CLOSED_SQUARES] + (2.0 * sum_ + count * off) * off
            sum_ += cells[CLOSED_SUM] + count * off
        mean_off = sum_ / total
        variance = squares / total - mean_off * mean_off
        return int(total), shift + mean_off, math.sqrt(variance) if variance > 0.0 else 0.0

    def cells(self, position: int) -> Sequence[float] | None:
        """The cells of all panes of a metric, `CELLS` each; None where no number was."""
        cells = self._cells(position)
        return None if cells is None else cells[: self._panes * CELLS]

    def dump(self) -> list[bytes | None]:
        """The cells by position, to be given to `load` with the value of `newest`."""
        return [None if cells is None else cells.tobytes() for cells in self._metrics]

    def load(self, newest: int | None, dump: Sequence[bytes | None]) -> None:
        """Become what `dump` was taken from. Raises ValueError when that had other panes."""
        size_bytes = 8 * (self._panes * CELLS + _TAIL)
        if any(cells is not None and len(cells) != size_bytes for cells in dump):
            raise ValueError("the dump is of a window with other panes")
        self.newest = newest
        self._metrics = [None if cells is None else array("d", cells) for cells in dump]

    def _cells(self, position: int) -> "array[float] | None":
        return self._metrics[position] if 0 <= position < len(self._metrics) else None

    def _new_cells(self) -> "array[float]":
        cells = array("d", bytes(8 * (self._panes * CELLS + _TAIL)))
        cells[CLOSED_BEFORE] = _NEVER
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

    def _add_up_closed(self, cells: "array[float]", newest: int) -> None:
        end = self._panes * CELLS
        counts, sums, squares = cells[COUNT:end:CELLS], cells[SUM:end:CELLS], cells[SQUARES:end:CELLS]
        skip = newest % self._panes
        counts[skip] = sums[skip] = squares[skip] = 0.0
        # The shift of one pane that counts serves for all.
        shifts = cells[SHIFT:end:CELLS]
        shift = next((s for s, count in zip(shifts, counts, strict=True) if count), 0.0)
        offs = [s - shift for s in shifts]
        offs[skip] = 0.0
        moved = list(map(mul, counts, offs))
        cells[CLOSED_COUNT] = sum(counts)
        cells[CLOSED_SUM] = sum(sums) + sum(moved)
        cells[CLOSED_SQUARES] = sum(squares) + 2.0 * sum(map(mul, sums, offs)) + sum(map(mul, moved, offs))
        cells[CLOSED_SHIFT] = shift
        cells[CLOSED_BEFORE] = newest
