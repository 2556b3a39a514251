"""Rolling windows of constant size: time panes that merge, whatever the rate of readings.

A window of length L and slide S is L/S panes; pane p holds the readings with event time in [p·S, (p+1)·S).
The window ends with the newest pane that has been reached, and a late reading still lands in its pane.
"""

from collections.abc import Sequence

import msgspec

from sensorium.actors._panes_py import CELLS, COUNT, FIRST, FIRST_MS, LAST, LAST_MS, MAX, MIN, SHIFT, SUM
from sensorium.actors.profile import WindowSpec

try:
    from sensorium.actors._panes import Panes
except ImportError:
    from sensorium.actors._panes_py import Panes


class Moments(msgspec.Struct, frozen=True, gc=False):
    """Count (at least 1), mean and population standard deviation of a window."""

    count: int
    mean: float
    stddev: float


class Aggregate(Moments, frozen=True, gc=False):
    """All that a window knows of one metric. Sums beyond the range of a float are infinite or NaN."""

    sum: float
    min: float
    max: float
    first: float
    last: float


class Window(Panes):
    """One rolling window over all number metrics of a device, by their position in its metric set."""

    __slots__ = ("spec",)

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec.panes, spec.slide_ms)
        self.spec = spec

    def moments(self, position: int) -> Moments | None:
        """Count, mean and deviation of a metric in constant time; None without a reading in the window."""
        figures = self.figures(position)
        return None if figures is None else Moments(*figures)

    def aggregate(self, position: int) -> Aggregate | None:
        """All aggregates of a metric, merged over the panes; None without a reading in the window."""
        moments = self.moments(position)
        cells = self.cells(position)
        if moments is None or cells is None:
            return None
        filled = [b for b in range(0, len(cells), CELLS) if cells[b + COUNT]]
        first = min(filled, key=lambda b: cells[b + FIRST_MS])
        last = max(filled, key=lambda b: cells[b + LAST_MS])
        return Aggregate(
            count=moments.count,
            mean=moments.mean,
            stddev=moments.stddev,
            sum=sum(cells[b + SUM] + cells[b + SHIFT] * cells[b + COUNT] for b in filled),
            min=min(cells[b + MIN] for b in filled),
            max=max(cells[b + MAX] for b in filled),
            first=cells[first + FIRST],
            last=cells[last + LAST],
        )

    def bounds_ms(self) -> tuple[int, int] | None:
        """Start (included) and end (excluded) of the window in event time; None before the first reading."""
        if self.newest is None:
            return None
        slide_ms = self.spec.slide_ms
        end = (self.newest + 1) * slide_ms
        return end - self.spec.panes * slide_ms, end

    @classmethod
    def restore(cls, spec: WindowSpec, newest: int | None, dump: Sequence[bytes | None]) -> "Window":
        """The window as it was when `dump` was taken from one of the same spec."""
        window = cls(spec)
        window.load(newest, dump)
        return window

    def __reduce__(self) -> tuple[object, ...]:
        return Window.restore, (self.spec, self.newest, self.dump())
