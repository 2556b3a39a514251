"""Rows to store, told apart by few arguments."""

from sensorium.actors.messages import Value
from sensorium.actors.metrics import MetricSet, kind_of, metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Alarm, Anomaly, EventRow, ReadingRow, Registration, Snapshot

NOON_MS = 1_704_110_400_000
"""2024-01-01T12:00:00Z."""


def set_of(**values: Value) -> MetricSet:
    return metric_set(tuple(values), "".join(map(kind_of, values.values())))


def reading(device_id: str, offset: int, time_ms: int = NOON_MS, key: int = 1, **values: Value) -> ReadingRow:
    values = values or {"temperature": 20.5}
    device, shard = device_key(device_id), shard_of(device_id)
    return ReadingRow(shard, offset, device, time_ms, key, 0, set_of(**values), list(values.values()))


def event(
    device_id: str, offset: int, kind: str = "registered", body: bytes = b"{}", retention_class: int = 0
) -> EventRow:
    return EventRow(shard_of(device_id), offset, device_key(device_id), NOON_MS, kind, body, retention_class)


def registration(device_id: str, device_type: str = "pump", **metadata: object) -> Registration:
    return Registration(device_id, device_type, "active", None, metadata, NOON_MS, NOON_MS)


def alarm(alarm_id: str, device_id: str, state: str = "ACTIVE", **other: object) -> Alarm:
    fields: dict[str, object] = {
        "device_type": "pump",
        "rule_id": "r1",
        "rule_name": "hot",
        "rule_version": 1,
        "severity": "major",
        "metric": "temperature",
        "value": 99.0,
        "detail": "temperature > 90",
        "start_ms": NOON_MS,
    }
    return Alarm(alarm_id=alarm_id, device_id=device_id, state=state, **(fields | other))  # type: ignore[arg-type]


def snapshot(device_id: str, offset: int, replay_from_ms: int | None = None, state: bytes = b"s") -> Snapshot:
    return Snapshot(device_key(device_id), shard_of(device_id), offset, replay_from_ms, state)


def anomaly(number: int, device_id: str = "a1", **fields: object) -> Anomaly:
    plain = {
        "anomaly_id": f"{number:032x}",
        "device_id": device_id,
        "device_type": "pump",
        "metric": "t",
        "detector": "ensemble",
        "severity": "warning",
        "score": 0.6,
        "value": 30.5,
        "expected": 20.0,
        "readings": 1,
        "start_ms": NOON_MS + number * 3_600_000,
        "peak_ms": NOON_MS + number * 3_600_000,
    }
    return Anomaly(**{**plain, **fields})  # type: ignore[arg-type]
