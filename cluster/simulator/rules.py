"""The rules that a simulated fleet is watched by: one of each kind at least, and none that noise can trip."""

from typing import Final

from sensorium.actors.rules import (
    Operator,
    Range,
    RateOfChange,
    RuleSpec,
    Scope,
    Severity,
    Threshold,
    ZScore,
)

RULES: Final[tuple[RuleSpec, ...]] = (
    RuleSpec(
        name="Room temperature outside 5 to 40 °C",
        condition=Range("temperature", low=5.0, high=40.0),
        severity=Severity.MAJOR,
        scope=Scope(device_type="climate"),
    ),
    RuleSpec(
        name="Humidity outside 15 to 95 %",
        condition=Range("humidity", low=15.0, high=95.0),
        severity=Severity.WARNING,
        scope=Scope(device_type="climate"),
    ),
    RuleSpec(
        name="Vibration velocity above 7.1 mm/s",
        description="Zone D of ISO 10816-3 for machines of medium size on rigid foundations begins at 4.5, "
        "on flexible ones at 7.1 mm/s.",
        condition=Threshold("rms_velocity", Operator.GT, 7.1),
        severity=Severity.CRITICAL,
        scope=Scope(device_type="vibration"),
    ),
    RuleSpec(
        name="Peak acceleration far off its mean",
        condition=ZScore("peak_acceleration", value=6.0),
        severity=Severity.MINOR,
        scope=Scope(device_type="vibration"),
    ),
    RuleSpec(
        name="Bearing temperature outside -10 to 85 °C",
        condition=Range("temperature", low=-10.0, high=85.0),
        severity=Severity.MAJOR,
        scope=Scope(device_type="vibration"),
    ),
    RuleSpec(
        name="Voltage outside 230 V ± 10 %",
        condition=Range("voltage", low=207.0, high=253.0),
        severity=Severity.MAJOR,
        scope=Scope(device_type="energy_meter"),
    ),
    RuleSpec(
        name="Tank level falls faster than 0.1 %/s",
        condition=RateOfChange("level_pct", value=0.1, direction="down"),
        severity=Severity.CRITICAL,
        scope=Scope(device_type="tank_level"),
    ),
    RuleSpec(
        name="Tank level outside 5 to 98 %",
        condition=Range("level_pct", low=5.0, high=98.0),
        severity=Severity.MAJOR,
        scope=Scope(device_type="tank_level"),
    ),
    RuleSpec(
        name="Outflow far off its mean",
        condition=ZScore("flow", value=6.0),
        severity=Severity.WARNING,
        scope=Scope(device_type="tank_level"),
    ),
)
