"""The most used tests of rules, and calling several of them, in Python; `_judge.c` does the same faster."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from sensorium.actors._panes_py import Panes


class Memory(Protocol):
    """What these tests look at."""

    @property
    def windows(self) -> tuple[Panes, ...]:
        """Rolling windows."""
        ...


Test = Callable[[Sequence[Any], int, Any], bool | None]
"""test(values, time_ms, memory): whether its condition holds; None when this reading cannot tell."""

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def number_test(position: int, comparison: str, limit: float) -> Test:
    """Whether the number at `position` compares so with `limit`: ">", ">=", "<", "<=", "==" or "!="."""
    if comparison not in _COMPARE:
        raise ValueError(f"no operator: {comparison}")
    _check(position)
    compare = _COMPARE[comparison]

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        return None if value is None else compare(value, limit)

    return test


def range_test(position: int, low: float, high: float, inside: bool) -> Test:
    """Whether the number at `position` is from `low` to `high`, or is not."""
    _check(position)

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        return None if value is None else (low <= value <= high) is inside

    return test


def z_score_test(position: int, index: int, limit: float, min_count: float) -> Test:
    """Whether the number at `position` is more than `limit` deviations off the mean of window `index`.

    False with fewer than `min_count` readings in the window.
    """
    _check(position)
    _check(index)

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        value = values[position]
        if value is None:
            return None
        figures = memory.windows[index].figures(position)
        if figures is None or figures[0] < min_count:
            return False
        # With no deviation at all, the smallest departure is infinitely many deviations away.
        return bool(abs(value - figures[1]) > limit * figures[2])

    return test


def judge(
    tests: tuple[Test, ...], values: Sequence[Any], time_ms: int, memory: Memory, every: bool
) -> list[bool | None] | None:
    """Move the memory's windows on to `time_ms`, then call each test once, in order.

    Returns:
        What the tests said. Without `every`, None when none of them holds.
    """
    for window in memory.windows:
        window.advance(time_ms)
    found = [test(values, time_ms, memory) for test in tests]
    return found if every or any(found) else None


class Index:
    """Tests in an order by which a reading finds those that hold, without calling those that do not.

    In C, thresholds and ranges are sorted by metric and limit, so a reading costs what its metrics and the
    tests that hold cost, however many there are; other tests are called each. Here all are.
    """

    def __init__(self, tests: tuple[Test, ...]) -> None:
        self._tests = tests

    def holding(self, values: Sequence[Any], time_ms: int, memory: Memory) -> list[int] | None:
        """Move the memory's windows on to `time_ms`; the places of the tests that hold then, None for none.

        What a test raises comes out.
        """
        for window in memory.windows:
            window.advance(time_ms)
        found = [n for n, test in enumerate(self._tests) if test(values, time_ms, memory)]
        return found or None


def _check(position: int) -> None:
    if position < 0:
        raise ValueError("positions count from 0")
