"""Conditions become tests here: each is compiled once for devices alike, then only called."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from sensorium.actors.conditions.kinds import AnyCondition, Condition, Operator, Reference
from sensorium.actors.messages import Value
from sensorium.actors.metrics import MetricSet
from sensorium.actors.twin_documents import Document
from sensorium.actors.windows import Window

try:
    from sensorium.actors._judge import Index, judge, number_test, range_test, z_score_test
except ImportError:
    from sensorium.actors._judge_py import Index, judge, number_test, range_test, z_score_test

__all__ = [
    "OPERATORS",
    "Index",
    "Limit",
    "Memory",
    "Test",
    "compile_condition",
    "compile_limit",
    "compiles",
    "judge",
    "number_test",
    "position_of",
    "range_test",
    "z_score_test",
]


class Documents(Protocol):
    """Both documents of a twin."""

    @property
    def desired(self) -> Document:
        """What people want of the device."""
        ...

    @property
    def reported(self) -> Document:
        """What the device says of itself."""
        ...


class Findings(Protocol):
    """What detectors say of the newest reading."""

    def reaches(self, metric: str, detector: str | None, score: float) -> bool | None:
        """Whether the metric has this score; None: no such detector watches it."""
        ...


class Memory(Protocol):
    """What a test may look at: the device as it was before the reading under test."""

    latest: list[Value | None]
    latest_ms: list[int]
    windows: tuple[Window, ...]

    @property
    def twin(self) -> Documents:
        """What is desired of it and what it reports."""
        ...

    @property
    def detection(self) -> Findings | None:
        """What detectors found with the reading under test already."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """As registered."""
        ...


Test = Callable[[Sequence[Any], int, Memory], bool | None]
"""Whether the condition holds: test(values, time_ms, memory), the reading's values by position.

None says that this reading cannot tell: an alarm stays as it is.
"""

Limit = Callable[[Sequence[Any], Memory], Any]
"""What a value is compared with at this reading; None: nothing is known of it."""

_C = TypeVar("_C", bound=Condition)
_Compiler = Callable[[_C, MetricSet, Sequence[Window]], Test | None]
_compilers: dict[type, _Compiler[Any]] = {}

OPERATORS: Final[dict[Operator, Callable[[Any, Any], bool]]] = {
    Operator.GT: operator.gt,
    Operator.GE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LE: operator.le,
    Operator.EQ: operator.eq,
    Operator.NE: operator.ne,
}


def compiles(condition: type[_C]) -> Callable[[_Compiler[_C]], _Compiler[_C]]:
    """Register the compiler of a condition type."""

    def register(compiler: _Compiler[_C]) -> _Compiler[_C]:
        _compilers[condition] = compiler
        return compiler

    return register


def compile_condition(condition: AnyCondition, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    """The condition's test for devices with these metrics and windows.

    None when they lack the metric or the window, or the metric is of another kind.
    """
    return _compilers[type(condition)](condition, metrics, windows)


def position_of(metric: str, kind: str, metrics: MetricSet) -> int | None:
    """Where the metric stands in the set; None when it lacks it, or has it in another kind."""
    position = metrics.index.get(metric)
    return position if position is not None and metrics.kinds[position] == kind else None


def compile_limit(reference: Reference, metrics: MetricSet) -> Limit | None:
    """What the reference names, at each reading. None when these devices lack the metric."""
    factor, offset = reference.factor, reference.offset

    def scaled(found: Any) -> Any:
        if type(found) is float or type(found) is int:
            return found * factor + offset
        return found if isinstance(found, bool | str) else None

    if reference.metadata is not None:
        name = reference.metadata
        return lambda values, memory: scaled(memory.metadata.get(name))
    if reference.twin is not None:
        document, *steps = reference.twin.split(".")

        def of_twin(values: Sequence[Any], memory: Memory) -> Any:
            twin = memory.twin
            found: Any = (twin.desired if document == "desired" else twin.reported).values
            for step in steps:
                found = found.get(step) if isinstance(found, dict) else None
            return scaled(found)

        return of_twin
    position = metrics.index.get(reference.metric or "")
    if position is None:
        return None

    def newest(values: Sequence[Any], memory: Memory) -> Any:
        value = values[position]
        return scaled(memory.latest[position] if value is None else value)

    return newest
