"""Rules as the API's document shows them. They are real: a test sends each of them."""

from typing import Any, Final

RULE_SPECS: Final[dict[str, Any]] = {
    "threshold": {
        "name": "Too hot",
        "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 80},
        "severity": "critical",
        "scope": {"device_type": "temperature"},
    },
    "range": {
        "name": "Out of range",
        "condition": {"type": "range", "metric": "humidity", "low": 20, "high": 70},
    },
    "rate of change": {
        "name": "Draining",
        "condition": {"type": "rate_of_change", "metric": "level_pct", "value": 0.5, "direction": "down"},
        "severity": "major",
    },
    "z-score": {
        "name": "Unusual vibration",
        "condition": {"type": "z_score", "metric": "rms_velocity", "value": 4, "min_count": 60},
        "severity": "minor",
        "scope": {"device_id": "pump-7"},
    },
    "held for a while, with hysteresis": {
        "name": "Hot for two minutes",
        "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 80},
        "for_s": 120,
        "clear": {"type": "threshold", "metric": "temperature", "operator": "<", "value": 75},
        "severity": "major",
    },
    "compound": {
        "name": "Hot behind a closed door",
        "condition": {
            "type": "all",
            "conditions": [
                {"type": "threshold", "metric": "temperature", "operator": ">", "value": 80},
                {
                    "type": "not",
                    "condition": {
                        "type": "threshold",
                        "metric": "door_open",
                        "operator": "==",
                        "value": True,
                    },
                },
            ],
        },
    },
    "any of several": {
        "name": "Electrical trouble",
        "condition": {
            "type": "any",
            "conditions": [
                {"type": "range", "metric": "voltage", "low": 207, "high": 253},
                {"type": "threshold", "metric": "current", "operator": ">", "value": 60},
            ],
        },
    },
    "not": {
        "name": "Pump not running",
        "condition": {
            "type": "not",
            "condition": {"type": "threshold", "metric": "running", "operator": "==", "value": True},
        },
    },
    "no data": {
        "name": "Silent",
        "condition": {"type": "no_data", "after_s": 900},
        "severity": "major",
        "scope": {"device_type": "tank-level"},
    },
    "window": {
        "name": "Warm on average",
        "condition": {
            "type": "window",
            "metric": "temperature",
            "function": "mean",
            "operator": ">",
            "value": 60,
            "window_s": 3600,
        },
    },
    "limit of the device's own": {
        "name": "Above its own limit",
        "condition": {
            "type": "threshold",
            "metric": "pressure",
            "operator": ">",
            "value": {"metadata": "max_pressure", "factor": 0.9},
        },
        "levels": [
            {
                "severity": "critical",
                "condition": {
                    "type": "threshold",
                    "metric": "pressure",
                    "operator": ">",
                    "value": {"metadata": "max_pressure"},
                },
            }
        ],
    },
    "escalating": {
        "name": "Leaking",
        "condition": {"type": "threshold", "metric": "leak", "operator": "==", "value": True},
        "severity": "minor",
        "escalation": [
            {"after_s": 600, "severity": "major"},
            {"after_s": 1800, "severity": "critical"},
        ],
    },
    "several times": {
        "name": "Trips again and again",
        "condition": {"type": "change", "metric": "breaker", "after": "open"},
        "times": {"count": 3, "within_s": 3600},
    },
    "at night": {
        "name": "Door opened at night",
        "condition": {
            "type": "all",
            "conditions": [
                {"type": "threshold", "metric": "door_open", "operator": "==", "value": True},
                {"type": "schedule", "timezone": "Europe/Berlin", "start": "20:00", "end": "06:00"},
            ],
        },
    },
    "with actions": {
        "name": "Too hot to go on",
        "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 95},
        "severity": "critical",
        "actions": [
            {"type": "command", "command": "fan", "parameters": {"speed": "full"}},
            {"type": "mqtt", "topic": "alarms/{severity}/{device_id}", "on": ["raised", "cleared"]},
            {"type": "email", "to": ["oncall@example.com"], "subject": "{rule_name} at {device_id}"},
        ],
        "limits": {"per_device": {"count": 5, "within_s": 3600}},
    },
    "odd": {
        "name": "Pump sounds odd",
        "condition": {"type": "anomaly", "metric": "rms_velocity", "score": 0.8},
        "severity": "minor",
    },
    "derived metric": {
        "name": "Efficiency of pumps",
        "condition": {"type": "always"},
        "scope": {"device_type": "pump"},
        "actions": [
            {"type": "derive", "metric": "efficiency", "formula": "flow * head / (power * 367)"},
            {"type": "derive", "metric": "flow_trend", "formula": "avg(flow, '15m') - avg(flow, '6h')"},
        ],
    },
    "formula": {
        "name": "Loses more than a tenth",
        "condition": {
            "type": "formula",
            "formula": "(flow_in - flow_out) / flow_in",
            "operator": ">",
            "value": 0.1,
        },
    },
    "left the yard": {
        "name": "Left the yard",
        "condition": {
            "type": "geofence",
            "circle": {"latitude": 52.52, "longitude": 13.405, "radius_m": 500},
            "when": "leave",
        },
    },
}
WRITTEN_RULES: Final[dict[str, Any]] = {
    "an expression": {
        "name": "Hot and dry",
        "expression": "temperature > 30 and avg(humidity, '15m') < 40 for '5m'",
        "clear": "temperature < 28",
        "severity": "major",
    },
    "an expression with arithmetic": {
        "name": "Loses more than a tenth",
        "expression": "(flow_in - flow_out) / flow_in > 0.1 for '10m'",
    },
    "an expression with the device's own limit": {
        "name": "Above nine tenths of its limit",
        "expression": "pressure > 0.9 * metadata.max_pressure 3 times within '10m'",
    },
}
