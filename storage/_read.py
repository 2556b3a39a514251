"""Rows of the read models as the values of `actors`: which columns to select, and what they become."""

from typing import Any, Final

import asyncpg
import msgspec

from sensorium.actors.messages import Location
from sensorium.actors.records import Alarm, Command, Registration, TwinState

DEVICE_COLUMNS: Final = (
    "device_id, device_type, status, location, metadata, registered_at, updated_at, isolation"
)
ALARM_COLUMNS: Final = (
    "alarm_id, device_id, device_type, rule_id, rule_name, rule_version, severity, state, metric, value,"
    " detail, start_at, acknowledged, end_at, end_value, end_reason, acknowledged_at, acknowledged_by,"
    " assignee, shelved_until, escalated, changed_at, met, readings, last_met_at, last_reading_at"
)


def registration_of(row: asyncpg.Record) -> Registration:
    """From `DEVICE_COLUMNS`."""
    device_id, device_type, status, location, metadata, registered_ms, updated_ms, isolation = row
    return Registration(
        *(device_id, device_type, status),
        None if location is None else msgspec.convert(location, Location),
        *(metadata, registered_ms, updated_ms, isolation),
    )


def command_of(body: Any) -> Command:
    """From the column `body` of `commands`."""
    return msgspec.convert(body, Command)


def twin_of(body: str) -> TwinState:
    """From the column `body` of `twins`."""
    return msgspec.json.decode(body, type=TwinState)


def alarm_of(row: asyncpg.Record) -> Alarm:
    """From `ALARM_COLUMNS`, which stand in the order of the fields."""
    alarm = Alarm(*row)
    return msgspec.structs.replace(alarm, value=_value(alarm.value), end_value=_value(alarm.end_value))


def _value(value: Any) -> Any:
    """A metric's value from JSON, where 1.0 and 1 are one."""
    return float(value) if type(value) is int else value
