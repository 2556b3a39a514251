"""Examples of the pages of measures in the OpenAPI document."""

from typing import Any, Final

from sensorium.actors.data_quality import FORMULA

_END_MS: Final = 1_704_110_400_000
_RANGE: Final = {"start_ms": _END_MS - 7 * 86_400_000, "end_ms": _END_MS}

QUALITY: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    **_RANGE,
    "quality": {
        "score": 0.94,
        "completeness": 0.91,
        "timeliness": 1.0,
        "range": 0.99,
        "flatline": 1.0,
        "drift": 0.82,
        "usual_readings_an_hour": 60.0,
        "missing_hours": 15,
        "metrics": {
            "temperature": {"range": 0.99, "flatline": 1.0, "drift": 0.82, "hours": 153, "change": 1.4}
        },
    },
    "arrivals": {"readings": 9180, "late": 0, "suspect": 12, "median_delay_s": 0.08, "p95_delay_s": 0.4},
    "formula": FORMULA,
}

UPTIME: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    **_RANGE,
    "uptime": {
        "by": "presence",
        "uptime": 0.994,
        "known_s": 604_800.0,
        "online_s": 601_200.0,
        "outages": 1,
        "longest_outage_s": 3600.0,
        "between_failures_s": 601_200.0,
        "to_repair_s": 3600.0,
        "history": [{"start_ms": _END_MS - 7_200_000, "end_ms": _END_MS - 3_600_000, "duration_s": 3600.0}],
    },
}

TRENDS: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "start_ms": _END_MS - 30 * 86_400_000,
    "end_ms": _END_MS,
    "interval_s": 86_400,
    "metrics": [
        {
            "metric": "battery",
            "line": {
                "slope_a_day": -0.5,
                "slope_low": -0.6,
                "slope_high": -0.4,
                "value": 60.0,
                "points": 30,
            },
            "since_ms": _END_MS - 30 * 86_400_000,
            "limit": 10.0,
            "days_left": {"expected": 100.0, "low": 83.3, "high": 125.0},
        }
    ],
}

_TIMES: Final[dict[str, Any]] = {
    "alarms": 12,
    "acknowledged": 9,
    "mean_to_acknowledge_s": 420.0,
    "median_to_acknowledge_s": 300.0,
    "p90_to_acknowledge_s": 900.0,
    "ended": 11,
    "mean_to_end_s": 1800.0,
}
FLEET: Final[dict[str, Any]] = {
    "device_type": "climate",
    **_RANGE,
    "activation": {
        "registered": 1000,
        "activated": 974,
        "rate": 0.974,
        "sent_in_range": 961,
        "registered_in_range": 40,
        "activated_of_those": 31,
        "median_wait_s": 5400.0,
    },
    "alarms": _TIMES,
    "by_severity": {"major": _TIMES},
}

SAVINGS: Final[dict[str, Any]] = {
    "device_type": "pump",
    **_RANGE,
    "energy": {
        "metric": "energy_kwh",
        "used": 5200.0,
        "device_days": 700,
        "baseline_used": 6000.0,
        "baseline_device_days": 720,
        "expected": 5833.3,
        "saved": 633.3,
        "money": 190.0,
        "formula": "expected = baseline_used / baseline_device_days * device_days; saved = expected - used;"
        " money = saved * price",
    },
    "maintenance": {
        "acted": 9,
        "hit_rate": 0.4,
        "cost_unplanned": 5000.0,
        "cost_planned": 800.0,
        "money": 15_120.0,
        "formula": "money = acted * hit_rate * (cost_unplanned - cost_planned);"
        " acted = critical and major alarms raised in the range that people acknowledged",
    },
}
