"""Schemas: what the readings of a device type must look like, and what becomes of those that do not. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from math import isfinite
from sys import float_info
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Measured, ReadingFlag, Refusal, Value
from sensorium.actors.units import MAX_UNIT_CHARS, Conversion, conversion, quantity_of

_KNOWN_NAME_SETS: Final = 4096
"""Plans that a schema keeps; beyond it they are made anew."""
_SUSPECT: Final = int(ReadingFlag.SUSPECT)
_SHOWN_CHARS: Final = 40


class MetricType(StrEnum):
    """What a metric's values are."""

    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    STRING = "string"


class Outside(StrEnum):
    """What becomes of a reading that is outside of what the schema expects."""

    ALLOW = "allow"
    """It is stored as any other."""
    FLAG = "flag"
    """It is stored with the quality flag `SUSPECT`."""
    REJECT = "reject"
    """It becomes a dead letter."""


_TYPES: Final = {
    MetricType.NUMBER: float,
    MetricType.INTEGER: float,
    MetricType.BOOLEAN: bool,
    MetricType.STRING: str,
}
_WORDS: Final = {float: "a number", bool: "true or false", str: "text"}


class MetricSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of one metric.

    Attributes:
        kind: of its values; None: any. Another one is always rejected.
        unit: that its values are in, as they are stored; where the sender tells another one of the same
            quantity, they are converted, and where it cannot be converted, rejected.
        minimum, maximum: of numbers, in `unit`; each is within the range.
        values: the texts that it may be; empty: any.
        required: whether each reading must have it.
        outside: of a reading whose value is outside of range or `values`, or which lacks it.
    """

    kind: MetricType | None = msgspec.field(default=None, name="type")
    unit: str | None = None
    minimum: float | None = msgspec.field(default=None, name="min")
    maximum: float | None = msgspec.field(default=None, name="max")
    values: tuple[str, ...] = ()
    required: bool = False
    outside: Outside = Outside.FLAG

    def __post_init__(self) -> None:
        numeric = self.minimum is not None or self.maximum is not None or self.unit is not None
        if numeric and self.kind not in (None, MetricType.NUMBER, MetricType.INTEGER):
            raise InvalidMessage(f"unit, min and max are of numbers, and the type is {self.kind}")
        if self.values and self.kind not in (None, MetricType.STRING):
            raise InvalidMessage(f"values are texts, and the type is {self.kind}")
        if self.values and numeric:
            raise InvalidMessage("values are texts; unit, min and max are of numbers")
        if self.unit is not None and not (
            1 <= len(self.unit) <= MAX_UNIT_CHARS and self.unit.isprintable() and self.unit.strip()
        ):
            raise InvalidMessage(f"a unit has 1 to {MAX_UNIT_CHARS} printable characters")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise InvalidMessage(f"min {self.minimum:g} is above max {self.maximum:g}")

    @property
    def accepts(self) -> type | None:
        """The Python type of its values; None: any."""
        if self.kind is not None:
            return _TYPES[self.kind]
        if self.values:
            return str
        return None if (self.unit, self.minimum, self.maximum) == (None, None, None) else float

    @property
    def low(self) -> float:
        """The least number within the range."""
        return -float_info.max if self.minimum is None or self.outside is Outside.ALLOW else self.minimum

    @property
    def high(self) -> float:
        """The greatest."""
        return float_info.max if self.maximum is None or self.outside is Outside.ALLOW else self.maximum

    def problem(self, name: str, value: Value) -> str | None:
        """How a value of the right type and unit lies outside of what is expected, in words."""
        if isinstance(value, str):
            if self.values and value not in self.values:
                return f"{name} is {value[:_SHOWN_CHARS]!r}; it may be {', '.join(self.values)[:200]}"
            return None
        unit = f" {self.unit}" if self.unit else ""
        if self.minimum is not None and value < self.minimum:
            return f"{name} is {value:g}{unit}, below {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"{name} is {value:g}{unit}, above {self.maximum:g}"
        return None


class _Plan(NamedTuple):
    """How readings with the same names, and the same units told, are judged.

    Attributes:
        refusal: of all of them, whatever their values.
        flags: of all of them likewise.
        conversions: by place, for values in other units.
        ranges: by place, for what must be a number between two others.
        specs: by place, for all that is looked at.
        closely: whether `ranges` do not say everything.
    """

    refusal: Refusal | None
    flags: int
    conversions: tuple[tuple[int, Conversion], ...]
    ranges: tuple[tuple[int, float, float], ...]
    specs: tuple[tuple[int, MetricSpec], ...]
    closely: bool


class Schema:
    """What the readings of a device type must look like.

    Args:
        metrics: by name; a name that ends with `*` goes for all that begin so and are not named themselves.
        unknown: of a reading with a metric that is not among them.
    """

    def __init__(self, metrics: Mapping[str, MetricSpec], unknown: Outside = Outside.ALLOW) -> None:
        self.metrics = dict(metrics)
        self.unknown = unknown
        self._prefixes = sorted(
            ((name[:-1], spec) for name, spec in metrics.items() if name.endswith("*")),
            key=lambda entry: -len(entry[0]),
        )
        self._required = [name for name, spec in metrics.items() if spec.required]
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and (self.metrics, self.unknown) == (other.metrics, other.unknown)

    def __hash__(self) -> int:
        return hash((tuple(self.metrics), self.unknown))

    def __reduce__(self) -> tuple[object, ...]:
        return Schema, (self.metrics, self.unknown)

    def of(self, name: str) -> MetricSpec | None:
        """What is expected of a metric; None for an unknown one."""
        spec = self.metrics.get(name)
        if spec is None:
            return next((found for prefix, found in self._prefixes if name.startswith(prefix)), None)
        return spec

    def judge(self, names: tuple[str, ...], values: list[Value]) -> tuple[list[Any], int] | Refusal:
        """The values in the schema's units and the flags that they earn, or why they are rejected.

        `values` stay as they are.
        """
        refusal, flags, conversions, ranges, specs, closely = self._plans.get(names) or self._plan(names)
        if refusal is not None:
            return refusal
        if conversions:
            values = list(values)
            for at, (scale, shift) in conversions:
                value = values[at]
                if type(value) is float:
                    values[at] = value * scale + shift
        if not closely:
            for at, low, high in ranges:
                value = values[at]
                if type(value) is not float or not low <= value <= high:
                    break
            else:
                return values, flags
        for at, spec in specs:
            found = _closely(names[at], spec, values[at])
            if isinstance(found, Refusal):
                return found
            flags |= found
        return values, flags

    def suspects(self, name: str, value: Value) -> bool:
        """Whether a stored value lies outside of what is expected of its metric."""
        spec = self.of(name)
        if spec is None:
            return self.unknown is Outside.FLAG
        if spec.outside is Outside.ALLOW or spec.accepts not in (None, type(value)):
            return False
        return spec.problem(name, value) is not None

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        specs, conversions, refusal = [], [], None
        units = names.units if isinstance(names, Measured) else (None,) * len(names)
        for at, (name, told) in enumerate(zip(names, units, strict=True)):
            spec = self.of(name)
            if spec is None or spec.accepts is None:
                continue
            specs.append((at, spec))
            if told is None or spec.unit is None or told == spec.unit:
                continue
            how = conversion(told, spec.unit)
            if how is None:
                refusal = refusal or _wrong_unit(name, told, spec.unit)
            elif how != (1.0, 0.0):
                conversions.append((at, how))
        missing, flags = self._of_names(names)
        plan = _Plan(
            missing or refusal,
            flags,
            tuple(conversions),
            tuple((at, spec.low, spec.high) for at, spec in specs),
            tuple(specs),
            any(spec.accepts is not float or spec.kind is MetricType.INTEGER for _, spec in specs),
        )
        if len(self._plans) < _KNOWN_NAME_SETS:
            self._plans[names] = plan
        return plan

    def _of_names(self, names: tuple[str, ...]) -> tuple[Refusal | None, int]:
        """What the names alone come to."""
        flags = 0
        unknown = next((name for name in names if self.of(name) is None), None)
        if unknown is not None and self.unknown is not Outside.ALLOW:
            if self.unknown is Outside.REJECT:
                return Refusal("unknown_metric", f"the profile knows no metric {_shown(unknown)}"), 0
            flags = _SUSPECT
        for name in self._required:
            if name not in names:
                outside = self.metrics[name].outside
                if outside is Outside.REJECT:
                    return Refusal("missing_metric", f"the profile requires metric {_shown(name)}"), 0
                flags |= _SUSPECT if outside is Outside.FLAG else 0
        return None, flags


def _closely(name: str, spec: MetricSpec, value: Value) -> int | Refusal:
    """The flags that one value earns, or why its reading is rejected."""
    wanted = spec.accepts
    if wanted is not None and type(value) is not wanted:
        what = f"metric {_shown(name)} is {_WORDS[type(value)]}; the profile expects {_WORDS[wanted]}"
        return Refusal("wrong_type", what)
    if type(value) is float and not isfinite(value):
        return Refusal("not_finite", f"metric {_shown(name)} is too large in {spec.unit}")
    if spec.kind is MetricType.INTEGER and type(value) is float and not value.is_integer():
        return Refusal("wrong_type", f"metric {_shown(name)} is {value!r}; the profile expects an integer")
    if spec.outside is Outside.ALLOW:
        return 0
    problem = spec.problem(_shown(name), value)
    if problem is None:
        return 0
    return _SUSPECT if spec.outside is Outside.FLAG else Refusal("out_of_range", problem)


def _wrong_unit(name: str, told: str, unit: str) -> Refusal:
    quantity = quantity_of(unit)
    because = f"the profile has it in {unit}" + (f", a unit of {quantity}" if quantity else "")
    return Refusal("wrong_unit", f"metric {_shown(name)} was sent in {told[:MAX_UNIT_CHARS]!r}; {because}")


def _shown(name: str) -> str:
    return name[:_SHOWN_CHARS]
