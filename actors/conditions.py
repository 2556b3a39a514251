"""How conditions become tests: each is compiled once for a position in a metric set, then only called.

To add a condition: a `Struct` in `rules.Condition`, and here a function under `@compiles(ThatStruct)`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, NUMBER, TEXT, MetricSet
from sensorium.actors.rules import (
    All,
    Condition,
    Either,
    NoData,
    Not,
    Operator,
    Range,
    RateOfChange,
    RuleSpec,
    Threshold,
    ZScore,
)
from sensorium.actors.windows import Window


class Memory(Protocol):
    """What a test may look at: the device as it was before the reading under test."""

    latest: list[Value | None]
    latest_ms: list[int]
    windows: tuple[Window, ...]


Test = Callable[[Sequence[Any], int, Memory], bool | None]
"""Whether the condition holds: test(values, time_ms, memory), the reading's values by position.

None says that this reading cannot tell: an alarm stays as it is.
"""

_C = TypeVar("_C", bound=Condition)
_Compiler = Callable[[_C, MetricSet, Sequence[Window]], Test | None]
_compilers: dict[type, _Compiler[Any]] = {}

_OPERATORS: Final[dict[Operator, Callable[[Any, Any], bool]]] = {
    Operator.GT: operator.gt,
    Operator.GE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LE: operator.le,
    Operator.EQ: operator.eq,
    Operator.NE: operator.ne,
}
MAX_DEPTH: Final = 4
"""How deep conditions may stand within each other."""

_SIGNS: Final = {"up": 1.0, "down": -1.0, "any": 0.0}


def compiles(condition: type[_C]) -> Callable[[_Compiler[_C]], _Compiler[_C]]:
    """Register the compiler of a condition type."""

    def register(compiler: _Compiler[_C]) -> _Compiler[_C]:
        _compilers[condition] = compiler
        return compiler

    return register


def compile_condition(condition: Condition, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    """The condition's test for devices with these metrics and windows.

    None when they lack the metric or the window, or the metric is of another kind.
    """
    return _compilers[type(condition)](condition, metrics, windows)


@compiles(Threshold)
def _threshold(condition: Threshold, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    limit: float | bool | str = condition.value
    kind = BOOL if isinstance(limit, bool) else TEXT if isinstance(limit, str) else NUMBER
    position = _position(condition.metric, kind, metrics)
    if position is None:
        return None
    compare = _OPERATORS[condition.operator]

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        return None if value is None else compare(value, limit)

    return test


@compiles(Range)
def _range(condition: Range, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = _position(condition.metric, NUMBER, metrics)
    if position is None:
        return None
    low, high, inside = condition.low, condition.high, condition.inside

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        return None if value is None else (low <= value <= high) is inside

    return test


@compiles(RateOfChange)
def _rate_of_change(condition: RateOfChange, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = _position(condition.metric, NUMBER, metrics)
    if position is None:
        return None
    compare = _OPERATORS[condition.operator]
    limit = condition.value
    sign = _SIGNS[condition.direction]

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value, before = values[position], memory.latest[position]
        elapsed_ms = time_ms - memory.latest_ms[position]
        if value is None or before is None or elapsed_ms <= 0:
            return None
        rate = (value - float(before)) * 1000.0 / elapsed_ms
        return compare(rate * sign if sign else abs(rate), limit)

    return test


@compiles(ZScore)
def _z_score(condition: ZScore, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = _position(condition.metric, NUMBER, metrics)
    lengths_s = [w.spec.length_s for w in windows]
    length_s = condition.window_s if condition.window_s is not None else next(iter(lengths_s), None)
    if position is None or length_s not in lengths_s:
        return None
    index = lengths_s.index(length_s)
    limit, min_count = condition.value, condition.min_count

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        if value is None:
            return None
        moments = memory.windows[index].moments(position)
        if moments is None or moments.count < min_count:
            return False
        # With no deviation at all, the smallest departure is infinitely many deviations away.
        return abs(value - moments.mean) > limit * moments.stddev  # type: ignore[no-any-return]

    return test


@compiles(NoData)
def _no_data(condition: NoData, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    return None  # no reading can tell: `watch` has timers for it


@compiles(All)
def _all(condition: All, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    return _compound(condition.conditions, False, metrics, windows)


@compiles(Either)
def _either(condition: Either, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    return _compound(condition.conditions, True, metrics, windows)


@compiles(Not)
def _not(condition: Not, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    inner = compile_condition(condition.condition, metrics, windows)
    if inner is None:
        return None

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        holds = inner(values, time_ms, memory)
        return None if holds is None else not holds

    return test


def _compound(
    parts: Sequence[Condition], decisive: bool, metrics: MetricSet, windows: Sequence[Window]
) -> Test | None:
    """The test of several parts, of which one that says `decisive` decides for all (Kleene's logic)."""
    if parts[0].metric not in metrics.index:
        return None
    # A part whose metric the device has not sent yet cannot tell.
    compiled = [compile_condition(part, metrics, windows) for part in parts]
    tests = [part for part in compiled if part is not None]
    unknown = len(tests) < len(parts)

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        if None in values:
            values = [b if v is None else v for v, b in zip(values, memory.latest, strict=True)]
        doubt = unknown
        for part in tests:
            holds = part(values, time_ms, memory)
            if holds is decisive:
                return decisive
            doubt = doubt or holds is None
        return None if doubt else not decisive

    return test


def _position(metric: str, kind: str, metrics: MetricSet) -> int | None:
    position = metrics.index.get(metric)
    return position if position is not None and metrics.kinds[position] == kind else None


def validate(spec: RuleSpec) -> None:
    """Check what the types of a rule cannot say.

    Raises:
        InvalidMessage: the rule can never work; the text says which field and why.
    """
    _validate("condition", spec.condition)
    if isinstance(spec.condition, NoData):
        if spec.for_s:
            raise InvalidMessage("for_s: a no_data condition has its own time, after_s")
        if spec.clear is not None:
            raise InvalidMessage("clear: a no_data condition ends with the next reading")
    if spec.clear is not None:
        _validate("clear", spec.clear)
        if isinstance(spec.clear, NoData) or spec.clear.metric != spec.condition.metric:
            raise InvalidMessage(f"clear.metric: must be {spec.condition.metric}, as in condition")


def _validate(field: str, condition: Condition, depth: int = 1) -> None:
    match condition:
        case Threshold(operator=op, value=bool() | str()) if op not in (Operator.EQ, Operator.NE):
            raise InvalidMessage(f"{field}.operator: {op.value} needs a number, others know == and !=")
        case Range(low=low, high=high) if low > high:
            raise InvalidMessage(f"{field}.low: {low} is above {field}.high {high}")
        case RateOfChange(direction=direction) if direction not in _SIGNS:
            raise InvalidMessage(f"{field}.direction: {direction!r} is not one of up, down, any")
        case All(parts) | Either(parts):
            for number, part in enumerate(parts):
                _validate_part(f"{field}.conditions[{number}]", part, depth)
        case Not(part):
            _validate_part(f"{field}.condition", part, depth)
        case _:
            pass


def _validate_part(field: str, part: Condition, depth: int) -> None:
    if isinstance(part, NoData):
        raise InvalidMessage(f"{field}: no_data is a rule of its own, it cannot be part of another condition")
    if depth >= MAX_DEPTH:
        raise InvalidMessage(f"{field}: conditions may be nested {MAX_DEPTH} deep at most")
    _validate(field, part, depth + 1)


def describe(spec: RuleSpec) -> str:
    """The condition in words, for an alarm's detail."""
    held = f" for {spec.for_s:g} s" if spec.for_s else ""
    return _describe(spec.condition) + held


def _describe(condition: Condition) -> str:
    match condition:
        case Threshold(metric, op, value):
            return f"{metric} {op.value} {value}"
        case Range(metric, low, high, inside):
            return f"{metric} {'inside' if inside else 'outside'} {low} … {high}"
        case RateOfChange(metric, value, op, direction):
            way = "" if direction == "any" else f" {direction}"
            return f"{metric} changing{way} {op.value} {value} a second"
        case ZScore(metric, value):
            return f"{metric} more than {value} standard deviations off its window's mean"
        case NoData(after_s):
            return f"no data for {after_s:g} s"
        case All(parts):
            return "(" + " and ".join(map(_describe, parts)) + ")"
        case Either(parts):
            return "(" + " or ".join(map(_describe, parts)) + ")"
        case Not(part):
            return f"not {_describe(part)}"
