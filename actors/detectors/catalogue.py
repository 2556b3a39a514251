"""The detectors by the names that profiles and rules know them by."""

from collections.abc import Callable
from typing import Final

from sensorium.actors.detectors.ensemble import EnsembleDetector
from sensorium.actors.detectors.flatline import FlatlineDetector
from sensorium.actors.detectors.levelshift import LevelShiftDetector
from sensorium.actors.detectors.robust import RobustDetector
from sensorium.actors.detectors.score import Detector
from sensorium.actors.detectors.seasonal import WEEK_MS, SeasonalDetector
from sensorium.actors.detectors.spectral import SpectralDetector
from sensorium.actors.detectors.zscore import ZScoreDetector
from sensorium.actors.profile import DetectorSpec

_WITH_LIMIT: Final[dict[str, Callable[..., Detector]]] = {
    "zscore": ZScoreDetector,
    "robust": RobustDetector,
    "level_shift": LevelShiftDetector,
    "seasonal": SeasonalDetector,
    "spectral": SpectralDetector,
    "flatline": FlatlineDetector,
}


def make_detector(spec: DetectorSpec) -> Detector:
    """An empty one, as the profile wants it."""
    if spec.detector == EnsembleDetector.NAME:
        return EnsembleDetector()
    settings: dict[str, float | int] = {} if spec.limit is None else {"limit": spec.limit}
    if spec.period == "week":
        settings |= {"period_ms": WEEK_MS, "bins": 168}
    return _WITH_LIMIT[spec.detector](**settings)
