"""Energy: what a consumer usually takes at this hour, on this kind of day and in this weather.

The baseline is a ridge regression (Hoerl and Kennard 1970): a level for each hour of the day on working
days and at weekends, and for each covariate a line with a bend at the median of its past, since heating and
cooling begin somewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from sensorium.actors.models.features import Floats

RIDGE: Final = 1.0
"""In hours: what each level is drawn towards the mean of all by."""
MIN_HOURS: Final = 72
BAND: Final = (0.05, 0.95)
"""Of the past's errors: what is within it is as usual."""


class Baseline:
    """What is usual. Build it by `fit`.

    Attributes:
        covariates: their names; `bends` has the medians, `scales` the spreads of their past.
        weights: 48 hours (working days first), then two for each covariate; `mean` of the past comes on top.
        low, high: the errors that `BAND` of the past were within.
        explained: the share of the past's variance that the baseline explains.
    """

    def __init__(
        self,
        covariates: Sequence[str],
        bends: Floats,
        scales: Floats,
        mean: float,
        weights: Floats,
        band: tuple[float, float],
        explained: float,
        hours: int,
    ) -> None:
        self.covariates = tuple(covariates)
        self.bends, self.scales, self.mean, self.weights = bends, scales, mean, weights
        self.low, self.high = band
        self.explained, self.hours = explained, hours

    def expected(self, hours: Sequence[int], weekdays: Sequence[int], given: Mapping[str, Floats]) -> Floats:
        """What is usual at hours of the day (0-23) of weekdays (0-6, Monday first) with these covariates."""
        x = _design(hours, weekdays, [given[name] for name in self.covariates], self.bends, self.scales)
        return np.asarray(x @ self.weights + self.mean)


def fit(
    hours: Sequence[int], weekdays: Sequence[int], values: Floats, covariates: Mapping[str, Floats]
) -> Baseline:
    """Learn from hourly means; see `Baseline.expected` for the arguments.

    Raises:
        ValueError: there are fewer than `MIN_HOURS`.
    """
    if len(values) < MIN_HOURS:
        raise ValueError(f"{len(values)} hours with all metrics are fewer than {MIN_HOURS}")
    columns = list(covariates.values())
    bends = np.zeros(len(columns))
    scales = np.ones(len(columns))
    for i, column in enumerate(columns):
        bends[i] = np.median(column)
        scales[i] = max(float(column.std()), 1e-9)
    x = _design(hours, weekdays, columns, bends, scales)
    mean = float(values.mean())
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (values - mean)).astype(np.float64)
    errors = values - mean - x @ weights
    total = float(np.var(values))
    explained = 1 - float(np.mean(errors**2)) / total if total > 0 else 0.0
    low, high = (float(q) for q in np.quantile(errors, BAND))
    return Baseline(list(covariates), bends, scales, mean, weights, (low, high), explained, len(values))


def _design(
    hours: Sequence[int], weekdays: Sequence[int], columns: Sequence[Floats], bends: Floats, scales: Floats
) -> Floats:
    x = np.zeros((len(hours), 48 + 2 * len(columns)))
    place = np.asarray(hours) + 24 * (np.asarray(weekdays) >= 5)
    x[np.arange(len(hours)), place] = 1.0
    for i, column in enumerate(columns):
        scaled = (column - bends[i]) / scales[i]
        x[:, 48 + 2 * i] = np.minimum(scaled, 0.0)
        x[:, 49 + 2 * i] = np.maximum(scaled, 0.0)
    return x
