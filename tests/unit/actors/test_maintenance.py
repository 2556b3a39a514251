"""Maintenance windows: which devices at which times."""

from typing import Any

import msgspec
import pytest

from sensorium.actors.containment import contains
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.maintenance import Maintenance, Windows, validate_maintenance

NOON_MS = 1_704_110_400_000
"""2024-01-01T12:00:00Z, a Monday."""
HOUR_MS = 3_600_000


def window(**spec: Any) -> Maintenance:
    return msgspec.convert({"name": "works", **spec}, Maintenance)


@pytest.mark.parametrize(
    ("spec", "quiet"),
    [
        ({"until_ms": NOON_MS + 1}, True),
        ({"until_ms": NOON_MS}, False),
        ({"from_ms": NOON_MS, "until_ms": NOON_MS + 1}, True),
        ({"from_ms": NOON_MS + 1, "until_ms": NOON_MS + 2}, False),
        ({"weekly": {"type": "schedule", "days": ["mon"], "start": "11:00", "end": "13:00"}}, True),
        ({"weekly": {"type": "schedule", "days": ["tue"]}}, False),
        ({"until_ms": NOON_MS + 1, "enabled": False}, False),
        ({"until_ms": NOON_MS + 1, "device_ids": ["a", "d"]}, True),
        ({"until_ms": NOON_MS + 1, "device_ids": ["a"]}, False),
        ({"until_ms": NOON_MS + 1, "device_type": "pump"}, True),
        ({"until_ms": NOON_MS + 1, "device_type": "tank"}, False),
        ({"until_ms": NOON_MS + 1, "metadata": {"group": "hall 3"}}, True),
        ({"until_ms": NOON_MS + 1, "metadata": {"group": "hall 4"}}, False),
    ],
)
def test_it_is_quiet_when_all_holds(spec: dict[str, Any], quiet: bool) -> None:
    reason = Windows([window(**spec)]).reason("d", "pump", {"group": "hall 3", "x": 1}, NOON_MS)
    assert reason == ("maintenance: works" if quiet else None)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, "until_ms: give an end"),
        ({"from_ms": 2, "until_ms": 2}, "until_ms: must be later"),
        ({"weekly": {"type": "schedule", "timezone": "Moon/Sea"}}, "weekly.timezone: no time zone"),
        ({"weekly": {"type": "schedule", "start": "24:00"}}, "weekly.start"),
        ({"weekly": {"type": "schedule", "holidays": ["2024-02-30"]}}, r"weekly.holidays\[0\]"),
    ],
)
def test_what_never_comes_is_refused(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        validate_maintenance(window(**spec))


def test_json_contains_json() -> None:
    assert contains({"a": {"b": [1, {"c": 2, "d": 3}]}, "e": 1}, {"a": {"b": [{"c": 2}]}})
    assert not contains({"a": 1}, {"a": True})
    assert not contains({"a": "x"}, {"a": {"b": 1}})
    assert not contains({"a": [1]}, {"a": [2]})
