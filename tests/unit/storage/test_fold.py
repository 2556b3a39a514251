"""Values folded into buckets: both twins, late and absent ones, and stretches of the log that are merged."""

import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors import sketch
from sensorium.storage import _fold_py
from sensorium.storage._fold_py import Folded, fold_texts
from sensorium.storage.rollup import MINUTE_MS, merged

Series = tuple[Any, Any, int, int]
times = st.integers(-3 * MINUTE_MS, 20 * MINUTE_MS)
values = st.floats(allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, 1.7e308, 20.5])
widths = st.sampled_from([1, 1000, MINUTE_MS, 60 * MINUTE_MS])


@st.composite
def series(draw: st.DrawFn) -> Series:
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(times, st.lists(values, min_size=width, max_size=width)), max_size=30))
    numbers = array("d", [value for _, row in rows for value in row])
    return array("q", [time_ms for time_ms, _ in rows]), numbers, draw(st.integers(0, width - 1)), width


@pytest.fixture(params=["c", "python"])
def fold(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return _fold_py.fold
    return pytest.importorskip("sensorium.storage._fold", exc_type=ImportError).fold


def bits(folded: list[Folded]) -> list[list[object]]:
    """Told apart are the zeros, too."""
    return [[v.hex() if isinstance(v, float) else v for v in bucket] for bucket in folded]


@given(series(), widths)
def test_the_c_module_folds_as_its_twin_does(given_series: Series, bucket_ms: int) -> None:
    native = pytest.importorskip("sensorium.storage._fold", exc_type=ImportError)
    assert bits(native.fold(*given_series, bucket_ms)) == bits(_fold_py.fold(*given_series, bucket_ms))


def test_both_make_one_bin_of_the_lowest_ones_when_there_are_too_many(fold: Any) -> None:
    many = array("d", [sketch.GAMMA ** (n / 2) for n in range(-5000, 5000)])
    [bucket] = fold(array("q", range(len(many))), many, 0, 1, MINUTE_MS)
    bins: sketch.Bins = {}
    sketch.merge(bins, sketch.bins_of(many))
    assert sketch.decode(bucket[10]) == bins
    assert len(bins) == sketch.MAX_BINS


def test_late_absent_and_equally_old_values(fold: Any) -> None:
    told = array("d", [3.0, math.nan, 1.0, 2.0, 5.0, 9.0])
    at = array("q", [60_500, 60_600, 60_100, 60_100, 60_500, -1])
    before, bucket = fold(at, told, 0, 1, MINUTE_MS)
    assert before[:10] == (-60_000, -1, -1, 9.0, 81.0, 9.0, 9.0, 9.0, 9.0, 1)
    assert bucket[:10] == (60_000, 60_100, 60_500, 11.0, 39.0, 1.0, 5.0, 1.0, 5.0, 4)
    assert bucket[11:] == (None, None)


@given(st.lists(st.tuples(times, st.integers(-1000, 1000)), min_size=1, max_size=30), st.data())
def test_stretches_merged_are_the_whole(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))

    def folded(part: list[tuple[int, int]]) -> dict[int, Folded]:
        at, told = array("q", [t for t, _ in part]), array("d", [v for _, v in part])
        return {bucket[0]: bucket for bucket in _fold_py.fold(at, told, 0, 1, MINUTE_MS)}

    first, then = folded(rows[:cut]), folded(rows[cut:])
    both = first | {k: merged(first[k], v) if k in first else v for k, v in then.items()}
    assert both == folded(rows)


def test_texts_have_their_ends_and_how_many() -> None:
    [bucket] = fold_texts([5, 3, 9, 9, 7], ["b", "a", "c", "d", None], MINUTE_MS)
    assert bucket == (0, 3, 9, *[None] * 6, 4, None, "a", "d")


@pytest.mark.parametrize(
    ("numbers", "slot", "width", "bucket_ms"),
    [
        ([1.0], 0, 1, 1),
        ([1.0, 2.0], 1, 1, 1),
        ([1.0, 2.0], -1, 1, 1),
        ([1.0, 2.0], 0, 1, 0),
        ([], 0, 2**60, 1),
    ],
)
def test_what_does_not_fit_is_refused(
    fold: Any, numbers: list[float], slot: int, width: int, bucket_ms: int
) -> None:
    with pytest.raises(ValueError, match="fit"):
        fold(array("q", [1, 2]), array("d", numbers), slot, width, bucket_ms)
