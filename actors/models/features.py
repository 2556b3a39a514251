"""Windows of readings as features: what a vibration or process signal is like, whatever its unit.

All of it is vectorised over windows: one call for the windows of a whole batch.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BANDS: Final = 4
"""Equal parts of the spectrum from just above zero to half the sampling rate."""
MAX_CORRELATED: Final = 8
"""Metrics whose pairs are correlated: the first ones, so that pairs do not outgrow everything else."""
MIN_WINDOW: Final = 8

_OF_ONE: Final = ("mean", "std", "rms", "kurtosis", "crest", "trend", *(f"band{i + 1}" for i in range(BANDS)))


def feature_names(metrics: Sequence[str]) -> list[str]:
    """The names of what `window_features` answers, in its order: `rms(vibration)`, `corr(a, b)`."""
    names = [f"{feature}({metric})" for metric in metrics for feature in _OF_ONE]
    return names + [f"corr({a}, {b})" for a, b in combinations(metrics[:MAX_CORRELATED], 2)]


def window_features(windows: Floats) -> Floats:
    """Features of `windows`, shaped (windows, readings, metrics), in the order of `feature_names`.

    Of each metric: mean; standard deviation; root mean square about zero; excess kurtosis; crest factor
    (largest deviation from the mean in standard deviations); trend (slope of the least-squares line times
    the window's length, so in the metric's unit); the share of the variance in each of `BANDS` bands of the
    spectrum. Of each pair of metrics the correlation. A metric that does not move has 0 for all but mean and
    rms.

    Raises:
        ValueError: a window has fewer than `MIN_WINDOW` readings.
    """
    count, length, metrics = windows.shape
    if length < MIN_WINDOW:
        raise ValueError(f"a window of {length} readings is shorter than {MIN_WINDOW}")
    mean = windows.mean(axis=1)
    centred = windows - mean[:, None, :]
    variance = np.mean(centred**2, axis=1)
    # Below this the digits of the values themselves are what moves.
    moves = variance > (1e-9 * np.abs(mean) + 1e-12) ** 2
    std = np.where(moves, np.sqrt(variance), 0.0)
    safe = np.where(moves, std, 1.0)
    kurtosis = np.where(moves, np.mean(centred**4, axis=1) / safe**4 - 3.0, 0.0)
    crest = np.where(moves, np.abs(centred).max(axis=1) / safe, 0.0)
    x = np.arange(length) - (length - 1) / 2
    trend = np.einsum("i,nim->nm", x, centred) / (x @ x) * length
    rms = np.sqrt(mean**2 + variance)
    bands = _band_shares(centred, moves)
    of_one = np.stack([mean, std, rms, kurtosis, crest, trend, *bands], axis=2)
    parts = [of_one.reshape(count, metrics * len(_OF_ONE))]
    scaled = np.where(moves[:, None, :], centred / safe[:, None, :], 0.0)[:, :, :MAX_CORRELATED]
    if scaled.shape[2] > 1:
        correlation = np.einsum("nij,nik->njk", scaled, scaled) / length
        upper = np.triu_indices(scaled.shape[2], k=1)
        parts.append(correlation[:, upper[0], upper[1]])
    return np.concatenate(parts, axis=1)


def sliding(rows: Floats, length: int, step: int) -> Floats:
    """Windows of `length` consecutive rows every `step` rows: (windows, length, metrics), a view."""
    if len(rows) < length:
        return np.empty((0, length, rows.shape[1]))
    return np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)[::step].transpose(0, 2, 1)


def _band_shares(centred: Floats, moves: npt.NDArray[np.bool_]) -> list[Floats]:
    power = np.abs(np.fft.rfft(centred, axis=1)[:, 1:, :]) ** 2
    total = power.sum(axis=1)
    safe = np.where(moves & (total > 0), total, np.inf)
    return [part.sum(axis=1) / safe for part in np.array_split(power, BANDS, axis=1)]
