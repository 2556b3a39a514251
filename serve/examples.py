"""The examples in the API's document. They are real: a test sends and decodes each of them."""

from typing import Any, Final

from sensorium.serve.rule_examples import RULE_SPECS as RULE_SPECS
from sensorium.serve.rule_examples import WRITTEN_RULES as WRITTEN_RULES

_TIME_MS: Final = 1_704_110_400_000

REGISTER: Final[dict[str, Any]] = {
    "sensor": {
        "device_id": "sensor-001",
        "device_type": "temperature",
        "location": {"latitude": 52.52, "longitude": 13.405, "address": "Hall 3, Berlin"},
        "metadata": {"site": "a", "floor": 3},
    },
    "least": {"device_id": "sensor-002", "device_type": "temperature"},
}
PATCH: Final[dict[str, Any]] = {
    "move": {"location": {"address": "Hall 4, Berlin"}, "metadata": {"floor": 4}},
    "remove a key": {"metadata": {"floor": None}},
    "a process of its own": {"isolation": "process"},
}
DEVICE: Final[dict[str, Any]] = {
    **REGISTER["sensor"],
    "status": "active",
    "registered_ms": _TIME_MS,
    "updated_ms": _TIME_MS,
    "last_seen_ms": _TIME_MS + 60_000,
    "connectivity": "online",
    "active_alarms": 0,
    "isolation": "shared",
    "isolation_by": "profile",
    "process": None,
}
DEVICES: Final[dict[str, Any]] = {
    "items": [
        {
            **REGISTER["sensor"],
            "status": "active",
            "registered_ms": _TIME_MS,
            "updated_ms": _TIME_MS,
            "isolation": None,
        }
    ],
    "next": None,
}
TELEMETRY: Final[dict[str, Any]] = {
    "one": {"temperature": 23.5, "humidity": 45.2, "timestamp": "2024-01-01T12:00:00Z"},
    "many": [
        {"temperature": 23.5, "timestamp": _TIME_MS},
        {"temperature": 23.7, "door_open": True, "timestamp": _TIME_MS + 1000},
    ],
}
INGESTED: Final[dict[str, Any]] = {
    "accepted": 1,
    "duplicates": 0,
    "results": [{"status": "accepted"}],
    "refused": 0,
}
DUPLICATES: Final[dict[str, Any]] = {
    "accepted": 0,
    "duplicates": 1,
    "results": [{"status": "duplicate"}],
    "refused": 0,
}
REPLAYED: Final[dict[str, Any]] = {"id": 4711, "status": "accepted"}
REPLAYED_LETTERS: Final[dict[str, Any]] = {
    "replayed": 12,
    "stay": {"4711": "unregistered: no device sensor-009 is registered"},
}
PARTLY: Final[dict[str, Any]] = {
    "accepted": 1,
    "duplicates": 0,
    "results": [
        {"status": "accepted"},
        {"status": "refused", "code": "unregistered", "detail": "no device sensor-002 is registered"},
    ],
    "refused": 1,
}
BULK: Final[dict[str, Any]] = {
    "of a gateway": [
        {"device_id": "sensor-001", "data": {"temperature": 23.5, "timestamp": "2024-01-01T12:00:00Z"}},
        {"device_id": "sensor-002", "data": [{"humidity": 45.2}, {"humidity": 45.3}]},
    ]
}
LATEST: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "device_type": "temperature",
    "metrics": {
        "temperature": {"value": 23.5, "time_ms": _TIME_MS, "quality": "good"},
        "humidity": {"value": 45.2, "time_ms": _TIME_MS, "quality": "good"},
    },
}
WINDOW: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "metric": "temperature",
    "start_ms": _TIME_MS - 840_000,
    "end_ms": _TIME_MS + 60_000,
    "count": 2,
    "sum": 47.2,
    "mean": 23.6,
    "stddev": 0.1,
    "min": 23.5,
    "max": 23.7,
    "first": 23.5,
    "last": 23.7,
}
READINGS: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "items": [
        {
            "time_ms": _TIME_MS,
            "values": {"temperature": 23.5, "humidity": 45.2},
            "late": False,
            "quality": "good",
        }
    ],
    "next": None,
}
AGGREGATES: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "aggregation": "mean",
    "interval_s": 3600,
    "items": [{"start_ms": _TIME_MS, "values": {"temperature": 23.6}}],
    "source": "1h",
    "approximate": False,
    "timezone": None,
}
SERIES: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "source": "raw",
    "items": [{"metric": "temperature", "points": [[_TIME_MS, 23.5], [_TIME_MS + 60_000, 24.0]]}],
}
GROUPED_AGGREGATE: Final[dict[str, Any]] = {
    "group_by": "metadata.site",
    "metric": "temperature",
    "aggregation": "mean",
    "interval_s": 3600,
    "groups": [
        {
            "group": "north",
            "devices": 17,
            "items": [{"start_ms": _TIME_MS, "value": 22.8, "devices": 17}],
            "source": "1h",
        }
    ],
    "timezone": None,
}
TYPE_AGGREGATE: Final[dict[str, Any]] = {
    "device_type": "temperature",
    "metric": "temperature",
    "aggregation": "mean",
    "interval_s": 3600,
    "items": [{"start_ms": _TIME_MS, "value": 22.8, "devices": 17}],
    "source": "mixed",
    "approximate": False,
    "timezone": None,
}
RULE: Final[dict[str, Any]] = {
    "rule_id": "0198a6f2c1d47a3e",
    "version": 1,
    "spec": {
        **RULE_SPECS["threshold"],
        "description": "",
        "for_s": 0.0,
        "times": None,
        "clear": None,
        "levels": [],
        "escalation": [],
        "actions": [],
        "limits": {
            "per_rule": None,
            "per_device": None,
            "repeat_s": 0.0,
            "storm": {"count": 20, "within_s": 60.0},
        },
        "expression": "",
        "enabled": True,
    },
    "created_ms": _TIME_MS,
    "updated_ms": _TIME_MS,
}
SAVED_RULE: Final[dict[str, Any]] = {
    **RULE,
    "warnings": [
        {
            "detail": "no device of the scope (device_type temperature) has sent a metric temprature; was "
            "temperature meant?",
            "pointer": "#/condition/metric",
        }
    ],
}
ALARM: Final[dict[str, Any]] = {
    "alarm_id": "5f0c1d3e9a7b4c2d8e6f0a1b2c3d4e5f",
    "device_id": "sensor-001",
    "device_type": "temperature",
    "rule_id": RULE["rule_id"],
    "rule_name": "Too hot",
    "rule_version": 1,
    "severity": "critical",
    "state": "ACTIVE",
    "metric": "temperature",
    "value": 81.5,
    "detail": "temperature > 80.0",
    "start_ms": _TIME_MS,
    "acknowledged": False,
    "end_ms": None,
    "end_value": None,
    "end_reason": None,
    "acknowledged_ms": None,
    "acknowledged_by": None,
    "assignee": None,
    "shelved_until_ms": None,
    "escalated": 0,
    "changed_ms": None,
    "met": 14,
    "readings": 15,
    "last_met_ms": _TIME_MS + 78_000,
    "last_reading_ms": _TIME_MS + 84_000,
}
ALARM_LIFE: Final[dict[str, Any]] = {
    "items": [
        {"time_ms": _TIME_MS, "kind": "alarm_raised", "body": ALARM},
        {
            "time_ms": _TIME_MS + 90_000,
            "kind": "alarm_ack",
            "body": {"alarm_id": ALARM["alarm_id"], "by": "ada"},
        },
    ]
}
ALARM_ACTIONS: Final[dict[str, dict[str, Any]]] = {
    "ack": {"by": "ada"},
    "unack": {"by": "ada"},
    "assign": {"by": "ada", "assignee": "grace"},
    "comment": {"by": "grace", "text": "Fan replaced."},
    "shelve": {"by": "ada", "for_s": 3600},
    "unshelve": {"by": "ada"},
}
ALARMS: Final[dict[str, Any]] = {"items": [ALARM], "next": None}
DEAD_LETTERS: Final[dict[str, Any]] = {
    "items": [
        {
            "id": 42,
            "received_ms": _TIME_MS,
            "device_id": "sensor-001",
            "source": "mqtt",
            "address": "devices/sensor-001/telemetry",
            "reason": "malformed_json",
            "detail": "Input data was truncated",
            "size_bytes": 12,
            "payload": '{"temperatur',
            "payload_encoding": "utf-8",
        }
    ],
    "next": None,
}

