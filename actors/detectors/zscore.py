"""Distance from the mean in standard deviations: the simple default for values that scatter evenly."""

import math
from typing import Final

from sensorium.actors.detectors.score import Score, State, check_length, half_at


class ZScoreDetector:
    """|z| over an exponentially forgetting mean and variance (West 1979); |z| = `limit` scores 0.5.

    Silent for the first `warm_up` readings. Against a history without any scatter, each change scores 1.
    """

    NAME: Final = "zscore"

    __slots__ = ("_limit", "_memory", "_warm_up", "count", "mean", "variance")

    def __init__(self, limit: float = 3.0, memory_readings: int = 1000, warm_up: int = 30) -> None:
        self._limit = limit
        self._memory = memory_readings
        self._warm_up = warm_up
        self.count = 0
        self.mean = 0.0
        self.variance = 0.0

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        mean = self.mean
        apart = value - mean
        score = 0.0
        if self.count >= self._warm_up and apart:
            deviation = math.sqrt(self.variance)
            score = half_at(abs(apart) / deviation, self._limit) if deviation else 1.0
        self.count += 1
        weight = 1.0 / min(self.count, self._memory)
        self.mean = mean + weight * apart
        self.variance = (1.0 - weight) * (self.variance + weight * apart * apart)
        return Score(score, mean if self.count > 1 else value, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [float(self.count), self.mean, self.variance]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, 3)
        self.count = int(state[0])
        self.mean, self.variance = state[1:]
