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
    Condition,
    NoData,
    Operator,
    Range,
    RateOfChange,
    Rule,
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


Test = Callable[[Any, int, Memory], bool | None]
"""Whether the condition holds: test(value, time_ms, memory). Called once a reading that has the metric.

None says that this reading cannot tell: an alarm stays as it is.
"""

_C = TypeVar("_C", bound=Condition)
_Compiler = Callable[[_C, int, str, Sequence[Window]], Test | None]
_compilers: dict[type, _Compiler[Any]] = {}

_OPERATORS: Final[dict[Operator, Callable[[Any, Any], bool]]] = {
    Operator.GT: operator.gt,
    Operator.GE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LE: operator.le,
    Operator.EQ: operator.eq,
    Operator.NE: operator.ne,
}
COMPILED_SETS: Final = 4096
"""Pairs of device type and metric set that a book keeps compiled; devices hold on to theirs beyond it."""

_SIGNS: Final = {"up": 1.0, "down": -1.0, "any": 0.0}


def compiles(condition: type[_C]) -> Callable[[_Compiler[_C]], _Compiler[_C]]:
    """Register the compiler of a condition type."""

    def register(compiler: _Compiler[_C]) -> _Compiler[_C]:
        _compilers[condition] = compiler
        return compiler

    return register


@compiles(Threshold)
def _threshold(condition: Threshold, position: int, kind: str, windows: Sequence[Window]) -> Test | None:
    limit: float | bool | str = condition.value
    if kind == NUMBER and not isinstance(limit, (bool, str)):
        limit = float(limit)
    elif not (kind == BOOL and isinstance(limit, bool)) and not (kind == TEXT and isinstance(limit, str)):
        return None
    compare = _OPERATORS[condition.operator]
    return lambda value, time_ms, memory: compare(value, limit)


@compiles(Range)
def _range(condition: Range, position: int, kind: str, windows: Sequence[Window]) -> Test | None:
    if kind != NUMBER:
        return None
    low, high = condition.low, condition.high
    if condition.inside:
        return lambda value, time_ms, memory: low <= value <= high
    return lambda value, time_ms, memory: not low <= value <= high


@compiles(RateOfChange)
def _rate_of_change(
    condition: RateOfChange, position: int, kind: str, windows: Sequence[Window]
) -> Test | None:
    if kind != NUMBER:
        return None
    compare = _OPERATORS[condition.operator]
    limit = condition.value
    sign = _SIGNS[condition.direction]

    def test(value: float, time_ms: int, memory: Memory) -> bool | None:
        before = memory.latest[position]
        elapsed_ms = time_ms - memory.latest_ms[position]
        if before is None or elapsed_ms <= 0:
            return None
        rate = (value - float(before)) * 1000.0 / elapsed_ms
        return compare(rate * sign if sign else abs(rate), limit)

    return test


@compiles(ZScore)
def _z_score(condition: ZScore, position: int, kind: str, windows: Sequence[Window]) -> Test | None:
    index = next(
        (i for i, w in enumerate(windows) if condition.window_s in (None, w.spec.length_s)),
        None,
    )
    if kind != NUMBER or index is None:
        return None
    limit, min_count = condition.value, condition.min_count

    def test(value: float, time_ms: int, memory: Memory) -> bool:
        moments = memory.windows[index].moments(position)
        if moments is None or moments.count < min_count:
            return False
        # With no deviation at all, the smallest departure is infinitely many deviations away.
        return abs(value - moments.mean) > limit * moments.stddev

    return test


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


def _validate(field: str, condition: Condition) -> None:
    match condition:
        case Threshold(operator=op, value=bool() | str()) if op not in (Operator.EQ, Operator.NE):
            raise InvalidMessage(f"{field}.operator: {op.value} needs a number, others know == and !=")
        case Range(low=low, high=high) if low > high:
            raise InvalidMessage(f"{field}.low: {low} is above {field}.high {high}")
        case RateOfChange(direction=direction) if direction not in _SIGNS:
            raise InvalidMessage(f"{field}.direction: {direction!r} is not one of up, down, any")
        case _:
            pass


class Check:
    """A rule bound to a position of a metric set: what a device calls.

    `clears` is the test of the rule's own clear condition, if it has one.
    """

    __slots__ = ("clears", "for_ms", "position", "rule", "rule_id", "test")

    def __init__(self, rule: Rule, position: int, test: Test, clears: Test | None) -> None:
        self.rule = rule
        self.rule_id = rule.rule_id
        self.position = position
        self.test = test
        self.clears = clears
        self.for_ms = round(rule.spec.for_s * 1000)


class RuleBook:
    """All rules at one time, compiled as devices ask for them. A change of rules makes a new book."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = {rule.rule_id: rule for rule in rules}
        self._shared = [r for r in rules if r.spec.enabled and r.spec.scope.device_id is None]
        self._own: dict[str, list[Rule]] = {}
        for rule in rules:
            device_id = rule.spec.scope.device_id
            if rule.spec.enabled and device_id is not None:
                self._own.setdefault(device_id, []).append(rule)
        self._compiled: dict[tuple[str, MetricSet], tuple[Check, ...]] = {}
        self._has_silences = any(isinstance(rule.spec.condition, NoData) for rule in rules)

    def covering(self, device_id: str, device_type: str) -> list[Rule]:
        """The enabled rules that watch the device."""
        candidates = [*self._shared, *self._own.get(device_id, ())]
        return [rule for rule in candidates if rule.spec.scope.covers(device_id, device_type)]

    def silences(self, device_id: str, device_type: str) -> tuple[Rule, ...]:
        """The enabled no-data rules that watch the device."""
        if not self._has_silences:
            return ()
        return tuple(r for r in self.covering(device_id, device_type) if isinstance(r.spec.condition, NoData))

    def checks(
        self, device_id: str, device_type: str, metrics: MetricSet, windows: Sequence[Window]
    ) -> tuple[Check, ...]:
        """The compiled rules that watch the device and whose metric it has with the right kind.

        Devices of one type share the profile, and so the windows: what is compiled is shared too.
        """
        if device_id in self._own:
            return _compile(self.covering(device_id, device_type), metrics, windows)
        known = self._compiled.get((device_type, metrics))
        if known is None:
            known = _compile(self.covering(device_id, device_type), metrics, windows)
            if len(self._compiled) >= COMPILED_SETS:
                self._compiled.clear()
            self._compiled[device_type, metrics] = known
        return known


def _compile(rules: Sequence[Rule], metrics: MetricSet, windows: Sequence[Window]) -> tuple[Check, ...]:
    checks = []
    for rule in rules:
        spec = rule.spec
        position = metrics.index.get(spec.condition.metric)
        if position is None or isinstance(spec.condition, NoData):
            continue
        kind = metrics.kinds[position]
        test = _compilers[type(spec.condition)](spec.condition, position, kind, windows)
        clears = None
        if spec.clear is not None:
            clears = _compilers[type(spec.clear)](spec.clear, position, kind, windows)
        if test is not None and (spec.clear is None or clears is not None):
            checks.append(Check(rule, position, test, clears))
    return tuple(checks)


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