COMMANDS: Final[dict[str, Any]] = {
    "wait for the answer": {
        "command": "set_interval",
        "parameters": {"seconds": 10},
        "timeout_s": 30,
        "retries": 2,
        "wait_s": 5,
    },
    "once, whatever happens": {"command": "open", "idempotency_key": "order-4711"},
    "least": {"command": "reboot"},
}
COMMAND_QUEUED: Final[dict[str, Any]] = {
    "command_id": "018cc251f400a1b2c3d4e5f60718293a",
    "device_id": "sensor-001",
    "command": "set_interval",
    "parameters": {"seconds": 10},
    "state": "QUEUED",
    "created_ms": _TIME_MS,
    "updated_ms": _TIME_MS,
    "timeout_ms": 30_000,
    "expires_ms": _TIME_MS + 86_400_000,
    "number": 17,
    "retries": 2,
    "attempt": 0,
    "ready": True,
    "due_ms": None,
    "reason": None,
    "result": None,
    "job_id": None,
    "steps": [{"state": "QUEUED", "time_ms": _TIME_MS}],
    "downlink": "mqtt",
}
COMMAND: Final[dict[str, Any]] = {
    **COMMAND_QUEUED,
    "state": "SUCCEEDED",
    "updated_ms": _TIME_MS + 21,
    "attempt": 1,
    "ready": False,
    "result": {"seconds": 10},
    "steps": [
        {"state": "QUEUED", "time_ms": _TIME_MS},
        {"state": "SENT", "time_ms": _TIME_MS + 6, "attempt": 1},
        {"state": "SUCCEEDED", "time_ms": _TIME_MS + 21, "attempt": 1},
    ],
}
COMMAND_CANCELLED: Final[dict[str, Any]] = {
    **COMMAND_QUEUED,
    "state": "CANCELLED",
    "updated_ms": _TIME_MS + 900,
    "ready": False,
    "reason": "cancelled",
    "steps": [
        {"state": "QUEUED", "time_ms": _TIME_MS},
        {"state": "CANCELLED", "time_ms": _TIME_MS + 900, "reason": "cancelled"},
    ],
}
COMMAND_PAGE: Final[dict[str, Any]] = {"items": [COMMAND], "next": None}
BACKTESTS: Final[dict[str, Any]] = {
    "a looser rule": {
        "rule": {
            "name": "Hot for two minutes",
            "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 80},
            "for_s": 120,
        },
        "since": "30d",
        "select": {"device_type": "temperature"},
    },
    "an expression": {
        "rule": {"name": "Hot", "expression": "temperature > 80 for '2m'"},
        "since": "2023-12-01T00:00:00Z",
        "until": "2024-01-01T12:00:00Z",
    },
}
_TRIED: Final[dict[str, Any]] = {
    "draft": {"alarms": 1, "active_s": 180.0, "devices": 1},
    "present": {"alarms": 2, "active_s": 240.0, "devices": 1},
    "new": 0,
    "gone": 1,
    "stays": 1,
}
BACKTEST: Final[dict[str, Any]] = {
    "type": "result",
    "start_ms": _TIME_MS - 86_400_000,
    "end_ms": _TIME_MS,
    "devices": 12,
    "readings": 17_280,
    **_TRIED,
    "by_device": [{"device_id": "sensor-001", "readings": 1440, **_TRIED, "listed": []}],
    "alarms": [
        {
            "device_id": "sensor-001",
            "change": "gone",
            "severity": "major",
            "metric": "temperature",
            "value": 80.5,
            "start_ms": _TIME_MS - 3_600_000,
            "end_ms": _TIME_MS - 3_540_000,
        }
    ],
    "more": False,
}

