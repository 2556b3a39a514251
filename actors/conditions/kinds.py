"""What conditions say. How a device tests them is in the other modules of this package.

To add one: a `Condition` subclass here and in the `AnyCondition` union, and its compiler under `@compiles`.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.formulas import Windowed, metrics_in, nodes_of, parse_formula, problem_of
from sensorium.actors.tokens import MAX_CHARACTERS

Metric = Annotated[str, Meta(min_length=1, max_length=128)]
DetectorName = Literal["ensemble", "zscore", "robust", "level_shift", "seasonal", "spectral", "flatline"]
MIN_WINDOW_S: Final = 1
MAX_WINDOW_S: Final = 2_678_400
WindowLength = Annotated[float, Meta(ge=MIN_WINDOW_S, le=MAX_WINDOW_S)]
FormulaText = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]


class Operator(StrEnum):
    """How a value is compared with a limit."""

    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    EQ = "=="
    NE = "!="


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit that each device has its own of: `factor` × the number + `offset`.

    The number is an entry of the device's `metadata`, the newest value of another `metric`, or a field of its
    `twin`, such as "desired.limits.high" or "reported.mode" (dots lead into objects). A bool or text is taken
    as it is. While the device has none, the condition cannot tell.
    """

    metadata: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    metric: Metric | None = None
    factor: float = 1.0
    offset: float = 0.0
    twin: Annotated[str, Meta(min_length=1, max_length=256)] | None = None

    def __str__(self) -> str:
        name = str(self.metric)
        if self.metadata is not None:
            name = f"metadata.{self.metadata}"
        elif self.twin is not None:
            name = f"twin.{self.twin}"
        scaled = name if self.factor == 1.0 else f"{self.factor:g} * {name}"
        return (
            scaled if not self.offset else f"{scaled} {'+' if self.offset > 0 else '-'} {abs(self.offset):g}"
        )


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all conditions.

    Every one has a `metric`, by which its rule's alarm goes: \"\" for one that looks at none.
    """

    def words(self) -> str:
        """The condition as an alarm's detail tells it."""
        raise NotImplementedError

    def problem(self) -> tuple[str, str] | None:
        """The field that makes it one which can never work, and why; None for a good one."""
        return None


class Threshold(Condition, frozen=True, tag="threshold"):
    """Holds while `metric operator value`. Booleans and strings know == and != only."""

    metric: Metric
    operator: Operator
    value: float | bool | str | Reference

    def words(self) -> str:
        """See `Condition.words`."""
        return f"{self.metric} {self.operator.value} {self.value}"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        if isinstance(self.value, Reference):
            return _reference_problem(self.value)
        if isinstance(self.value, bool | str) and self.operator not in (Operator.EQ, Operator.NE):
            return "operator", f"{self.operator.value} needs a number, others know == and !="
        return None


class Range(Condition, frozen=True, tag="range"):
    """Holds while the metric is outside of [`low`, `high`], or inside with `inside`."""

    metric: Metric
    low: float
    high: float
    inside: bool = False

    def words(self) -> str:
        """See `Condition.words`."""
        return f"{self.metric} {'inside' if self.inside else 'outside'} {self.low} … {self.high}"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        return ("low", f"{self.low} is above high, {self.high}") if self.low > self.high else None


class RateOfChange(Condition, frozen=True, tag="rate_of_change"):
    """Holds while the change since the reading before, in units a second, compares so with `value`.

    `direction` is "up", "down" (falls count as positive) or "any" (the absolute value).
    """

    metric: Metric
    value: float
    operator: Operator = Operator.GT
    direction: Literal["up", "down", "any"] = "any"

    def words(self) -> str:
        """See `Condition.words`."""
        way = "" if self.direction == "any" else f" {self.direction}"
        return f"{self.metric} changing{way} {self.operator.value} {self.value} a second"


class ZScore(Condition, frozen=True, tag="z_score"):
    """Holds while the value is more than `value` standard deviations off the mean of the window before it.

    The window is of `window_s` seconds, or the profile's default one. Fewer than `min_count` readings in it:
    the condition does not hold.
    """

    metric: Metric
    value: Annotated[float, Meta(gt=0)] = 3.0
    window_s: WindowLength | None = None
    min_count: Annotated[int, Meta(ge=2)] = 30

    def words(self) -> str:
        """See `Condition.words`."""
        return f"{self.metric} more than {self.value} standard deviations off its window's mean"


class WindowAggregate(Condition, frozen=True, tag="window"):
    """Holds while a figure over the window that ends with the reading compares so with `value`.

    The window is of `window_s` seconds, or the profile's default one. With fewer than `min_count` readings in
    it, the condition does not hold.
    """

    metric: Metric
    function: Literal["mean", "min", "max", "sum", "count", "stddev"]
    operator: Operator
    value: float | Reference
    window_s: WindowLength | None = None
    min_count: Annotated[int, Meta(ge=1)] = 1

    def words(self) -> str:
        """See `Condition.words`."""
        length = "" if self.window_s is None else f" over {self.window_s:g} s"
        return f"{self.function} of {self.metric}{length} {self.operator.value} {self.value}"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        return _reference_problem(self.value) if isinstance(self.value, Reference) else None


