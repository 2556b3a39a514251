"""Rolling windows against a brute-force window that keeps every reading."""

import copy
import importlib.util
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors import windows
from sensorium.actors._panes_py import CELLS
from sensorium.actors._panes_py import Panes as PythonPanes
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.profile import WindowSpec
from sensorium.actors.windows import Aggregate, Window

PANES_IN_C = "sensorium.actors._panes"


@pytest.fixture(scope="module", params=["c", "python"], autouse=True)
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this file runs over windows of both kinds of panes: `Window` is the one at hand."""
    global Window
    if request.param == "c":
        pytest.importorskip(PANES_IN_C, exc_type=ImportError)
        yield
        return
    spec = importlib.util.spec_from_file_location("windows_in_python", windows.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, PANES_IN_C, None)
        spec.loader.exec_module(module)
    assert issubclass(module.Window, PythonPanes)
    before, Window = Window, module.Window
    yield
    Window = before


SPECS = st.builds(
    lambda panes, slide_s: WindowSpec(panes * slide_s, slide_s),
    st.integers(1, 12),
    st.sampled_from([0.001, 0.25, 1.0, 7.0, 60.0]),
)


@dataclass
class BruteForce:
    """What a window must say, from all readings ever seen, with exact arithmetic."""

    spec: WindowSpec
    newest: int | None = None
    readings: list[tuple[int, list[Value | None]]] = field(default_factory=list)

    def observe(self, values: list[Value | None], time_ms: int) -> None:
        pane = time_ms // self.spec.slide_ms
        if self.newest is None or pane > self.newest:
            self.newest = pane
        self.readings.append((time_ms, values))

    def aggregate(self, position: int) -> Aggregate | None:
        assert self.newest is not None
        seen = [
            (time_ms, value)
            for time_ms, values in self.readings
            if self.newest - self.spec.panes < time_ms // self.spec.slide_ms
            if position < len(values) and isinstance(value := values[position], float)
        ]
        if not seen:
            return None
        exact = [Fraction(value) for _, value in seen]
        mean = sum(exact, Fraction()) / len(exact)
        variance = sum(((v - mean) ** 2 for v in exact), Fraction()) / len(exact)
        newest_ms = max(time_ms for time_ms, _ in seen)
        return Aggregate(
            count=len(seen),
            mean=float(mean),
            stddev=math.sqrt(variance),
            sum=float(sum(exact, Fraction())),
            min=min(value for _, value in seen),
            max=max(value for _, value in seen),
            # Among readings of one time, the first to arrive is first and the last to arrive is last.
            first=min(seen, key=lambda pair: pair[0])[1],
            last=[value for time_ms, value in seen if time_ms == newest_ms][-1],
        )


def assert_alike(actual: Aggregate | None, expected: Aggregate | None) -> None:
    if actual is None or expected is None:
        assert actual == expected
        return
    assert (actual.count, actual.min, actual.max, actual.first, actual.last) == (
        expected.count,
        expected.min,
        expected.max,
        expected.first,
        expected.last,
    )
    spread = expected.max - expected.min
    size = max(abs(expected.min), abs(expected.max))
    assert actual.mean == pytest.approx(expected.mean, rel=1e-12, abs=1e-12 * size + TINY)
    assert actual.sum == pytest.approx(expected.sum, rel=1e-12, abs=1e-12 * size * expected.count + TINY)
    assert actual.stddev == pytest.approx(expected.stddev, rel=1e-6, abs=1e-9 * spread + 1e-15 * size + TINY)


def assert_same_window(window: Window, brute: BruteForce, metrics: int) -> None:
    assert window.newest == brute.newest
    if brute.newest is not None:
        end_ms = (brute.newest + 1) * brute.spec.slide_ms
        assert window.bounds_ms() == (end_ms - brute.spec.panes * brute.spec.slide_ms, end_ms)
        for position in range(metrics + 1):
            assert_alike(window.aggregate(position), brute.aggregate(position))


TINY = 1e-150
"""Deviations below it vanish: their squares are no floats any more."""

NUMBERS = st.one_of(
    st.floats(-1e6, 1e6),
    st.floats(-1.0, 1.0).map(lambda off: 1e9 + off * 1e-3),
    st.sampled_from([0.0, -0.0, 1e9, -1e9, 5e-324]),
)
VALUES = st.one_of(NUMBERS, NUMBERS, st.none(), st.booleans(), st.text(max_size=2))


@st.composite
def histories(draw: st.DrawFn) -> tuple[WindowSpec, int, list[tuple[int, list[Value | None]]]]:
    """A spec, a count of metrics and readings: steps on, falls back, repeats a time or leaps far ahead."""
    spec = draw(SPECS)
    length_ms = spec.panes * spec.slide_ms
    metrics = draw(st.integers(1, 4))
    step = st.one_of(
        st.just(0),
        st.integers(1, spec.slide_ms),
        st.integers(-2 * length_ms, -1),
        st.integers(1, 2 * length_ms),
        st.sampled_from([10 * length_ms, 1000 * length_ms + 1]),
    )
    time_ms = draw(st.sampled_from([0, -1, -length_ms, 1_700_000_000_000]))
    readings = []
    for _ in range(draw(st.integers(0, 40))):
        time_ms += draw(step)
        readings.append((time_ms, draw(st.lists(VALUES, min_size=1, max_size=metrics))))
    return spec, metrics, readings


@given(histories(), st.randoms(use_true_random=False))
def test_equals_brute_force(history, random):
    spec, metrics, readings = history
    window, brute = Window(spec), BruteForce(spec)
    for time_ms, values in readings:
        window.observe(values, time_ms)
        brute.observe(values, time_ms)
        if random.random() < 0.5:  # asking or not must make no difference to later answers
            assert_same_window(window, brute, metrics)
    assert_same_window(window, brute, metrics)


@given(histories(), st.integers(0, 40))
def test_continues_identically_after_restore(history, stop):
    spec, metrics, readings = history
    window = Window(spec)
    for time_ms, values in readings[:stop]:
        window.observe(values, time_ms)
    restored = Window.restore(spec, window.newest, window.dump())
    for time_ms, values in readings[stop:]:
        window.observe(values, time_ms)
        restored.observe(values, time_ms)
    for position in range(metrics):
        assert restored.aggregate(position) == window.aggregate(position)
    assert (restored.newest, restored.dump()) == (window.newest, window.dump())


@given(histories(), st.integers(1, 5))
def test_advance_is_a_reading_without_values(history, leap):
    spec, metrics, readings = history
    window, brute = Window(spec), BruteForce(spec)
    for time_ms, values in readings:
        window.observe(values, time_ms)
        brute.observe(values, time_ms)
        window.advance(time_ms + leap * spec.slide_ms)
        brute.observe([], time_ms + leap * spec.slide_ms)
    assert_same_window(window, brute, metrics)


def test_keeps_the_deviation_of_small_spreads_at_large_offsets_after_an_outlier_has_left():
    window = Window(WindowSpec(60.0, 10.0))
    window.observe([0.0], 0)
    for second in range(1, 200):
        window.observe([1e9 + (1e-3 if second % 2 else -1e-3)], second * 1000)
    aggregate = window.aggregate(0)
    assert aggregate is not None
    assert aggregate.count == 60
    assert aggregate.mean == pytest.approx(1e9, rel=1e-15)
    assert aggregate.stddev == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("extreme", [1.7e308, -1.7e308])
def test_survives_values_whose_sum_is_no_float(extreme):
    window = Window(WindowSpec(40.0, 10.0))
    for second, value in enumerate([1.0, extreme, extreme, -extreme, extreme, 2.0]):
        window.observe([value], second * 10_000)
        aggregate = window.aggregate(0)
        assert aggregate is not None
    assert (aggregate.count, aggregate.last) == (4, 2.0)
    for second in range(6, 10):
        window.observe([2.0], second * 10_000)
    healed = window.aggregate(0)
    assert healed is not None
    assert (healed.count, healed.mean, healed.stddev) == (4, 2.0, 0.0)


def test_a_late_reading_counts_before_1970_too():
    window = Window(WindowSpec(60.0, 10.0))
    window.observe([1.0], -1)
    window.observe([2.0], -10_001)
    moments = window.moments(0)
    assert moments is not None
    assert (moments.count, moments.mean) == (2, 1.5)


def test_memory_does_not_grow_with_readings():
    window = Window(WindowSpec(900.0, 60.0))
    window.observe([1.0, 2.0, 3.0], 0)
    size_bytes = sum(len(cells) for cells in window.dump() if cells is not None)
    for second in range(1, 5000, 7):
        window.observe([float(second), 2.0, 3.0], second * 1000)
        window.aggregate(0)
    assert sum(len(cells) for cells in window.dump() if cells is not None) == size_bytes
    assert size_bytes <= 3 * 1400, "three metrics with the default window must leave a device under 8 KB"


def test_metrics_that_are_not_numbers_take_no_cells():
    window = Window(WindowSpec())
    window.observe([True, "on", None, 1.0], 0)
    assert [cells is not None for cells in window.dump()] == [False, False, False, True]


def test_knows_nothing_before_the_first_reading():
    window = Window(WindowSpec())
    assert window.bounds_ms() is None
    assert window.moments(0) is None
    assert window.aggregate(0) is None


@pytest.mark.parametrize(
    ("length_s", "slide_s"),
    [
        (0.0, 60.0),
        (90.0, 60.0),
        (60.0, 0.0),
        (60.0, -1.0),
        (1441.0, 1.0),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        (float("inf"), float("inf")),
        (0.001, 0.0005),
        (0.003, 0.0015),
    ],
)
def test_spec_refuses_what_is_not_whole_panes(length_s, slide_s):
    with pytest.raises(InvalidMessage, match="whole slides"):
        WindowSpec(length_s, slide_s)


@given(histories(), st.randoms(use_true_random=False))
def test_both_kinds_of_panes_have_the_same_bits(history, random):
    native = pytest.importorskip(PANES_IN_C, exc_type=ImportError)
    spec, metrics, readings = history
    pair = [kind(spec.panes, spec.slide_ms) for kind in (native.Panes, PythonPanes)]
    for number, (time_ms, values) in enumerate(readings):
        ask = random.random() < 0.3
        for panes in pair:
            panes.observe(values if number % 2 else tuple(values), time_ms)
            if ask:
                panes.advance(time_ms + spec.slide_ms)
        found = [[panes.figures(position) for position in range(metrics + 1)] for panes in pair]
        for one, other in zip(*found, strict=True):
            # A newer Python's sum() rounds less.
            assert one == other if one is None else one == pytest.approx(other, rel=1e-12, abs=1e-140)
        assert pair[0].newest == pair[1].newest
        cells = [[panes.cells(position) for position in range(metrics)] for panes in pair]
        for one, other in zip(*cells, strict=True):
            assert (one and list(one)) == (other and list(other))
    for panes, other in (pair, pair[::-1]):
        again = type(other)(spec.panes, spec.slide_ms)
        again.load(panes.newest, panes.dump())
        assert again.dump() == panes.dump()


def test_a_copy_and_a_pickle_go_their_own_ways():
    window = windows.Window(  # pickles name the class by its module
        WindowSpec(60.0, 10.0)
    )
    window.observe([1.0, None, 3.0], 5_000)
    for again in (copy.deepcopy(window), pickle.loads(pickle.dumps(window))):
        assert (again.spec, again.newest, again.dump()) == (window.spec, window.newest, window.dump())
        again.observe([2.0], 6_000)
        assert again.dump() != window.dump()


def test_refuses_a_dump_of_other_panes():
    window = Window(WindowSpec(60.0, 10.0))
    window.observe([1.0], 0)
    with pytest.raises(ValueError, match="other panes"):
        Window.restore(WindowSpec(60.0, 20.0), 0, window.dump())
    with pytest.raises((ValueError, TypeError)):
        Window.restore(WindowSpec(60.0, 20.0), 0, ["no bytes"])


def test_says_nothing_of_positions_that_were_never_filled():
    window = Window(WindowSpec(60.0, 10.0))
    window.observe([1.0, "text"], 0)
    for position in (-1, 1, 2, 10**6):
        assert window.moments(position) is None
        assert window.cells(position) is None
    assert len(window.cells(0)) == 6 * CELLS


def test_takes_times_as_far_as_64_bits_reach():
    for spec in (WindowSpec(0.005, 0.001), WindowSpec()):
        window = Window(spec)
        for time_ms in (-(2**63), 2**63 - 1, -(2**63), 0):
            window.observe([1.0], time_ms)
            window.advance(time_ms)
        figures = window.moments(0)
        assert figures is not None
        assert figures.count == 1


def test_panes_refuse_nonsense():
    for panes, slide_ms in ((0, 1), (1, 0), (-1, 5)):
        for kind in {PythonPanes, windows.Panes}:
            with pytest.raises(ValueError, match="one pane"):
                kind(panes, slide_ms)
    with pytest.raises(TypeError):
        Window(WindowSpec()).observe(None, 0)
    with pytest.raises(TypeError):
        Window(WindowSpec()).observe([1.0], "now")
