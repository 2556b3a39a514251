"""A value that is usual at another time of the day, or of the week, but not now."""

import math
from typing import Final

from sensorium.actors.detectors._profile import SeasonalProfile
from sensorium.actors.detectors.score import Score, State, check_length, half_at
from sensorium.actors.detectors.zscore import ZScoreDetector

DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
_ROUNDING: Final = 1e-9


class SeasonalDetector:
    """What a profile of the period leaves of a value, in deviations of values from the mean of their time;
    `limit` of them score 0.5.

    The default period is the day in half hours. For the week take `period_ms=WEEK_MS` and `bins=168`. Silent
    until each time of the period was there twice and `warm_up` readings could be compared.
    """

    NAME: Final = "seasonal"

    __slots__ = ("_limit", "_profile", "_scatter", "_warm_up")

    def __init__(
        self,
        limit: float = 5.0,
        period_ms: int = DAY_MS,
        bins: int = 48,
        memory_periods: int = 4,
        warm_up: int = 100,
    ) -> None:
        self._profile = SeasonalProfile(period_ms, bins, memory_periods)
        self._limit = limit
        self._warm_up = warm_up
        self._scatter = ZScoreDetector()

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        left = self._profile.residual(time_ms, value)
        if left is None:
            return Score(0.0, value, self.NAME)
        usual, scatter = self._profile.expected(), self._scatter
        score = 0.0
        if left and scatter.count >= self._warm_up:
            # A mean is exact to rounding only: where nothing ever scatters, that is no anomaly.
            deviation = math.sqrt(scatter.variance) + _ROUNDING * abs(usual)
            score = half_at(abs(left) / deviation, self._limit) if deviation else 1.0
        scatter.update(time_ms, value - usual)
        return Score(score, value - left, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [*self._scatter.dump(), *self._profile.dump()]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, len(self.dump()))
        self._scatter.restore(state[:3])
        self._profile.restore(state[3:])
