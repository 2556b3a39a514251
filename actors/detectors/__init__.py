"""Streaming anomaly detectors: one metric of one device, reading by reading, in constant memory."""

from sensorium.actors.detectors.catalogue import make_detector
from sensorium.actors.detectors.ensemble import EnsembleDetector
from sensorium.actors.detectors.flatline import FlatlineDetector
from sensorium.actors.detectors.levelshift import LevelShiftDetector
from sensorium.actors.detectors.peers import PeerScore, compare_peers
from sensorium.actors.detectors.quantile import P2Quantile
from sensorium.actors.detectors.robust import RobustDetector
from sensorium.actors.detectors.score import AnomalySeverity, Detector, Score, State
from sensorium.actors.detectors.seasonal import DAY_MS, WEEK_MS, SeasonalDetector
from sensorium.actors.detectors.spectral import SpectralDetector
from sensorium.actors.detectors.zscore import ZScoreDetector

__all__ = [
    "DAY_MS",
    "WEEK_MS",
    "AnomalySeverity",
    "Detector",
    "EnsembleDetector",
    "FlatlineDetector",
    "LevelShiftDetector",
    "P2Quantile",
    "PeerScore",
    "RobustDetector",
    "Score",
    "SeasonalDetector",
    "SpectralDetector",
    "State",
    "ZScoreDetector",
    "compare_peers",
    "make_detector",
]
