"""Distance from the median in median absolute deviations: outliers do not hide the next outlier."""

from typing import Final

from sensorium.actors.detectors.quantile import P2Quantile
from sensorium.actors.detectors.score import Score, State, check_length, half_at

_MAD_TO_DEVIATION: Final = 1.4826
"""For normal values, the standard deviation is this many MADs."""


class RobustDetector:
    """|x - median| / (1.4826 · MAD), both from P² sketches; `limit` of it scores 0.5.

    The MAD is of the distances from the median as it was when each value came. Silent for `warm_up` readings.
    """

    NAME: Final = "robust"

    __slots__ = ("_count", "_limit", "_mad", "_median", "_warm_up")

    def __init__(self, limit: float = 5.0, memory_readings: int = 4000, warm_up: int = 30) -> None:
        self._limit = limit
        self._warm_up = warm_up
        self._count = 0
        self._median = P2Quantile(0.5, memory_readings)
        self._mad = P2Quantile(0.5, memory_readings)

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        median = self._median.value if self._count else value
        apart = abs(value - median)
        score = 0.0
        if self._count >= self._warm_up and apart:
            spread = _MAD_TO_DEVIATION * self._mad.value
            score = half_at(apart / spread, self._limit) if spread else 1.0
        self._count += 1
        self._median.add(value)
        self._mad.add(apart)
        return Score(score, median, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [float(self._count), *self._median.dump(), *self._mad.dump()]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, 23)
        self._count = int(state[0])
        self._median.restore(state[1:12])
        self._mad.restore(state[12:])
