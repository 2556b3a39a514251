"""What the API's document shows of actions, as it would be answered."""

from typing import Any, Final

_AT_MS: Final = 1_767_225_600_000

WEBHOOK_BODIES: Final[dict[str, Any]] = {
    "signed": {"url": "https://hooks.example.com/sensorium", "secret": "at-least-16-characters"},
    "patient": {"url": "https://hooks.example.com/", "timeout_s": 30, "max_attempts": 20},
}
WEBHOOK: Final[dict[str, Any]] = {
    "name": "pager",
    "url": "https://hooks.example.com/***",
    "signed": True,
    "timeout_s": 10.0,
    "max_attempts": 12,
    "max_body_bytes": 65_536,
    "enabled": True,
    "updated_ms": _AT_MS,
}


def delivery(alarm: dict[str, Any]) -> dict[str, Any]:
    """A delivery about this alarm."""
    name = "5f1c2a9be0d34c7f8a6b1d2e3f405162"
    return {
        "delivery_id": name,
        "state": "DELIVERED",
        "queue": "webhook:pager",
        "kind": "webhook",
        "rule_id": alarm["rule_id"],
        "rule_version": alarm["rule_version"],
        "alarm_id": alarm["alarm_id"],
        "device_id": alarm["device_id"],
        "transition": "raised",
        "created_ms": _AT_MS,
        "due_ms": _AT_MS,
        "finished_ms": _AT_MS + 84,
        "attempts": 1,
        "reason": None,
        "summary_id": None,
        "action": {"type": "webhook", "target": "pager", "on": ["raised", "cleared"]},
        "content": {"id": name, "transition": "raised", "time_ms": alarm["start_ms"], "alarm": alarm},
    }


def why_example(alarm: dict[str, Any], spec: dict[str, Any], life: dict[str, Any]) -> dict[str, Any]:
    """Why there is this alarm."""
    return {
        "alarm": alarm,
        "rule": {
            "rule_id": alarm["rule_id"],
            "version": alarm["rule_version"],
            "spec": spec,
            "changed_ms": _AT_MS,
            "changed_by": "ada",
        },
        "decoder": {
            "way_in": "chirpstack",
            "format": "javascript",
            "codec": "dragino-lht65",
            "version": "9f2c41d07be6",
        },
        "readings": [
            {
                "time_ms": alarm["start_ms"],
                "values": {alarm["metric"]: alarm["value"]},
                "late": False,
                "quality": "good",
            }
        ],
        "windows": [{"metric": alarm["metric"], "function": "mean", "window_s": 900.0, "value": 61.5}],
        "events": life["items"],
        "actions": [delivery(alarm)],
        "commands": [],
    }
