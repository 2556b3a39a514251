"""A mean that moved and stays: the two-sided Page-Hinkley test (E. S. Page, Biometrika 41, 1954)."""

import math
from typing import Final

from sensorium.actors.detectors.score import Score, State, check_length, half_at
from sensorium.actors.detectors.zscore import ZScoreDetector


class LevelShiftDetector:
    """Cumulative sums of the standardised distance from the mean, less `slack`; a sum of `limit` scores 0.5.

    One distance adds at most `_LARGEST_STEP`, so a single outlier is not a shift. A sum that
    reaches `limit` is reported
    once; then the mean is learned anew, from the new level.
    """

    NAME: Final = "level_shift"
    _LARGEST_STEP: Final = 4.0

    __slots__ = ("_down", "_level", "_limit", "_slack", "_up", "_warm_up")

    def __init__(
        self, limit: float = 15.0, slack: float = 0.5, memory_readings: int = 2000, warm_up: int = 50
    ) -> None:
        self._limit = limit
        self._slack = slack
        self._warm_up = warm_up
        self._level = ZScoreDetector(memory_readings=memory_readings)
        self._up = 0.0
        self._down = 0.0

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        level = self._level
        expected = level.mean if level.count else value
        score = 0.0
        if level.count >= self._warm_up:
            deviation = math.sqrt(level.variance)
            apart = value - expected
            step = apart / deviation if deviation else math.copysign(math.inf, apart) if apart else 0.0
            step = min(max(step, -self._LARGEST_STEP), self._LARGEST_STEP)
            self._up = max(0.0, self._up + step - self._slack)
            self._down = max(0.0, self._down - step - self._slack)
            reached = max(self._up, self._down)
            score = half_at(reached, self._limit)
            if reached >= self._limit:
                self._up = self._down = 0.0
                level.restore([0.0, 0.0, 0.0])
        level.update(time_ms, value)
        return Score(score, expected, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [self._up, self._down, *self._level.dump()]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, 5)
        self._up, self._down = state[:2]
        self._level.restore(state[2:])
