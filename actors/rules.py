"""Alerting rules: what they say. How a device evaluates them is in `conditions`.

A new condition is a new `Struct` in the `Condition` union with a compiler registered in `conditions`.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

Metric = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Operator(StrEnum):
    """How a value is compared with a threshold."""

    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    EQ = "=="
    NE = "!="


class Severity(StrEnum):
    """How bad an alarm is, worst first."""

    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"
    WARNING = "warning"
    INFO = "info"


class Threshold(msgspec.Struct, frozen=True, tag="threshold", forbid_unknown_fields=True):
    """Holds while `metric operator value`. Booleans and strings know == and != only."""

    metric: Metric
    operator: Operator
    value: float | bool | str


class Range(msgspec.Struct, frozen=True, tag="range", forbid_unknown_fields=True):
    """Holds while the metric is outside of [`low`, `high`], or inside with `inside`."""

    metric: Metric
    low: float
    high: float
    inside: bool = False


class RateOfChange(msgspec.Struct, frozen=True, tag="rate_of_change", forbid_unknown_fields=True):
    """Holds while the change since the reading before, in units a second, compares so with `value`.

    `direction` is "up", "down" (falls count as positive) or "any" (the absolute value).
    """

    metric: Metric
    value: float
    operator: Operator = Operator.GT
    direction: str = "any"


class ZScore(msgspec.Struct, frozen=True, tag="z_score", forbid_unknown_fields=True):
    """Holds while the value is more than `value` standard deviations off the mean of the window before it.

    The window is the profile's of `window_s` seconds, or its default one. Fewer than `min_count` readings
    in it: the condition does not hold.
    """

    metric: Metric
    value: Annotated[float, Meta(gt=0)] = 3.0
    window_s: float | None = None
    min_count: Annotated[int, Meta(ge=2)] = 30


class NoData(msgspec.Struct, frozen=True, tag="no_data", forbid_unknown_fields=True):
    """Holds once nothing was received from the device for `after_s` seconds; ends with the next reading."""

    after_s: Annotated[float, Meta(ge=1, le=31_536_000)]

    @property
    def metric(self) -> str:
        """It looks at no metric: \"\"."""
        return ""


class All(msgspec.Struct, frozen=True, tag="all", forbid_unknown_fields=True):
    """Holds while every one of `conditions` does. A metric that a reading lacks counts with its latest value.

    The rule's alarm goes by the metric of the first condition, and waits until the device has sent it.
    """

    conditions: "Parts"

    @property
    def metric(self) -> str:
        """The first condition's."""
        return self.conditions[0].metric


class Either(msgspec.Struct, frozen=True, tag="any", forbid_unknown_fields=True):
    """Holds while at least one of `conditions` does; otherwise like `all`."""

    conditions: "Parts"

    @property
    def metric(self) -> str:
        """The first condition's."""
        return self.conditions[0].metric


class Not(msgspec.Struct, frozen=True, tag="not", forbid_unknown_fields=True):
    """Holds while `condition` does not."""

    condition: "Condition"

    @property
    def metric(self) -> str:
        """The condition's."""
        return self.condition.metric


Condition = Threshold | Range | RateOfChange | ZScore | NoData | All | Either | Not
Parts = Annotated[list[Condition], Meta(min_length=1, max_length=16)]


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices a rule watches: one device, one type, or all when neither is given."""

    device_id: str | None = None
    device_type: str | None = None

    def covers(self, device_id: str, device_type: str) -> bool:
        """Whether a device of this id and type is in the scope."""
        return self.device_id in (None, device_id) and self.device_type in (None, device_type)


class RuleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule as a person writes it.

    Attributes:
        for_s: how long the condition must hold before the alarm is raised. Told by the readings' times, and
            after so long without a reading to the contrary by the clock.
        clear: what must hold for the alarm to end, on the same metric; None: that `condition` does not hold.
            With a gap between the two, a value that wavers around the threshold does not flap the alarm.
    """

    name: Name
    condition: Condition
    severity: Severity = Severity.WARNING
    scope: Scope = Scope()
    description: str = ""
    for_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    clear: Condition | None = None
    enabled: bool = True


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A stored rule. `version` counts its replacements from 1."""

    rule_id: str
    version: int
    spec: RuleSpec
    created_ms: int
    updated_ms: int
