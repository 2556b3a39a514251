"""Tests of figures over a rolling window, and which windows conditions need."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sensorium.actors.conditions.kinds import (
    AnyCondition,
    Formula,
    Reference,
    WindowAggregate,
    ZScore,
    parts_of,
)
from sensorium.actors.conditions.registry import (
    OPERATORS,
    Limit,
    Memory,
    Test,
    compile_limit,
    compiles,
    position_of,
    z_score_test,
)
from sensorium.actors.formulas import Windowed, nodes_of, parse_formula
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.profile import WindowSpec
from sensorium.actors.windows import Window

PANES: Final = 15
"""Of a window that a rule asks for and the profile has not: it ends exact to a fifteenth of its length."""


def needed_windows(condition: AnyCondition) -> Iterator[WindowSpec]:
    """The windows that the condition names by length, as a device makes them if its profile has none."""
    if isinstance(condition, WindowAggregate | ZScore) and condition.window_s is not None:
        yield _spec_of(condition.window_s)
    elif isinstance(condition, Formula):
        for text in condition.texts():
            yield from windows_in(text)
    for _, part in parts_of(condition):
        yield from needed_windows(part)


def windows_in(formula: str) -> Iterator[WindowSpec]:
    """The same of a formula."""
    for node in nodes_of(parse_formula(formula)):
        if isinstance(node, Windowed) and node.window_s is not None:
            yield _spec_of(node.window_s)


def _spec_of(window_s: float) -> WindowSpec:
    slide_ms = max(math.floor(window_s * 1000 / PANES), 1)
    return WindowSpec(slide_ms * PANES / 1000, slide_ms / 1000)


def same_length(one_s: float, other_s: float) -> bool:
    """Whether two windows are as long as each other, but for the whole milliseconds of their panes."""
    return abs(one_s - other_s) < PANES / 1000


def index_of(window_s: float | None, windows: Sequence[Window]) -> int | None:
    """Where the window of this length stands, None: the first one; None when there is none."""
    if window_s is None:
        return 0 if windows else None
    for index, window in enumerate(windows):
        if same_length(window.spec.length_s, window_s):
            return index
    return None


@compiles(ZScore)
def _z_score(condition: ZScore, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    index = index_of(condition.window_s, windows)
    if position is None or index is None:
        return None
    return z_score_test(position, index, condition.value, condition.min_count)


@compiles(WindowAggregate)
def _window_aggregate(
    condition: WindowAggregate, metrics: MetricSet, windows: Sequence[Window]
) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    index = index_of(condition.window_s, windows)
    limit_of = _limit(condition.value, metrics)
    if position is None or index is None or limit_of is None:
        return None
    figure, min_count = FIGURES[condition.function], condition.min_count
    compare = OPERATORS[condition.operator]

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        limit = limit_of(values, memory)
        if value is None or type(limit) is not float:
            return None
        count, result = figure(memory.windows[index], position, value)
        return count >= min_count and compare(result, limit)

    return test


def _limit(value: float | Reference, metrics: MetricSet) -> Limit | None:
    if isinstance(value, Reference):
        return compile_limit(value, metrics)
    limit = float(value)
    return lambda values, memory: limit


Figure = Callable[[Window, int, float], tuple[int, float]]
"""The count and the figure over a window and the value that is about to enter it."""


def _mean(window: Window, position: int, value: float) -> tuple[int, float]:
    moments = window.moments(position)
    if moments is None:
        return 1, value
    count = moments.count + 1
    return count, moments.mean + (value - moments.mean) / count


def _stddev(window: Window, position: int, value: float) -> tuple[int, float]:
    moments = window.moments(position)
    if moments is None:
        return 1, 0.0
    n = moments.count
    off = value - moments.mean
    variance = (moments.stddev**2 + off * off / (n + 1)) * n / (n + 1)
    return n + 1, math.sqrt(variance)


def _sum(window: Window, position: int, value: float) -> tuple[int, float]:
    moments = window.moments(position)
    return (1, value) if moments is None else (moments.count + 1, moments.mean * moments.count + value)


def _count(window: Window, position: int, value: float) -> tuple[int, float]:
    moments = window.moments(position)
    count = 1 if moments is None else moments.count + 1
    return count, float(count)


def _min(window: Window, position: int, value: float) -> tuple[int, float]:
    figures = window.aggregate(position)
    return (1, value) if figures is None else (figures.count + 1, min(figures.min, value))


def _max(window: Window, position: int, value: float) -> tuple[int, float]:
    figures = window.aggregate(position)
    return (1, value) if figures is None else (figures.count + 1, max(figures.max, value))


FIGURES: Final[dict[str, Figure]] = {
    "mean": _mean,
    "stddev": _stddev,
    "sum": _sum,
    "count": _count,
    "min": _min,
    "max": _max,
}
