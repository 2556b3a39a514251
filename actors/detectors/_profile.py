"""The usual course of a day, or of another period, in bins."""

from typing import Final

from sensorium.actors.detectors.score import State, check_length

_READINGS: Final = 2000
_RESIDUALS: Final = 500
"""Memories, in readings, of the variance and of the part of it that the profile leaves."""


class SeasonalProfile:
    """Means of the `bins` parts of a period of `period_ms`, each over its last `memory_periods` or so.

    A value is compared with the span of the means around its time, so that what comes a little early or late
    is not odd. Times are epoch milliseconds; the profile's days are those of UTC.
    """

    __slots__ = (
        "_bin",
        "_bins",
        "_center",
        "_count",
        "_filled",
        "_means",
        "_memory",
        "_period_ms",
        "_residuals",
        "_rounds",
        "_seen",
        "_sum",
        "_variance",
    )

    def __init__(self, period_ms: int, bins: int, memory_periods: int) -> None:
        self._period_ms = period_ms
        self._bins = bins
        self._memory = memory_periods
        self._means = [0.0] * bins
        self._rounds = [0] * bins
        self._bin = -1
        self._sum = 0.0
        self._filled = 0
        self._seen = 0
        self._center = 0.0
        self._variance = 0.0
        self._residuals = -1.0

    def expected(self) -> float:
        """The mean of the present bin's past; 0 before there is one."""
        return self._means[self._bin]

    def explained(self) -> float:
        """The share of the variance, 0 to 1, that the time explains."""
        if self._residuals < 0.0 or not self._variance:
            return 0.0
        return max(0.0, 1.0 - self._residuals / self._variance)

    def residual(self, time_ms: int, value: float) -> float | None:
        """How far `value` is beside the usual of its time; None until two periods are known.
        Learns from it."""
        here = time_ms % self._period_ms * self._bins // self._period_ms
        if here != self._bin:
            self._close_bin()
            self._bin = here
        self._sum += value
        self._filled += 1
        self._seen += 1
        apart = value - self._center
        weight = 1.0 / self._seen if self._seen < _READINGS else 1.0 / _READINGS
        if self._seen == 1:
            self._center = value
        else:
            self._center += weight * apart
            self._variance += weight * (apart * apart - self._variance)
        if self._rounds[here] < 2:
            return None
        means, rounds = self._means, self._rounds
        low = high = means[here]
        for near in (here - 1, here + 1 if here + 1 < self._bins else 0):
            if rounds[near]:
                mean = means[near]
                if mean < low:
                    low = mean
                elif mean > high:
                    high = mean
        left = value - high if value > high else value - low if value < low else 0.0
        squared = left * left
        self._residuals += (
            (squared - self._residuals) / _RESIDUALS if self._residuals >= 0.0 else squared + 1.0
        )
        return left

    def _close_bin(self) -> None:
        if not self._filled:
            return
        number = self._bin
        mean = self._sum / self._filled
        self._rounds[number] = min(self._rounds[number] + 1, self._memory)
        self._means[number] += (mean - self._means[number]) / self._rounds[number]
        self._sum = 0.0
        self._filled = 0

    def dump(self) -> State:
        """Seven numbers, the means, the rounds."""
        numbers = (
            self._bin,
            self._sum,
            self._filled,
            self._seen,
            self._center,
            self._variance,
            self._residuals,
        )
        return [*map(float, numbers), *self._means, *map(float, self._rounds)]

    def restore(self, state: State) -> None:
        """Take over what `dump` gave."""
        check_length(state, 7 + 2 * self._bins)
        self._bin, self._filled, self._seen = int(state[0]), int(state[2]), int(state[3])
        self._sum, self._center, self._variance, self._residuals = state[1], *state[4:7]
        self._means = list(state[7 : 7 + self._bins])
        self._rounds = [int(rounds) for rounds in state[7 + self._bins :]]
