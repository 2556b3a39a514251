"""Vibration that changes its tune: band amplitudes by the Goertzel algorithm, block by block.

G. Goertzel, "An algorithm for the evaluation of finite trigonometric series", American Mathematical
Monthly 65, 1958. Cube roots of the bands' powers are compared, since those of noise are nearly normal (E. B.
Wilson and M. M. Hilferty, "The distribution of chi-square", PNAS 17, 1931). It takes readings at a constant
rate; gaps and jitter show up as noise.
"""

import math
from typing import Final

from sensorium.actors.detectors.score import Score, State, check_length
from sensorium.actors.detectors.zscore import ZScoreDetector


class SpectralDetector:
    """The strengths of `cycles` (whole cycles a block) judged by their own history, every `block` readings.

    Between the ends of blocks the score is 0. The score of a block is that of its oddest band; `expected` is
    that band's usual amplitude. The block's mean has no part in it. Nothing is kept of a reading
    but two numbers a band.
    """

    NAME: Final = "spectral"

    __slots__ = ("_bands", "_block", "_filled", "_first", "_steps", "_waves")

    def __init__(
        self,
        block: int = 64,
        cycles: tuple[int, ...] = (2, 4, 8, 16, 24),
        limit: float = 5.0,
        memory_blocks: int = 200,
        warm_up_blocks: int = 10,
    ) -> None:
        if not all(0 < cycle < block / 2 for cycle in cycles):
            raise ValueError(
                f"cycles must be between 1 and {(block - 1) // 2} for a block of {block} readings"
            )
        self._block = block
        self._steps = [2.0 * math.cos(2.0 * math.pi * cycle / block) for cycle in cycles]
        self._bands = [ZScoreDetector(limit, memory_blocks, warm_up_blocks) for _ in cycles]
        self._waves = [0.0] * (2 * len(cycles))
        self._filled = 0
        self._first = 0.0

    def update(self, time_ms: int, value: float) -> Score:
        """See `Detector.update`."""
        waves = self._waves
        if not self._filled:
            # Small numbers keep their digits in the recurrence; whole cycles cancel any constant.
            self._first = value
        value -= self._first
        i = 0
        for step in self._steps:
            waves[i], waves[i + 1] = value + step * waves[i] - waves[i + 1], waves[i]
            i += 2
        self._filled += 1
        if self._filled < self._block:
            return Score(0.0, 0.0, self.NAME)
        oddest = Score(0.0, 0.0, self.NAME)
        for number, (step, band) in enumerate(zip(self._steps, self._bands, strict=True)):
            near, far = waves[2 * number], waves[2 * number + 1]
            power = max(near * near + far * far - step * near * far, 0.0)
            amplitude = 2.0 * math.sqrt(power) / self._block
            judged = band.update(time_ms, amplitude ** (2.0 / 3.0))
            if judged.value >= oddest.value:
                oddest = Score(judged.value, judged.expected**1.5, self.NAME)
        self._filled = 0
        self._waves = [0.0] * len(waves)
        return oddest

    def dump(self) -> State:
        """See `Detector.dump`."""
        bands = [number for band in self._bands for number in band.dump()]
        return [float(self._filled), self._first, *self._waves, *bands]

    def restore(self, state: State) -> None:
        """See `Detector.restore`."""
        waves = len(self._waves)
        check_length(state, 2 + waves + 3 * len(self._bands))
        self._filled, self._first = int(state[0]), state[1]
        self._waves = list(state[2 : 2 + waves])
        for number, band in enumerate(self._bands):
            start = 2 + waves + 3 * number
            band.restore(state[start : start + 3])
