"""The tests of rules in C against those in Python, alone and together."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors import _judge_py
from sensorium.actors._panes_py import Panes as PythonPanes

numbers = st.one_of(
    st.floats(-100, 100),
    st.integers(-3, 3).map(float),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e308]),
)
readings = st.lists(st.lists(st.none() | numbers, min_size=3, max_size=3), max_size=12)
positions = st.integers(0, 2)
limits = st.integers(-3, 3).map(float) | st.floats(-10, 10)


@pytest.fixture(scope="module")
def native() -> Any:
    return pytest.importorskip("sensorium.actors._judge", exc_type=ImportError)


@st.composite
def makers(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    kind = draw(st.sampled_from(["number_test", "range_test", "z_score_test"]))
    if kind == "number_test":
        operator = draw(st.sampled_from([">", ">=", "<", "<=", "==", "!="]))
        return kind, (draw(positions), operator, draw(limits))
    if kind == "range_test":
        return kind, (draw(positions), draw(limits), draw(limits), draw(st.booleans()))
    return kind, (draw(positions), draw(st.integers(0, 1)), abs(draw(limits)), draw(st.integers(0, 4)))


def window_pair(panes: Any) -> tuple[Any, ...]:
    return panes(3, 1000), panes(1, 7000)


@given(st.lists(makers(), max_size=5), readings, st.booleans(), st.data())
def test_both_come_to_the_same_over_panes_of_both_kinds(native, made, history, every, data):
    panes = pytest.importorskip("sensorium.actors._panes", exc_type=ImportError)
    memories = [SimpleNamespace(windows=window_pair(kind)) for kind in (panes.Panes, PythonPanes)]
    # A test of anybody's stands between them.
    own = data.draw(st.sampled_from([None, True, False]))
    sets = [
        (*(getattr(module, name)(*args) for name, args in made), lambda values, time_ms, memory: own)
        for module in (native, _judge_py)
    ]
    for second, values in enumerate(history):
        found = [
            module.judge(tests, values, second * 900, memory, every)
            for module, tests in ((native, sets[0]), (_judge_py, sets[1]))
            for memory in memories
        ]
        alone = [
            [test(values, second * 900, memory) for test in tests] for tests in sets for memory in memories
        ]
        assert found[1:] == found[:-1]
        assert alone[1:] == alone[:-1]
        assert found[0] in (None, alone[0])
        assert (found[0] is None) == (not every and True not in alone[0])
        for memory in memories:
            for window in memory.windows:
                assert window.newest == second * 900 // (1000 if window is memory.windows[0] else 7000)
                window.observe(values, second * 900)


@given(st.lists(makers(), max_size=40), readings, st.booleans())
def test_an_index_finds_those_that_hold(native, made, history, other):
    panes = pytest.importorskip("sensorium.actors._panes", exc_type=ImportError)
    memory = SimpleNamespace(windows=window_pair(panes.Panes))
    own = (lambda values, time_ms, memory: other, lambda values, time_ms, memory: None)
    tests = (*(getattr(native, name)(*args) for name, args in made[:20]), *own)
    tests += tuple(getattr(native, name)(*args) for name, args in made[20:])
    index, twin = native.Index(tests), _judge_py.Index(tests)
    for second, values in enumerate(history):
        found = index.holding(values, second * 900, memory)
        assert [window.newest for window in memory.windows] == [second * 900 // 1000, second * 900 // 7000]
        naive = [n for n, test in enumerate(tests) if test(values, second * 900, memory)]
        assert found == (naive or None)
        assert twin.holding(values, second * 900, memory) == found
        for window in memory.windows:
            window.observe(values, second * 900)


@pytest.mark.parametrize("module", ["_judge", "_judge_py"])
def test_what_is_wrong_with_an_index_is_said(module):
    judge = pytest.importorskip(f"sensorium.actors.{module}", exc_type=ImportError)
    memory = SimpleNamespace(windows=())
    assert judge.Index(()).holding([1.0], 0, memory) is None
    with pytest.raises(IndexError):
        judge.Index((judge.number_test(3, ">", 1.0),)).holding([1.0], 0, memory)
    with pytest.raises(TypeError):
        judge.Index((judge.number_test(0, ">", 1.0),)).holding(["text"], 0, memory)
    with pytest.raises(ZeroDivisionError):
        judge.Index((lambda values, time_ms, memory: 1 // 0,)).holding([1.0], 0, memory)
    with pytest.raises(AttributeError):
        judge.Index(()).holding([1.0], 0, None)


@pytest.mark.parametrize("module", ["_judge", "_judge_py"])
def test_what_is_wrong_is_said(module):
    judge = pytest.importorskip(f"sensorium.actors.{module}", exc_type=ImportError)
    memory = SimpleNamespace(windows=())
    for wrong in (
        lambda: judge.number_test(-1, ">", 1.0),
        lambda: judge.number_test(0, "=>", 1.0),
        lambda: judge.range_test(-1, 0.0, 1.0, True),
        lambda: judge.z_score_test(0, -1, 1.0, 1),
    ):
        with pytest.raises(ValueError, match=r"count from 0|no operator"):
            wrong()
    with pytest.raises(IndexError):
        judge.judge((judge.number_test(3, ">", 1.0),), [1.0], 0, memory, False)
    with pytest.raises(IndexError):
        judge.judge((judge.z_score_test(0, 0, 1.0, 1),), [1.0], 0, memory, False)
    with pytest.raises(TypeError):
        judge.judge((judge.number_test(0, ">", 1.0),), ["text"], 0, memory, False)
    with pytest.raises(ZeroDivisionError):
        judge.judge((lambda values, time_ms, memory: 1 // 0,), [1.0], 0, memory, True)
    with pytest.raises(AttributeError):
        judge.judge((), [1.0], 0, None, True)
    assert judge.judge((), [1.0], 0, memory, True) == []
    assert judge.judge((), [1.0], 0, memory, False) is None
