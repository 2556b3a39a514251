"""An alarm's beginning and end, as values: one a device and rule while it is active."""

from hashlib import blake2b

import msgspec

from sensorium.actors.conditions import describe
from sensorium.actors.messages import ActOnAlarm, Value
from sensorium.actors.records import Alarm, Registration
from sensorium.actors.rules import NoData, Rule, RuleSpec, Severity, worse


def raised(
    rule: Rule,
    device: Registration,
    value: Value,
    time_ms: int,
    severity: Severity,
    *,
    by_reading: bool = True,
) -> Alarm:
    """The alarm that `value` raised. Its id is the same for the same device, rule and start."""
    counts = by_reading and not isinstance(rule.spec.condition, NoData)
    identity = f"{device.device_id}\0{rule.rule_id}\0{time_ms}".encode()
    return Alarm(
        alarm_id=blake2b(identity, digest_size=16).hexdigest(),
        device_id=device.device_id,
        device_type=device.device_type,
        rule_id=rule.rule_id,
        rule_name=rule.spec.name,
        rule_version=rule.version,
        severity=severity.value,
        state="ACTIVE",
        metric=rule.spec.condition.metric,
        value=value,
        detail=describe(rule.spec),
        start_ms=time_ms,
        met=1 if by_reading else 0,
        readings=1 if counts else 0,
        last_met_ms=time_ms if by_reading else None,
        last_reading_ms=time_ms if counts else None,
    )


def changed(alarm: Alarm, spec: RuleSpec, severity: Severity, value: Value, time_ms: int) -> Alarm:
    """The alarm with another severity, the value that gave it, and what it is violating now."""
    detail = next((f.condition.words() for f in spec.levels if f.severity == severity), describe(spec))
    return msgspec.structs.replace(
        alarm, severity=severity.value, value=value, detail=detail, changed_ms=time_ms
    )


def escalated(alarm: Alarm, severity: Severity, now_ms: int) -> Alarm:
    """The alarm one step further, which never makes it milder."""
    worst = worse(Severity(alarm.severity), severity)
    return msgspec.structs.replace(
        alarm, severity=worst.value, escalated=alarm.escalated + 1, changed_ms=now_ms
    )


def acted_on(alarm: Alarm, act: ActOnAlarm, now_ms: int) -> Alarm:
    """The alarm after what a person did; the same one when that changes nothing."""
    match act.action:
        case "ack" if not alarm.acknowledged:
            return msgspec.structs.replace(
                alarm, acknowledged=True, acknowledged_ms=now_ms, acknowledged_by=act.by
            )
        case "unack" if alarm.acknowledged:
            return msgspec.structs.replace(
                alarm, acknowledged=False, acknowledged_ms=None, acknowledged_by=None
            )
        case "assign":
            return msgspec.structs.replace(alarm, assignee=act.text or None)
        case "shelve":
            return msgspec.structs.replace(alarm, shelved_until_ms=act.until_ms)
        case "unshelve":
            return msgspec.structs.replace(alarm, shelved_until_ms=None)
        case _:
            return alarm


def cleared(alarm: Alarm, value: Value | None, time_ms: int, reason: str) -> Alarm:
    """The alarm as it ended; never before it began, whatever the clock said."""
    return msgspec.structs.replace(
        alarm,
        state="CLEARED",
        end_ms=max(time_ms, alarm.start_ms),
        end_value=value,
        end_reason=reason,
    )