class Formula(Condition, frozen=True, tag="formula"):
    """Holds while what `formula` gives compares so with `value`, a number or a formula too (see `formulas`).

    A reading with none of the metrics cannot tell; one with some of them goes with the newest values of the
    others. Where the formula gives no number, as after a division by zero, the reading cannot tell either,
    and an event says so.
    """

    formula: FormulaText
    operator: Operator
    value: float | FormulaText

    @property
    def metric(self) -> str:
        """The first that it names; \"\" while it is no formula."""
        metrics = self.metrics()
        return metrics[0] if metrics else ""

    def metrics(self) -> list[str]:
        """All that it names, in order."""
        try:
            found = [name for text in self.texts() for name in metrics_in(parse_formula(text))]
        except InvalidMessage:
            return []
        return list(dict.fromkeys(found))

    def texts(self) -> list[str]:
        """Its formulas."""
        return [self.formula, self.value] if isinstance(self.value, str) else [self.formula]

    def words(self) -> str:
        """See `Condition.words`."""
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.formula} {self.operator.value} {value}"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        why = formula_problem(self.formula)
        if why is not None:
            return "formula", why
        if isinstance(self.value, str):
            why = formula_problem(self.value)
        return None if why is None else ("value", why)


class Always(Condition, frozen=True, tag="always"):
    """Holds at each reading, and raises no alarm: of rules that do nothing but derive metrics."""

    @property
    def metric(self) -> str:
        """It looks at none: \"\"."""
        return ""

    def words(self) -> str:
        """See `Condition.words`."""
        return "always"


class Changed(Condition, frozen=True, tag="change"):
    """Holds at a reading whose value is another than the one before: `before` and `after` where given."""

    metric: Metric
    before: float | bool | str | None = None
    after: float | bool | str | None = None

    def words(self) -> str:
        """See `Condition.words`."""
        before = "" if self.before is None else f" from {self.before}"
        return f"{self.metric} changed{before}" + ("" if self.after is None else f" to {self.after}")

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        if self.before is not None and self.before == self.after:
            return "after", "is the same as before"
        return None


class Circle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All places at most `radius_m` metres away, on a sphere."""

    latitude: Annotated[float, Meta(ge=-90, le=90)]
    longitude: Annotated[float, Meta(ge=-180, le=180)]
    radius_m: Annotated[float, Meta(gt=0, le=20_000_000)]


Corner = tuple[Annotated[float, Meta(ge=-90, le=90)], Annotated[float, Meta(ge=-180, le=180)]]


class Geofence(Condition, frozen=True, tag="geofence"):
    """Holds while the device is `inside` or `outside` of a fence, or at the reading that crossed it.

    The fence is a circle, or a polygon of corners (latitude, longitude) that may cross the 180th meridian but
    holds no pole. The device's place is in two of its number metrics, in degrees.
    """

    circle: Circle | None = None
    polygon: Annotated[tuple[Corner, ...], Meta(min_length=3, max_length=1_000)] | None = None
    when: Literal["inside", "outside", "enter", "leave"] = "inside"
    latitude: Metric = "latitude"
    longitude: Metric = "longitude"

    @property
    def metric(self) -> str:
        """The latitude's."""
        return self.latitude

    def words(self) -> str:
        """See `Condition.words`."""
        verbs = {"inside": "is inside of", "outside": "is outside of", "enter": "entered", "leave": "left"}
        if self.circle is not None:
            c = self.circle
            return f"device {verbs[self.when]} {c.radius_m:g} m around {c.latitude:g}, {c.longitude:g}"
        return f"device {verbs[self.when]} the polygon of {len(self.polygon or ())} corners"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        if (self.circle is None) is (self.polygon is None):
            return "circle", "a geofence has either a circle or a polygon"
        return ("longitude", "is the same metric as latitude") if self.latitude == self.longitude else None


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Clock = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$")]
Date = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
EVERY_DAY: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class AnomalyScore(Condition, frozen=True, tag="anomaly"):
    """Holds while a detector finds the metric odd: a reading scored at least `score`, its episode goes on.

    `detector` is one of those that profiles know, or any that watches the metric. Where none does, the rule
    has the device run it, or the ensemble.
    """

    metric: Metric
    score: Annotated[float, Meta(gt=0, le=1)] = 0.5
    detector: DetectorName | None = None

    def words(self) -> str:
        """See `Condition.words`."""
        by = "" if self.detector is None else f" by {self.detector}"
        return f"{self.metric} odd{by} with a score of at least {self.score:g}"


