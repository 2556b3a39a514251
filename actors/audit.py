"""What the audit log is told of a turn that somebody asked for: the part of the device that it changed."""

from typing import Any, Final

import msgspec

from sensorium.actors.device import Device, Surroundings
from sensorium.actors.erasure import erase
from sensorium.actors.messages import (
    ActOnAlarm,
    CancelCommand,
    ChangeTwin,
    Decommission,
    Duplicate,
    EraseData,
    Message,
    Outcome,
    Patch,
    Refusal,
    Register,
    SendCommand,
)
from sensorium.actors.records import AuditRow, Commit

Asked = Register | Patch | Decommission | SendCommand | CancelCommand | ActOnAlarm | ChangeTwin | EraseData
"""Messages that have an origin."""

_WHAT: Final[dict[type, str]] = {
    Register: "device.register",
    Patch: "device.change",
    Decommission: "device.retire",
    SendCommand: "command.send",
    CancelCommand: "command.cancel",
    ChangeTwin: "twin.change",
    EraseData: "device.erase",
}


def handle(device: Device, message: Message, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
    """The turn of any message but a reading."""
    if isinstance(message, EraseData):
        return erase(device, message, now_ms, around, effects)
    return device.handle(message, now_ms, around, effects)


def handle_audited(
    device: Device, message: Asked, now_ms: int, around: Surroundings, effects: Commit
) -> Outcome:
    """`Device.handle`, with a row for the audit log in the same effects when something changed."""
    assert message.origin is not None
    before = _touched(device, message)
    outcome = handle(device, message, now_ms, around, effects)
    if isinstance(outcome, Refusal | Duplicate):
        return outcome
    after = _touched(device, message)
    if before != after or isinstance(message, ActOnAlarm | EraseData):
        effects.audits.append(
            AuditRow(
                device.id,
                now_ms,
                message.origin,
                *_named(device, message),
                msgspec.to_builtins(before),
                msgspec.to_builtins(after),
                _note(message),
            )
        )
    return outcome


def _touched(device: Device, message: Asked) -> Any:
    match message:
        case SendCommand() | CancelCommand():
            return device.commands.open.get(message.command_id)
        case ActOnAlarm():
            return next((a for a in device.alarms.values() if a.alarm_id == message.alarm_id), None)
        case ChangeTwin():
            # What a device reports is its own doing, whoever passes it on.
            return device.twin.desired if message.desired is not None else None
        case _:
            return device.registration


def _named(device: Device, message: Asked) -> tuple[str, str]:
    match message:
        case SendCommand() | CancelCommand():
            return _WHAT[type(message)], message.command_id
        case ActOnAlarm():
            return f"alarm.{message.action}", message.alarm_id
        case _:
            return _WHAT[type(message)], device.id


def _note(message: Asked) -> dict[str, Any]:
    if isinstance(message, EraseData):
        return {"job_id": message.job_id}
    if not isinstance(message, ActOnAlarm):
        return {}
    said = {"by": message.by, "text": message.text, "until_ms": message.until_ms}
    return {name: value for name, value in said.items() if value}
