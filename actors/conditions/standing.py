"""Tests of a device as it stands, where there is no reading: what rules compare with has changed.

They are called with values of None only. What is of a reading's moment (changes, rates, z-scores, crossings)
cannot tell.
"""

from collections.abc import Sequence
from typing import Any

from sensorium.actors.conditions.computed import comparison
from sensorium.actors.conditions.kinds import (
    All,
    AnomalyScore,
    AnyCondition,
    Either,
    Formula,
    Geofence,
    Not,
    Range,
    Reference,
    Schedule,
    Threshold,
    WindowAggregate,
    parts_of,
)
from sensorium.actors.conditions.registry import (
    OPERATORS,
    Memory,
    Test,
    compile_condition,
    compile_limit,
    position_of,
)
from sensorium.actors.conditions.values import compound, negated
from sensorium.actors.conditions.windowed import index_of
from sensorium.actors.formulas import Named, nodes_of, parse_formula
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.windows import Window


def own_named(condition: AnyCondition) -> frozenset[str]:
    """What of the device's own it compares with: "twin", "metadata", both or nothing."""
    match condition:
        case Threshold(value=Reference() as limit) | WindowAggregate(value=Reference() as limit):
            given = {"twin": limit.twin, "metadata": limit.metadata}
            return frozenset(name for name, field in given.items() if field is not None)
        case Formula():
            nodes = [node for text in condition.texts() for node in nodes_of(parse_formula(text))]
            return frozenset(n.name.partition(".")[0] for n in nodes if isinstance(n, Named) and n.own)
        case _:
            return frozenset[str]().union(*(own_named(part) for _, part in parts_of(condition)))


def compile_standing(condition: AnyCondition, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    """The condition's test without a reading; None where it cannot tell."""
    match condition:
        case Threshold() | Range() | AnomalyScore() | Geofence(when="inside" | "outside"):
            return _of_newest(compile_condition(condition, metrics, windows))
        case Schedule():
            return compile_condition(condition, metrics, windows)
        case WindowAggregate():
            return _figure(condition, metrics, windows)
        case Formula():
            return comparison(condition, metrics, windows, standing=True)
        case All(parts):
            tests = [compile_standing(part, metrics, windows) for part in parts]
            return compound(tests, decisive=False, standing=True)
        case Either(parts):
            tests = [compile_standing(part, metrics, windows) for part in parts]
            return compound(tests, decisive=True, standing=True)
        case Not(part):
            return negated(compile_standing(part, metrics, windows))
        case _:
            return None


def _of_newest(test: Test | None) -> Test | None:
    if test is None:
        return None
    return lambda values, time_ms, memory: test(memory.latest, time_ms, memory)


def _figure(condition: WindowAggregate, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    index = index_of(condition.window_s, windows)
    reference, limit = condition.value, condition.value
    limit_of = compile_limit(reference, metrics) if isinstance(reference, Reference) else None
    if position is None or index is None or (isinstance(reference, Reference) and limit_of is None):
        return None
    compare, name, min_count = OPERATORS[condition.operator], condition.function, condition.min_count

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        figures = memory.windows[index].aggregate(position)
        wanted: Any = limit if limit_of is None else limit_of(values, memory)
        if figures is None or type(wanted) not in (float, int):
            return None
        return figures.count >= min_count and bool(compare(getattr(figures, name), wanted))

    return test
