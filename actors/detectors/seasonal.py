"""A value that is usual at another time of the day, or of the week, but not now."""

from typing import Final

from sensorium.actors.detectors._profile import SeasonalProfile
from sensorium.actors.detectors.score import Score, State, check_length
from sensorium.actors.detectors.zscore import ZScoreDetector

DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS


class SeasonalDetector:
    """The z-score of what a profile of the period leaves of each value; `limit` of it scores 0.5.

    The default period is the day in half hours. For the week take `period_ms=WEEK_MS` and
    `bins=168`. Silent until
    each time of the period was there twice and `warm_up` readings could be compared.
    """

    NAME: Final = "seasonal"

    __slots__ = ("_profile", "_residuals")

    def __init__(
        self,
        limit: float = 5.0,
        period_ms: int = DAY_MS,
        bins: int = 48,
        memory_periods: int = 4,
        warm_up: int = 100,
    ) -> None:
        self._profile = SeasonalProfile(period_ms, bins, memory_periods)
        self._residuals = ZScoreDetector(limit, warm_up=warm_up)

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        left = self._profile.residual(time_ms, value)
        if left is None:
            return Score(0.0, value, self.NAME)
        judged = self._residuals.update(time_ms, left)
        return Score(judged.value if left else 0.0, value - left, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [*self._residuals.dump(), *self._profile.dump()]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, len(self.dump()))
        self._residuals.restore(state[:3])
        self._profile.restore(state[3:])
