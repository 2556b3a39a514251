"""Alerting rules: what they say. How a device tests their conditions is in `conditions`."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from sensorium.actors.actions import Actions, Limits
from sensorium.actors.conditions.kinds import All as All
from sensorium.actors.conditions.kinds import Always as Always
from sensorium.actors.conditions.kinds import AnomalyScore as AnomalyScore
from sensorium.actors.conditions.kinds import AnyCondition
from sensorium.actors.conditions.kinds import Changed as Changed
from sensorium.actors.conditions.kinds import Circle as Circle
from sensorium.actors.conditions.kinds import Either as Either
from sensorium.actors.conditions.kinds import Formula as Formula
from sensorium.actors.conditions.kinds import Geofence as Geofence
from sensorium.actors.conditions.kinds import NoData as NoData
from sensorium.actors.conditions.kinds import Not as Not
from sensorium.actors.conditions.kinds import Operator as Operator
from sensorium.actors.conditions.kinds import Range as Range
from sensorium.actors.conditions.kinds import RateOfChange as RateOfChange
from sensorium.actors.conditions.kinds import Reference as Reference
from sensorium.actors.conditions.kinds import Schedule as Schedule
from sensorium.actors.conditions.kinds import Threshold as Threshold
from sensorium.actors.conditions.kinds import WindowAggregate as WindowAggregate
from sensorium.actors.conditions.kinds import ZScore as ZScore
from sensorium.actors.containment import contains

Condition = AnyCondition
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Severity(StrEnum):
    """How bad an alarm is, worst first."""

    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"
    WARNING = "warning"
    INFO = "info"


SEVERITIES = tuple(Severity)
"""Worst first."""


def worse(one: Severity, other: Severity) -> Severity:
    """The worse of two."""
    return min(one, other, key=SEVERITIES.index)


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many readings within so many seconds of event time, one after the other or not."""

    count: Annotated[int, Meta(ge=2, le=20)]
    within_s: Annotated[float, Meta(ge=1, le=2_678_400)]


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The severity that an alarm of the rule has while this condition holds too.

    `actions` are done for an alarm of this severity, besides those of the rule.
    """

    severity: Severity
    condition: Condition
    actions: Actions = ()


def in_group(metadata: Mapping[str, Any], group: str) -> bool:
    """Whether a device of this metadata is in the group."""
    groups = metadata.get("groups")
    return metadata.get("group") == group or (isinstance(groups, list | tuple) and group in groups)


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices a rule watches: those for which all holds that is given.

    `metadata` must be contained in the device's, such as {"site": {"floor": 3}}. A device is in the `group`
    that its metadata names: {"group": "hall 3"}, or {"groups": ["hall 3", "night"]} of one in several.
    """

    device_id: str | None = None
    device_type: str | None = None
    metadata: dict[str, Any] = {}
    group: Annotated[str, Meta(min_length=1, max_length=128)] | None = None

    def covers(self, device_id: str, device_type: str, metadata: Mapping[str, Any] = NOTHING) -> bool:
        """Whether a device of this id, type and metadata is in the scope."""
        return (
            self.device_id in (None, device_id)
            and self.device_type in (None, device_type)
            and (not self.metadata or contains(metadata, self.metadata))
            and (self.group is None or in_group(metadata, self.group))
        )

    @property
    def by_metadata(self) -> bool:
        """Whether it goes by what the device's metadata says."""
        return bool(self.metadata) or self.group is not None


class Escalation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step that an alarm takes which nobody has acknowledged for so long since the step before."""

    after_s: Annotated[float, Meta(ge=1, le=31_536_000)]
    severity: Severity


class RuleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule as a person writes it.

    Attributes:
        for_s: how long the condition must hold before the alarm is raised. Told by the readings' times, and
            after so long without a reading to the contrary by the clock.
        times: or how often it must have held.
        clear: what must hold for the alarm to end, on the same metric; None: that `condition` does not hold.
            With a gap between the two, a value that wavers around the threshold does not flap the alarm.
        levels: other severities of the alarm, each while a condition of its own holds besides; the worst of
            them counts. The alarm changes its severity with each reading that tells.
        escalation: what becomes of the alarm while it is active and not acknowledged, each step worse than
            the one before. A shelved alarm waits.
        actions: what is done when something happens to an alarm of the rule.
        limits: how much of it is told.
        expression: what `condition` was written as, if as an expression; for people only.
    """

    name: Name
    condition: Condition
    severity: Severity = Severity.WARNING
    scope: Scope = Scope()
    description: str = ""
    for_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    times: Times | None = None
    clear: Condition | None = None
    levels: Annotated[tuple[Level, ...], Meta(max_length=4)] = ()
    escalation: Annotated[tuple[Escalation, ...], Meta(max_length=4)] = ()
    actions: Actions = ()
    limits: Limits = Limits()
    expression: str = ""
    enabled: bool = True


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A stored rule. `version` counts its replacements from 1."""

    rule_id: str
    version: int
    spec: RuleSpec
    created_ms: int
    updated_ms: int
