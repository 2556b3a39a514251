"""Formulas compiled for devices alike, and the conditions that compare what they give.

A compiled formula gives a finite number, or raises: `Unknown` while something that it names has no value yet,
an `ArithmeticError` or `ValueError` where nothing can be worked out, such as a division by zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sensorium.actors.conditions.kinds import Always, Formula, Reference
from sensorium.actors.conditions.registry import OPERATORS, Memory, Test, compile_limit, compiles
from sensorium.actors.conditions.windowed import FIGURES, index_of
from sensorium.actors.formulas import (
    OPERATIONS,
    Applied,
    Constant,
    Named,
    Node,
    Stepped,
    Windowed,
    metrics_in,
    nodes_of,
    parse_formula,
)
from sensorium.actors.metrics import NUMBER, TEXT, MetricSet
from sensorium.actors.windows import Window

Worked = Callable[[Sequence[Any], int, Memory], float]
"""worked(values, time_ms, memory): what a formula gives at a reading."""


class Unknown(LookupError):
    """Something that a formula names has no value at this device yet."""


class Compiled(NamedTuple):
    """A formula bound to a metric set.

    Attributes:
        positions: of the metrics that it names.
        own: whether a reading that has them all suffices: no windows, no readings before it.
    """

    work: Worked
    positions: tuple[int, ...]
    own: bool


def compile_formula(text: str, metrics: MetricSet, windows: Sequence[Window]) -> Compiled | None:
    """The formula for devices with these metrics and windows; None when they lack one, or it is text."""
    node = parse_formula(text)
    names = metrics_in(node)
    if any(name not in metrics.index for name in names):
        return None
    inner = _compile(node, metrics, windows)
    if inner is None:
        return None

    def work(values: Sequence[Any], time_ms: int, memory: Memory) -> float:
        result = inner(values, time_ms, memory)
        if not math.isfinite(result):
            raise OverflowError("the result is no finite number")
        return result

    own = not any(isinstance(each, Windowed | Stepped) for each in nodes_of(node))
    return Compiled(work, tuple(metrics.index[name] for name in names), own)


def _compile(node: Node, metrics: MetricSet, windows: Sequence[Window]) -> Worked | None:
    match node:
        case Constant(value):
            return lambda values, time_ms, memory: value
        case Named(name, own):
            return _own(name, metrics) if own else _newest(name, metrics)
        case Windowed():
            return _windowed(node, metrics, windows)
        case Stepped():
            return _stepped(node, metrics)
        case Applied(function, arguments):
            compiled = [_compile(argument, metrics, windows) for argument in arguments]
            parts = [part for part in compiled if part is not None]
            return None if len(parts) < len(compiled) else _applied(OPERATIONS[function], parts)


def _applied(operation: Callable[..., float], parts: list[Worked]) -> Worked:
    if len(parts) == 2:
        left, right = parts
        return lambda values, time_ms, memory: operation(
            left(values, time_ms, memory), right(values, time_ms, memory)
        )
    return lambda values, time_ms, memory: operation(*(part(values, time_ms, memory) for part in parts))


def _newest(name: str, metrics: MetricSet) -> Worked | None:
    position = metrics.index[name]
    if metrics.kinds[position] == TEXT:
        return None

    def newest(values: Sequence[Any], time_ms: int, memory: Memory) -> float:
        value = values[position]
        if value is None:
            value = memory.latest[position]
            if value is None:
                raise Unknown(name)
        return float(value)

    return newest


def _own(name: str, metrics: MetricSet) -> Worked | None:
    kind, _, key = name.partition(".")
    reference = Reference(metadata=key) if kind == "metadata" else Reference(twin=key)
    limit_of = compile_limit(reference, metrics)
    assert limit_of is not None, "only a metric may be lacking"

    def of_device(values: Sequence[Any], time_ms: int, memory: Memory) -> float:
        found = limit_of(values, memory)
        if found is None or isinstance(found, str):
            raise Unknown(name)
        return float(found)

    return of_device


def _windowed(node: Windowed, metrics: MetricSet, windows: Sequence[Window]) -> Worked | None:
    position = metrics.index[node.metric]
    index = index_of(node.window_s, windows)
    if index is None or metrics.kinds[position] != NUMBER:
        return None
    figure, name = FIGURES[node.figure], node.figure

    def over(values: Sequence[Any], time_ms: int, memory: Memory) -> float:
        window, value = memory.windows[index], values[position]
        if value is not None:
            return figure(window, position, value)[1]
        figures = window.aggregate(position)
        if figures is None:
            raise Unknown(node.metric)
        return float(getattr(figures, name))

    return over


def _stepped(node: Stepped, metrics: MetricSet) -> Worked | None:
    position = metrics.index[node.metric]
    if metrics.kinds[position] != NUMBER:
        return None
    rate = node.function == "rate"

    def stepped(values: Sequence[Any], time_ms: int, memory: Memory) -> float:
        value, before = values[position], memory.latest[position]
        if value is None or before is None:
            raise Unknown(node.metric)
        if not rate:
            return float(before)
        elapsed_ms = time_ms - memory.latest_ms[position]
        if elapsed_ms <= 0:
            raise Unknown(node.metric)
        return (float(value) - float(before)) * 1000.0 / elapsed_ms

    return stepped


@compiles(Formula)
def _formula(condition: Formula, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    return comparison(condition, metrics, windows)


def comparison(
    condition: Formula, metrics: MetricSet, windows: Sequence[Window], *, standing: bool = False
) -> Test | None:
    """The test of a formula; with `standing`, without a reading that has any of its metrics."""
    if any(name not in metrics.index for name in condition.metrics()):
        return None
    left = compile_formula(condition.formula, metrics, windows)
    if left is None:
        return None
    right_work, positions = _constant(condition.value), left.positions
    if isinstance(condition.value, str):
        right = compile_formula(condition.value, metrics, windows)
        if right is None:
            return None
        right_work, positions = right.work, (*positions, *right.positions)
    compare, work = OPERATORS[condition.operator], left.work

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        if not standing and all(values[position] is None for position in positions):
            return None
        try:
            return bool(compare(work(values, time_ms, memory), right_work(values, time_ms, memory)))
        except Unknown:
            return None

    return test


def _constant(value: float | str) -> Worked:
    number = 0.0 if isinstance(value, str) else float(value)
    return lambda values, time_ms, memory: number


@compiles(Always)
def _always(condition: Always, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    return None  # `derivations` asks nothing of it, and it raises no alarm
