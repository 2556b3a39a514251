"""Remaining time: when a slowly growing measure reaches its threshold, with an interval. Plain arithmetic.

A line is fitted by least squares. The readings' errors hang together, so as many of them as they are worth
independent ones count (n(1-r)/(1+r), r their correlation from one to the next; Bayley and Hammersley 1946).
The interval is where the threshold cuts the confidence band of the line (inverse regression, Fieller 1954).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Final, Literal

import msgspec

MIN_POINTS: Final = 8
MAX_AHEAD: Final = 20.0
"""Times the length of the history, beyond which nothing is said about the future."""

Outlook = Literal["reached", "approaching", "none"]


class Remaining(msgspec.Struct, frozen=True):
    """When a threshold will be reached.

    Attributes:
        outlook: "reached": the line is there already; "approaching": the trend is certain and leads there;
            "none": it is not certain, leads away, or takes longer than can be told.
        remaining_s: from the newest point; None where there is no outlook.
        earliest_s, latest_s: the interval; `latest_s` is None where the band never gets there.
        slope_a_day, slope_error_a_day: the trend and its standard error.
        level: of the line at the newest point.
        points, independent_points: how many there were, and what they are worth.
    """

    outlook: Outlook
    remaining_s: float | None
    earliest_s: float | None
    latest_s: float | None
    level: float
    slope_a_day: float
    slope_error_a_day: float
    points: int
    independent_points: float


def remaining(
    times_s: Sequence[float],
    values: Sequence[float],
    threshold: float,
    *,
    rising: bool = True,
    confidence: float = 0.9,
) -> Remaining:
    """Fit a line to points in order of time and tell when it reaches the threshold.

    Args:
        rising: whether the threshold is above; otherwise below.

    Raises:
        ValueError: fewer than `MIN_POINTS` points, or all at one time.
    """
    n = len(times_s)
    if n < MIN_POINTS:
        raise ValueError(f"{n} points are fewer than {MIN_POINTS}")
    sign = 1.0 if rising else -1.0
    end_s, target = times_s[-1], sign * threshold
    x = [t - end_s for t in times_s]
    y = [sign * v for v in values]
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    if spread <= 0:
        raise ValueError("all points are at one time")
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    errors = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y, strict=True)]
    squares = math.fsum(e * e for e in errors)
    together = math.fsum(a * b for a, b in pairwise(errors)) / squares if squares else 0.0
    together = min(max(together, 0.0), 0.99)
    worth = max(3.0, n * (1 - together) / (1 + together))
    variance = squares / n * worth / (worth - 2)
    slope_error = math.sqrt(variance / spread * n / worth)
    level = mean_y - slope * mean_x
    z = NormalDist().inv_cdf(0.5 + confidence / 2)

    def band(ahead_s: float, side: float) -> float:
        width = math.sqrt(variance / worth + (slope_error * (ahead_s - mean_x)) ** 2)
        return level + slope * ahead_s + side * z * width

    outlook: Outlook = "none"
    found = earliest = latest = None
    furthest_s = MAX_AHEAD * (end_s - times_s[0])
    if level >= target:
        outlook, found, earliest, latest = "reached", 0.0, 0.0, 0.0
    elif slope > z * slope_error and (target - level) / slope <= furthest_s:
        outlook, found = "approaching", (target - level) / slope
        earliest = _crossing(lambda s: band(s, 1.0), target, found)
        latest = _crossing(lambda s: band(s, -1.0), target, furthest_s)
    day_s = 86_400.0
    return Remaining(
        outlook,
        found,
        earliest,
        latest,
        sign * level,
        sign * slope * day_s,
        slope_error * day_s,
        n,
        worth,
    )


def _crossing(band: Callable[[float], float], target: float, until_s: float) -> float | None:
    """When a band that rises for good has reached the target; None: not by `until_s`."""
    low, high = 0.0, until_s
    if band(low) >= target:
        return 0.0
    if band(high) < target:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if band(middle) >= target else (middle, high)
    return high
