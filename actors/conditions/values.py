"""Tests of a reading's own values and of those just before it, and of conditions made of others."""

from collections.abc import Sequence
from typing import Any, Final

from sensorium.actors.conditions.kinds import (
    All,
    Changed,
    Either,
    NoData,
    Not,
    Parts,
    Range,
    RateOfChange,
    Reference,
    Threshold,
)
from sensorium.actors.conditions.registry import (
    OPERATORS,
    Memory,
    Test,
    compile_condition,
    compile_limit,
    compiles,
    number_test,
    position_of,
    range_test,
)
from sensorium.actors.metrics import BOOL, NUMBER, TEXT, MetricSet
from sensorium.actors.windows import Window

_SIGNS: Final = {"up": 1.0, "down": -1.0, "any": 0.0}


@compiles(Threshold)
def _threshold(condition: Threshold, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    limit = condition.value
    if isinstance(limit, Reference):
        return _reference(condition, limit, metrics)
    kind = BOOL if isinstance(limit, bool) else TEXT if isinstance(limit, str) else NUMBER
    position = position_of(condition.metric, kind, metrics)
    if position is None:
        return None
    if isinstance(limit, int | float) and kind == NUMBER:
        return number_test(position, condition.operator.value, float(limit))
    compare = OPERATORS[condition.operator]

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        return None if value is None else compare(value, limit)

    return test


def _reference(condition: Threshold, reference: Reference, metrics: MetricSet) -> Test | None:
    position = metrics.index.get(condition.metric)
    limit_of = compile_limit(reference, metrics)
    if position is None or limit_of is None:
        return None
    compare = OPERATORS[condition.operator]
    ordered = condition.operator.value not in ("==", "!=")

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value, limit = values[position], limit_of(values, memory)
        if value is None or limit is None:
            return None
        if ordered or type(value) is float:
            return compare(value, limit) if type(value) is type(limit) is float else None
        return compare(value, limit)

    return test


@compiles(Range)
def _range(condition: Range, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    if position is None:
        return None
    return range_test(position, condition.low, condition.high, condition.inside)


@compiles(RateOfChange)
def _rate_of_change(condition: RateOfChange, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    if position is None:
        return None
    compare = OPERATORS[condition.operator]
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


@compiles(Changed)
def _changed(condition: Changed, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = metrics.index.get(condition.metric)
    if position is None:
        return None
    wanted_before, wanted_after = condition.before, condition.after

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value, before = values[position], memory.latest[position]
        if value is None:
            return None
        if before is None or value == before:
            return False
        return wanted_before in (None, before) and wanted_after in (None, value)

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
    return negated(compile_condition(condition.condition, metrics, windows))


def negated(inner: Test | None) -> Test | None:
    """The test of what the inner one says not."""
    if inner is None:
        return None

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        holds = inner(values, time_ms, memory)
        return None if holds is None else not holds

    return test


def _compound(parts: Parts, decisive: bool, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    if parts[0].metric not in metrics.index:
        return None
    return compound([compile_condition(part, metrics, windows) for part in parts], decisive)


def compound(parts: Sequence[Test | None], decisive: bool, *, standing: bool = False) -> Test:
    """The test of several parts, of which one that says `decisive` decides for all (Kleene's logic).

    Args:
        parts: None is one that cannot tell, as its metric has not been sent yet.
        standing: there is no reading, whose values the newest would stand in for.
    """
    tests = [part for part in parts if part is not None]
    unknown = len(tests) < len(parts)

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        if None in values and not standing:
            values = [b if v is None else v for v, b in zip(values, memory.latest, strict=True)]
        doubt = unknown
        for part in tests:
            holds = part(values, time_ms, memory)
            if holds is decisive:
                return decisive
            doubt = doubt or holds is None
        return None if doubt else not decisive

    return test
