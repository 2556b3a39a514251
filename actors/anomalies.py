"""An anomaly as it is told and stored: an episode of odd readings."""

import msgspec

from sensorium.actors.models.info import Contribution


class Anomaly(msgspec.Struct, frozen=True):
    """Readings of a metric that a detector found odd: an episode, from the first of them to the last.

    Attributes:
        anomaly_id: deterministic: the same device, metric, detector and start give the same id.
        severity: by the peak: "warning", "major" or "critical".
        score: of the peak, 0 to 1.
        value, expected: at the peak, what was read and what the detector had expected.
        readings: how many were odd.
        start_ms, peak_ms, end_ms: event times of the first, the oddest and the last of them; `end_ms` is None
            while it goes on.
        end_reason: "quiet", "gap", "detector_removed" or "device_decommissioned".
        peers: for the detector "peers", how many devices it was compared with.
        explanation: for a model, whose detector is "model:NAME@VERSION", what spoke most for it at the peak.
    """

    anomaly_id: str
    device_id: str
    device_type: str
    metric: str
    detector: str
    severity: str
    score: float
    value: float
    expected: float
    readings: int
    start_ms: int
    peak_ms: int
    end_ms: int | None = None
    end_reason: str | None = None
    peers: int | None = None
    explanation: tuple[Contribution, ...] | None = None
