"""Failures to come: windows of readings that look like those before past failures.

`fitting` fits a logistic regression over features; here it is arithmetic only, so that judging needs no
scikit-learn.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sensorium.actors.models.features import Floats, feature_names, window_features
from sensorium.actors.models.info import Contribution
from sensorium.actors.models.scorer import TOP

WINDOW_READINGS: Final = 64
STEPS_A_WINDOW: Final = 4
"""Windows overlap so that each reading is judged in as many."""
MAX_STATE: Final = 8_192
"""Numbers that a device may remember for one model: a window of readings of all metrics."""
_CAP: Final = 50.0


class FailureModel:
    """Implements `Scorer`: the score is the probability that the newest window is one before a failure.

    Args:
        window: readings of a window; it is judged at every `window // STEPS_A_WINDOW`th reading.
        mean, scale: of each feature in training.
        weights, intercept: of the regression on the features so scaled.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        window: int,
        mean: Floats,
        scale: Floats,
        weights: Floats,
        intercept: float,
    ) -> None:
        self.metrics = tuple(metrics)
        self.window = window
        self.step_readings = max(1, window // STEPS_A_WINDOW)
        self.names = feature_names(self.metrics)
        self.of_metric = [m for m in self.metrics for _ in range(self._each())]
        self.of_metric += [name[5:-1].split(", ")[0] for name in self.names[len(self.of_metric) :]]
        if not len(self.names) == len(mean) == len(scale) == len(weights):
            raise ValueError(f"{len(self.names)} features need as many means, scales and weights")
        self.mean, self.scale, self.weights, self.intercept = mean, scale, weights, intercept
        # A window, the last known values, and how many readings there were.
        self.state_size = (window + 1) * len(self.metrics) + 1

    def _each(self) -> int:
        return len(feature_names(self.metrics[:1]))

    def reference(self, device_id: str) -> int:
        """As `Scorer` says: one for all devices."""
        return 0

    def begin(self, references: Sequence[int]) -> Floats:
        """As `Scorer` says: an empty window. Until every metric was there once, nothing is decided."""
        states = np.full((len(references), self.state_size), np.nan)
        states[:, -1] = 0.0
        return states

    def step(self, states: Floats, rows: Floats, references: Sequence[int]) -> Floats:
        """As `Scorer` says: NaN until the window is full, and between two windows."""
        width = len(self.metrics)
        counts = states[:, -1].astype(np.int64)
        known = states[:, -1 - width : -1]
        known[:] = np.where(np.isfinite(rows), rows, known)
        ring = states[:, : self.window * width].reshape(len(states), self.window, width)
        ring[np.arange(len(states)), counts % self.window] = known
        counts += 1
        states[:, -1] = counts
        scores = np.full(len(states), np.nan)
        due = np.flatnonzero((counts >= self.window) & (counts % self.step_readings == 0))
        if len(due):
            x = self._scaled(ring[due], counts[due])
            scores[due] = 1 / (1 + np.exp(-np.clip(x @ self.weights + self.intercept, -_CAP, _CAP)))
        return scores

    def explain(self, state: Floats, reference: int) -> list[Contribution]:
        """As `Scorer` says: weight times scaled feature, of those that speak for a failure."""
        width = len(self.metrics)
        ring = state[: self.window * width].reshape(1, self.window, width)
        (x,) = self._scaled(ring, np.array([int(state[-1])]))
        parts = np.maximum(x * self.weights, 0.0)
        shares = parts / max(float(parts.sum()), 1e-300)
        return [
            Contribution(
                self.names[i],
                self.of_metric[i],
                float(shares[i]),
                float(x[i] * self.scale[i] + self.mean[i]),
                float(self.mean[i]),
            )
            for i in np.argsort(-shares, kind="stable")[:TOP]
            if shares[i] > 0
        ]

    def _scaled(self, rings: Floats, counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
        """Scaled features of rings whose next place is `counts % window`."""
        order = (counts[:, None] + np.arange(self.window)) % self.window
        windows = np.take_along_axis(rings, order[:, :, None], axis=1)
        return np.asarray((window_features(windows) - self.mean) / self.scale)
