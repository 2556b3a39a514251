"""Fitting what needs scikit-learn: the regression over windows before failures. Never in a host.

Needs the extra `models`.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.features import Floats

MIN_POSITIVE: Final = 10
"""Windows before failures, below which nothing is to be learnt."""
VALIDATION_SHARE: Final = 0.25
"""The last windows of each device's time, by which the fit is judged."""


class Fit(NamedTuple):
    """A fitted pipeline of StandardScaler and LogisticRegression, and how well it did on later windows."""

    pipeline: Any
    scores: dict[str, float]


def need_scikit_learn() -> None:
    """Raises `InvalidMessage` where the extra is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InvalidMessage("models need the extra `models`: pip install 'sensorium[models]'") from error


def fit_failure(features: Floats, labels: npt.NDArray[np.bool_], later: npt.NDArray[np.bool_]) -> Fit:
    """Fit on the windows that are not `later`, judge by those that are, and then fit on all.

    Args:
        labels: whether the window is one before a failure.

    Raises:
        InvalidMessage: there are too few windows of either kind, or the extra is not installed.
    """
    need_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    positive = int(labels.sum())
    if positive < MIN_POSITIVE or len(labels) - positive < MIN_POSITIVE:
        raise InvalidMessage(
            f"{positive} windows before failures and {len(labels) - positive} others:"
            f" at least {MIN_POSITIVE} of each are needed"
        )

    def fitted(x: Floats, y: npt.NDArray[np.bool_]) -> Any:
        # Failures are rare: their windows weigh as much as all others together.
        regression = LogisticRegression(class_weight="balanced", C=0.1, max_iter=500)
        return make_pipeline(StandardScaler(), regression).fit(x, y)

    scores = {"windows": float(len(labels)), "windows_before_failures": float(positive)}
    early, late = ~later, later
    if len(set(labels[early])) == 2 and labels[late].any():
        found = fitted(features[early], labels[early]).predict(features[late])
        hits = int((found & labels[late]).sum())
        scores["validation_precision"] = hits / max(1, int(found.sum()))
        scores["validation_recall"] = hits / int(labels[late].sum())
    return Fit(fitted(features, labels), scores)
