"""A value that stands still for much longer than it ever did: a sensor that is stuck."""

from typing import Final

from sensorium.actors.detectors.score import Score, State, check_length, half_at


class FlatlineDetector:
    """The present run of equal values against the longest usual one; `limit` times as long scores 0.5.

    Silent until the value has changed `warm_up` times, so a set point or a state is never judged. A run that
    was reported makes the longest usual one twice as long at most. `expected` is the value before the run.
    """

    NAME: Final = "flatline"
    _FORGET: Final = 0.001
    """The share by which the longest run shrinks at each change."""
    _SHORTEST: Final = 3.0

    __slots__ = ("_before", "_changes", "_last", "_limit", "_longest", "_run", "_warm_up")

    def __init__(self, limit: float = 10.0, warm_up: int = 60) -> None:
        self._limit = limit
        self._warm_up = warm_up
        self._changes = 0
        self._run = 0
        self._longest = self._SHORTEST
        self._last = 0.0
        self._before = 0.0

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        if value == self._last and self._run:
            self._run += 1
            if self._changes < self._warm_up or self._run < self._longest:
                return Score(0.0, self._before, self.NAME)
            return Score(half_at(self._run / self._longest, self._limit), self._before, self.NAME)
        if self._run:
            usual = self._longest - self._FORGET * (self._longest - self._SHORTEST)
            self._longest = max(usual, min(float(self._run), 2.0 * self._longest))
        self._changes += 1
        self._run = 1
        self._before, self._last = self._last, value
        return Score(0.0, value, self.NAME)

    def dump(self) -> State:
        """See `Detector.dump`."""
        return [float(self._changes), float(self._run), self._longest, self._last, self._before]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        check_length(state, 5)
        self._changes, self._run = int(state[0]), int(state[1])
        self._longest, self._last, self._before = state[2:]
