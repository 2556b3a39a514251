"""The default: four views of one series, each judged by the range it has ever been in. One setting
for all series.

A record is rare by nature: of n exchangeable values the newest is a record with probability 2/n
(Rényi 1962). What
counts is the margin of the record in widths of the range: it needs no distribution and no scale, and
series that leap daily have wide ranges. An event speaks once; it speaks again when it gets worse.
"""

import math
from typing import Final

from sensorium.actors.detectors._profile import SeasonalProfile
from sensorium.actors.detectors.score import Score, State, check_length
from sensorium.actors.detectors.seasonal import DAY_MS

HALF_MARGIN: Final = 0.0105
"""A record by this share of its range scores 0.5."""
FORGET: Final = 1e-5
"""The share of its width by which a range shrinks, at each end, a reading: a record lasts for
months, not for ever."""
HUSH_READINGS: Final = 100
"""How long, as a time constant, an event that was reported hides what is not worse than it."""
LEVEL_READINGS: Final = 24
CHANGE_READINGS: Final = 36
SEASON_READINGS: Final = 12
"""Memories of the moving means: of the value, of the steps from reading to reading, of the
seasonal residual."""
SEASON_SHARE: Final = 0.8
"""The season speaks where the time of day explains at least this share of the variance,"""
SEASON_WARM_UP_MS: Final = 2 * DAY_MS
"""and after its residuals have been watched for so long."""
SMOOTHED: Final = 0.6
SEASONAL: Final = 0.3
"""What a margin of a mean weighs, and one of the seasonal residual: they are correlated, so
records come in runs."""
WARM_UP: Final = 30


class _Range:
    """The lowest and highest so far, shrinking slowly; how far a value breaks out of it, in its widths."""

    __slots__ = ("high", "low")

    def __init__(self) -> None:
        self.low = math.nan
        self.high = math.nan

    def margin(self, value: float) -> float:
        low, high = self.low, self.high
        if low != low:
            self.low = self.high = value
            return 0.0
        width = high - low
        margin = 0.0
        if value > high:
            margin = (value - high) / (width + 1e-9 + 1e-3 * abs(high))
            high = value
        elif value < low:
            margin = (low - value) / (width + 1e-9 + 1e-3 * abs(low))
            low = value
        shrink = width * FORGET
        self.high = high - shrink
        self.low = low + shrink
        return margin


class EnsembleDetector:
    """The margin of the value, its moving mean, its roughness or its seasonal residual, whichever
    is greatest.

    `expected` is the moving mean before the reading. Silent for the first `WARM_UP` readings.
    """

    NAME: Final = "ensemble"

    __slots__ = (
        "_count",
        "_hushed",
        "_last",
        "_level",
        "_profile",
        "_ranges",
        "_season",
        "_season_from_ms",
        "_step",
    )

    def __init__(self) -> None:
        self._count = 0
        self._last = 0.0
        self._level = 0.0
        self._step = 0.0
        self._hushed = 0.0
        self._season = 0.0
        self._season_from_ms = -1
        self._ranges = (_Range(), _Range(), _Range(), _Range())
        self._profile = SeasonalProfile(DAY_MS, 48, 4)

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        if not self._count:
            self._last = self._level = value
        self._count = count = self._count + 1
        expected = self._level
        self._level += (value - expected) / (count if count < LEVEL_READINGS else LEVEL_READINGS)
        step = abs(value - self._last)
        self._last = value
        self._step += (step - self._step) / (count if count < CHANGE_READINGS else CHANGE_READINGS)
        roughness = math.log(self._step + 1e-3 * abs(self._level) + 1e-9)
        values, levels, steps, _ = self._ranges
        margin = max(
            values.margin(value), SMOOTHED * levels.margin(self._level), SMOOTHED * steps.margin(roughness)
        )
        left = self._profile.residual(time_ms, value)
        if left is not None:
            margin = max(margin, SEASONAL * self._season_margin(time_ms, left))
        score = 0.0
        if count > WARM_UP:
            score = margin / (margin + HALF_MARGIN)
            if score > self._hushed:
                self._hushed = score
            else:
                score = 0.0
            self._hushed *= 1.0 - 1.0 / HUSH_READINGS
        return Score(score, expected, self.NAME)

    def _season_margin(self, time_ms: int, left: float) -> float:
        if self._season_from_ms < 0:
            self._season_from_ms = time_ms
        self._season += (left - self._season) / SEASON_READINGS
        margin = self._ranges[3].margin(self._season)
        if not margin or time_ms - self._season_from_ms < SEASON_WARM_UP_MS:
            return 0.0
        explained = self._profile.explained()
        return margin * explained if explained >= SEASON_SHARE else 0.0

    def dump(self) -> State:
        """See `Detector.dump`."""
        ends = [end for range_ in self._ranges for end in (range_.low, range_.high)]
        numbers = (
            self._count,
            self._last,
            self._level,
            self._step,
            self._hushed,
            self._season,
            self._season_from_ms,
        )
        return [*map(float, numbers), *ends, *self._profile.dump()]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, len(self.dump()))
        self._count, self._season_from_ms = int(state[0]), int(state[6])
        self._last, self._level, self._step, self._hushed, self._season = state[1:6]
        for number, range_ in enumerate(self._ranges):
            range_.low, range_.high = state[7 + 2 * number : 9 + 2 * number]
        self._profile.restore(state[15:])