EVENTS: Final[dict[str, Any]] = {
    "items": [
        {"time_ms": _TIME_MS + 90_000, "kind": "offline", "body": {}},
        {"time_ms": _TIME_MS, "kind": "online", "body": {}},
    ],
    "next": None,
}

CONNECTIONS: Final[dict[str, Any]] = {
    "items": [
        {"time_ms": _TIME_MS + 90_000, "online": False},
        {"time_ms": _TIME_MS, "online": True},
    ],
    "next": None,
}

TWIN_PATCHES: Final[dict[str, Any]] = {
    "one value": {"interval_s": 10},
    "and one gone": {"interval_s": 10, "display": {"brightness": None}},
}
TWIN_CHANGES: Final[dict[str, Any]] = {"what is desired": {"desired": {"interval_s": 10}}}
TWIN_DOCUMENT: Final[dict[str, Any]] = {
    "version": 3,
    "values": {"interval_s": 10, "display": {"on": True}},
    "fields": {
        "/interval_s": {"time_ms": _TIME_MS, "by": "api"},
        "/display/on": {"time_ms": _TIME_MS - 86_400_000, "by": "alice"},
    },
    "changed_ms": _TIME_MS,
}
TWIN: Final[dict[str, Any]] = {
    "device_id": "sensor-001",
    "desired": TWIN_DOCUMENT,
    "reported": {
        "version": 7,
        "values": {"interval_s": 60, "display": {"on": True}, "firmware": "1.4.2"},
        "fields": {
            "/interval_s": {"time_ms": _TIME_MS - 3_600_000, "by": "mqtt"},
            "/display/on": {"time_ms": _TIME_MS - 3_600_000, "by": "mqtt"},
            "/firmware": {"time_ms": _TIME_MS - 3_600_000, "by": "mqtt"},
        },
        "changed_ms": _TIME_MS - 3_600_000,
    },
    "delta": {"interval_s": 10},
    "told_version": 3,
}
TWIN_CHANGE_PAGE: Final[dict[str, Any]] = {
    "items": [
        {
            "document": "desired",
            "version": 3,
            "time_ms": _TIME_MS,
            "by": "api",
            "patch": {"interval_s": 10, "display": {"brightness": None}},
        }
    ],
    "next": None,
}