class Schedule(Condition, frozen=True, tag="schedule"):
    """Holds while the reading's time is within weekly hours; only as a part of another condition.

    From `start` (included) to `end` (excluded) by the clock of `timezone` (an IANA name), on `days`; an `end`
    that is not after `start` is on the next day. Not on `holidays`: the day on which the hours begin counts.
    """

    timezone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)] = EVERY_DAY
    start: Clock = "00:00"
    end: Clock = "24:00"
    holidays: Annotated[tuple[Date, ...], Meta(max_length=1_000)] = ()

    @property
    def metric(self) -> str:
        """It looks at none: \"\"."""
        return ""

    def words(self) -> str:
        """See `Condition.words`."""
        days = "" if set(self.days) == set(EVERY_DAY) else f" on {', '.join(self.days)}"
        return f"between {self.start} and {self.end} {self.timezone}{days}"

    def problem(self) -> tuple[str, str] | None:
        """See `Condition.problem`."""
        return ("start", "24:00 is an end only") if self.start == "24:00" else None


class NoData(Condition, frozen=True, tag="no_data"):
    """Holds once nothing was received from the device for `after_s` seconds; ends with the next reading."""

    after_s: Annotated[float, Meta(ge=1, le=31_536_000)]

    @property
    def metric(self) -> str:
        """It looks at none: \"\"."""
        return ""

    def words(self) -> str:
        """See `Condition.words`."""
        return f"no data for {self.after_s:g} s"


class All(Condition, frozen=True, tag="all"):
    """Holds while every one of `conditions` does. A metric that a reading lacks counts with its latest value.

    The rule's alarm goes by the metric of the first condition, and waits until the device has sent it.
    """

    conditions: "Parts"

    @property
    def metric(self) -> str:
        """The first condition's."""
        return self.conditions[0].metric

    def words(self) -> str:
        """See `Condition.words`."""
        return "(" + " and ".join(part.words() for part in self.conditions) + ")"


class Either(Condition, frozen=True, tag="any"):
    """Holds while at least one of `conditions` does; otherwise like `all`."""

    conditions: "Parts"

    @property
    def metric(self) -> str:
        """The first condition's."""
        return self.conditions[0].metric

    def words(self) -> str:
        """See `Condition.words`."""
        return "(" + " or ".join(part.words() for part in self.conditions) + ")"


class Not(Condition, frozen=True, tag="not"):
    """Holds while `condition` does not."""

    condition: "AnyCondition"

    @property
    def metric(self) -> str:
        """The condition's."""
        return self.condition.metric

    def words(self) -> str:
        """See `Condition.words`."""
        return f"not {self.condition.words()}"


AnyCondition = (
    Threshold
    | Range
    | RateOfChange
    | ZScore
    | WindowAggregate
    | Formula
    | Always
    | Changed
    | Geofence
    | AnomalyScore
    | Schedule
    | NoData
    | All
    | Either
    | Not
)
Parts = Annotated[list[AnyCondition], Meta(min_length=1, max_length=16)]


def parts_of(condition: AnyCondition) -> list[tuple[str, AnyCondition]]:
    """What a condition is made of: (field, part); [] for a simple one."""
    match condition:
        case All(parts) | Either(parts):
            return [(f"conditions[{number}]", part) for number, part in enumerate(parts)]
        case Not(part):
            return [("condition", part)]
        case _:
            return []


def formula_problem(text: str) -> str | None:
    """Why nothing can be worked out by it at any device, or None."""
    why = problem_of(text)
    if why is not None:
        return why
    for node in nodes_of(parse_formula(text)):
        if isinstance(node, Windowed) and node.window_s is not None:
            if not MIN_WINDOW_S <= node.window_s <= MAX_WINDOW_S:
                return f"a window is of {MIN_WINDOW_S} to {MAX_WINDOW_S} s, not {node.window_s:g}"
            if not 0 < len(node.metric) <= 128:
                return "a metric's name has 1 to 128 characters"
    return None


def metrics_named(condition: AnyCondition) -> list[str]:
    """Every metric that the condition looks at, in order, those that its limits refer to last."""
    found: list[str] = []
    match condition:
        case Formula():
            found = condition.metrics()
        case Geofence(latitude=latitude, longitude=longitude):
            found = [latitude, longitude]
        case _:
            found = [condition.metric] if condition.metric else []
    if isinstance(condition, Threshold | WindowAggregate) and isinstance(condition.value, Reference):
        found += [condition.value.metric] if condition.value.metric is not None else []
    for _, part in parts_of(condition):
        found += metrics_named(part)
    return list(dict.fromkeys(found))


def _reference_problem(reference: Reference) -> tuple[str, str] | None:
    given: list[Any] = [reference.metadata, reference.metric, reference.twin]
    if given.count(None) != 2:
        return "value", "a reference names one of metadata, a metric and a field of the twin"
    if reference.twin is not None:
        document, *steps = reference.twin.split(".")
        if document not in ("desired", "reported") or not steps or not all(steps):
            return "value", "a field of the twin is named as desired.KEY or reported.KEY"
    return None
