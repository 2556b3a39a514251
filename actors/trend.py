"""Where a metric is going: a robust line through its points, and when it comes to a limit. Pure.

The slope is the median of those between all pairs (H. Theil, 1950; P. K. Sen, "Estimates of the regression
coefficient based on Kendall's tau", JASA 63, 1968), its interval that of Sen: a third of the points may be
anything.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

DAY_MS: Final = 86_400_000
MAX_POINTS: Final = 400
"""Of a line: 80,000 pairs. More are thinned out evenly."""
FEWEST_POINTS: Final = 5
_Z_95: Final = 1.959964
MAX_DAYS_LEFT: Final = 36_500.0

Point = tuple[int, float]


class Line(msgspec.Struct, frozen=True):
    """A line through points: `slope` a day with its 95 % interval, and the value on it at the newest one."""

    slope_a_day: float
    slope_low: float
    slope_high: float
    value: float
    points: int


class DaysLeft(msgspec.Struct, frozen=True):
    """Until the line comes to the limit; `low` and `high` by the slope's interval, null for never."""

    expected: float
    low: float
    high: float | None


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Every so many-th of them, the last one among them."""
    step = -(-len(points) // most)
    return list(points[::-1][::step][::-1]) if step > 1 else list(points)


def since_renewal(points: Sequence[Point], rise: float = 0.3) -> Sequence[Point]:
    """Those after the last rise by at least `rise` of the whole span: a battery was charged or replaced."""
    if len(points) < 2:
        return points
    values = [value for _, value in points]
    least = rise * (max(values) - min(values))
    if not least:
        return points
    for n in range(len(points) - 1, 0, -1):
        if values[n] - values[n - 1] >= least:
            return points[n:]
    return points


def line_through(points: Sequence[Point]) -> Line | None:
    """The line through points in order of time; None for fewer than `FEWEST_POINTS`, or all at one time."""
    points = thinned(points)
    n = len(points)
    if n < FEWEST_POINTS:
        return None
    slopes = sorted(
        (points[j][1] - points[i][1]) / (points[j][0] - points[i][0])
        for i in range(n)
        for j in range(i + 1, n)
        if points[j][0] > points[i][0]
    )
    if not slopes:
        return None
    middle = _median(slopes)
    # Of the number of slopes between points without a trend (Kendall).
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    off = _Z_95 * deviation / 2.0
    low = slopes[max(0, math.floor(len(slopes) / 2.0 - off))]
    high = slopes[min(len(slopes) - 1, math.ceil(len(slopes) / 2.0 + off))]
    newest_ms = points[-1][0]
    value = _median(sorted(v - middle * (t - newest_ms) for t, v in points))
    return Line(middle * DAY_MS, low * DAY_MS, high * DAY_MS, value, n)


def days_left(line: Line, limit: float, falling: bool = True) -> DaysLeft | None:
    """Until the line crosses the limit, downwards or upwards. None: it goes the other way, or will take
    longer than `MAX_DAYS_LEFT`. 0: it is beyond already."""
    sign = 1.0 if falling else -1.0
    above = sign * (line.value - limit)
    if above <= 0:
        return DaysLeft(0.0, 0.0, 0.0)
    ends = sorted((-sign * line.slope_low, -sign * line.slope_high))
    speed = -sign * line.slope_a_day
    if speed <= 0 or above / speed > MAX_DAYS_LEFT:
        return None
    slowest, fastest = ends
    high = above / slowest if slowest > 0 else None
    return DaysLeft(above / speed, above / fastest, high)


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0