BULK_COMMANDS: Final[dict[str, Any]] = {
    "of a type and a place": {
        "command": "set_interval",
        "parameters": {"seconds": 10},
        "select": {"device_type": "climate", "metadata": {"site": "a"}},
        "per_second": 20,
    },
    "to these": {"command": "reboot", "select": {"device_ids": ["sensor-001", "sensor-002"]}},
}
BULK_TWINS: Final[dict[str, Any]] = {
    "of a type": {"desired": {"interval_s": 10}, "select": {"device_type": "climate"}, "by": "alice"},
}
_BULK_JOB: Final[dict[str, Any]] = {
    "job_id": "7f3a0c52d1e84b6f9a0b1c2d3e4f5061",
    "kind": "command",
    "state": "RUNNING",
    "created_ms": _TIME_MS,
    "total": 500,
    "per_second": 20.0,
    "spec": {
        "command": "set_interval",
        "parameters": {"seconds": 10},
        "timeout_ms": 30_000,
        "expires_ms": _TIME_MS + 86_400_000,
        "retries": 0,
    },
}
BULK_STATUS: Final[dict[str, Any]] = {
    **_BULK_JOB,
    "pending": 380,
    "given": 119,
    "refused": 1,
    "cancelled": 0,
    "commands": {"SUCCEEDED": 112, "SENT": 5, "FAILED": 2},
    "finished": False,
    "failures": [
        {
            "device_id": "climate-0007",
            "state": "refused",
            "reason": "conflict: decommissioned",
        },
        {"device_id": "climate-0012", "state": "FAILED", "reason": "stuck"},
    ],
}
BULK_PAGE: Final[dict[str, Any]] = {"items": [_BULK_JOB], "next": None}
BULK_DEVICES: Final[dict[str, Any]] = {
    "items": [
        {
            "device_id": "climate-0001",
            "state": "given",
            "reason": None,
            "command_id": "018cc251f400a1b2c3d4e5f60718293a",
            "command_state": "SUCCEEDED",
        }
    ],
    "next": None,
}
