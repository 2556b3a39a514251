"""Outliers: a device against what it was like in training, metric by metric, without labels.

Each metric is a level with noise on it and perhaps a drift (the local-level model, Harvey 1989): from
training come the level, how far its smoothed readings stray, and by how much the level itself wanders. What
counts is how far two exponentially weighted means, a quick and a slow one, are from the level, in units of
both. A metric that wandered in training, such as a temperature that warms up, so has to go much further
before it counts than one that kept still.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from sensorium.actors.models.features import Floats
from sensorium.actors.models.info import Contribution
from sensorium.actors.models.scorer import TOP

QUICK_READINGS: Final = 10
SLOW_READINGS: Final = 40
"""Spans of the two means: each has the variance of a plain mean over so many readings."""
SLOW_WEIGHT: Final = 0.6
"""A slow mean strays less from noise and more from slow faults, which are worth less haste."""
DRIFT_SHARE: Final = 0.1
"""Of the variance that a wandering level may gain over as many readings as in training."""
LIMIT: Final = 5.0
"""A deviation by so many units scores 0.5."""
BLOCK_READINGS: Final = 20
"""Means of so many readings show how the level wanders."""
MIN_READINGS: Final = 5 * BLOCK_READINGS
LEAST_SCALE: Final = 1e-4
"""Of the level: what a metric that never moved in training may move."""
_FAR: Final = 1e6


class Settings(NamedTuple):
    """The constants above, for whoever tries others."""

    quick: int = QUICK_READINGS
    slow: int = SLOW_READINGS
    slow_weight: float = SLOW_WEIGHT
    drift_share: float = DRIFT_SHARE
    limit: float = LIMIT


DEFAULT: Final = Settings()


class Reference(NamedTuple):
    """What a device was like: of each metric the level, and the units of deviation of the two means."""

    level: Floats
    unit: Floats
    """(2, metrics): of the quick mean and of the slow one."""


def reference_of(rows: Floats, settings: Settings = DEFAULT) -> Reference:
    """Learn from readings in their order, (readings, metrics), NaN where one is missing.

    Raises:
        ValueError: there are fewer than `MIN_READINGS`, or a metric has fewer.
    """
    present = np.isfinite(rows).sum(axis=0)
    if len(rows) < MIN_READINGS or present.min() < MIN_READINGS:
        raise ValueError(f"{int(present.min(initial=len(rows)))} readings are fewer than {MIN_READINGS}")
    filled = carried_forward(rows)
    level = filled.mean(axis=0)
    smoothed = _smoothed(filled - level, settings)
    # The means begin at the level, so at first they stray less than they will.
    stray = np.mean(smoothed[min(SLOW_READINGS, len(rows) // 2) :] ** 2, axis=0)
    drift = settings.drift_share * wander(filled) * len(rows)
    least = (LEAST_SCALE * np.abs(level) + 1e-9) ** 2
    return Reference(level, np.sqrt(np.maximum(stray + drift, least)))


def carried_forward(rows: Floats) -> Floats:
    """The rows with every missing value taken from the reading before, the first ones from their mean."""
    missing = ~np.isfinite(rows)
    if not missing.any():
        return rows
    filled = np.where(missing, np.nan, rows)
    filled[0] = np.where(missing[0], np.nanmean(filled, axis=0), filled[0])
    known = np.where(np.isfinite(filled), np.arange(len(rows))[:, None], 0)
    np.maximum.accumulate(known, axis=0, out=known)
    return np.asarray(filled[known, np.arange(rows.shape[1])])


def wander(rows: Floats) -> Floats:
    """By what variance a reading the level of each metric wanders: that of the steps between means of blocks,
    less what the noise within the blocks explains."""
    blocks = rows[: len(rows) // BLOCK_READINGS * BLOCK_READINGS].reshape(-1, BLOCK_READINGS, rows.shape[1])
    steps = np.mean(np.diff(blocks.mean(axis=1), axis=0) ** 2, axis=0)
    noise = blocks.var(axis=1).mean(axis=0)
    # Neighbouring block means of a random walk differ by a variance of 2/3 of the block's length of steps.
    return np.asarray(np.maximum(steps - 2 * noise / BLOCK_READINGS, 0.0) / (2 * BLOCK_READINGS / 3))


def _smoothed(deviations: Floats, settings: Settings) -> Floats:
    """Both means of all rows: (rows, 2, metrics)."""
    shares = _shares(settings)
    out = np.empty((len(deviations), 2, deviations.shape[1]))
    mean = np.zeros_like(out[0])
    for i, row in enumerate(deviations):
        mean += shares * (row - mean)
        out[i] = mean
    return out


def _shares(settings: Settings) -> Floats:
    return np.array([[2 / (settings.quick + 1)], [2 / (settings.slow + 1)]])


class OutlierModel:
    """The references of all devices of a training; implements `Scorer`. A device that was not in training is
    judged by all of them together: the mean of their levels, and a unit that covers how they differ."""

    def __init__(
        self,
        metrics: Sequence[str],
        references: Mapping[str, Reference],
        settings: Settings = DEFAULT,
    ) -> None:
        self.metrics = tuple(metrics)
        self.settings = settings
        self.device_ids = tuple(references)
        self.levels = np.stack([r.level for r in references.values()])
        self.units = np.stack([r.unit for r in references.values()])
        self._numbers = {device_id: i for i, device_id in enumerate(self.device_ids)}
        between = self.levels.var(axis=0)
        self._levels = np.vstack([self.levels, self.levels.mean(axis=0)])
        pooled = np.sqrt(np.mean(self.units**2, axis=0) + between)
        weights = np.array([[1.0], [settings.slow_weight]])
        self._inverse = weights / np.concatenate([self.units, pooled[None]])
        self._shares = _shares(settings)
        self.state_size = 2 * len(self.metrics)

    def reference(self, device_id: str) -> int:
        """As `Scorer` says."""
        return self._numbers.get(device_id, len(self.device_ids))

    def begin(self, references: Sequence[int]) -> Floats:
        """As `Scorer` says: both means at the level."""
        return np.zeros((len(references), self.state_size))

    def step(self, states: Floats, rows: Floats, references: Sequence[int]) -> Floats:
        """As `Scorer` says."""
        means = states.reshape(len(states), 2, len(self.metrics))
        deviations = rows - self._levels[references]
        steps = self._shares * (deviations[:, None, :] - means)
        # A missing metric leaves its means as they are.
        means += np.where(np.isfinite(steps), steps, 0.0)
        odd: Floats = np.abs(means * self._inverse[references]).max(axis=(1, 2))
        return self.scores(odd)

    def scores(self, deviations: Floats) -> Floats:
        """Deviations in units as scores: 0.5 at the limit, 0.8 at twice and 0.95 at 4.4 times that."""
        squares = np.minimum(deviations / self.settings.limit, _FAR) ** 2
        return np.asarray(squares / (1.0 + squares))

    def explain(self, state: Floats, reference: int) -> list[Contribution]:
        """As `Scorer` says: each metric's squared deviation among all of them."""
        means = state.reshape(2, len(self.metrics))
        odd = np.minimum(np.abs(means * self._inverse[reference]), _FAR)
        which = odd.argmax(axis=0)
        squares = odd.max(axis=0) ** 2
        shares = squares / max(float(squares.sum()), 1e-300)
        level = self._levels[reference]
        spans = (self.settings.quick, self.settings.slow)
        return [
            Contribution(
                f"mean({metric}, {spans[which[i]]} readings)",
                metric,
                float(shares[i]),
                float(level[i] + means[which[i], i]),
                float(level[i]),
            )
            for i in np.argsort(-shares, kind="stable")[:TOP]
            for metric in (self.metrics[i],)
        ]
