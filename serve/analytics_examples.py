"""Examples of the analytics pages in the OpenAPI document."""

from typing import Any, Final

_TIME_MS: Final = 1_704_110_400_000

ANOMALIES: Final[dict[str, Any]] = {
    "items": [
        {
            "anomaly_id": "0f4c8f7be2f64a7cb1b4b7a1d1b0c9a3",
            "device_id": "sensor-001",
            "device_type": "climate",
            "metric": "temperature",
            "detector": "ensemble",
            "severity": "critical",
            "score": 0.97,
            "value": 61.5,
            "expected": 21.4,
            "readings": 3,
            "start_ms": _TIME_MS,
            "peak_ms": _TIME_MS + 60_000,
            "end_ms": _TIME_MS + 120_000,
            "end_reason": "quiet",
            "peers": None,
            "explanation": None,
        }
    ],
    "next": None,
}
