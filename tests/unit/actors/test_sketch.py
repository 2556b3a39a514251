"""The quantile sketch against sorted values: its error, its merging and its bytes."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage

# Below the smallest normal float, floats themselves are less precise than the sketch's promise.
values = st.floats(allow_nan=False, allow_infinity=False).filter(lambda v: v == 0 or abs(v) > 1e-300)
lists = st.lists(values, min_size=1, max_size=200)


@given(lists, st.floats(0, 1))
def test_a_quantile_is_within_the_relative_error(numbers: list[float], q: float) -> None:
    exact = sorted(numbers)[math.floor(q * (len(numbers) - 1))]
    found = sketch.quantile(sketch.bins_of(numbers), q)
    assert abs(found - exact) <= (sketch.RELATIVE_ERROR + 1e-9) * abs(exact)


@given(st.lists(lists, min_size=1, max_size=5), st.randoms())
def test_merging_in_any_order_is_as_folding_all(parts: list[list[float]], rng: object) -> None:
    whole = sketch.bins_of([v for part in parts for v in part])
    rng.shuffle(parts)  # type: ignore[attr-defined]
    merged: sketch.Bins = {}
    for part in parts:
        sketch.merge(merged, sketch.bins_of(part))
    assert merged == whole


@given(st.dictionaries(st.integers(-80_000, 80_000), st.integers(1, 2**63), max_size=300))
def test_bytes_say_the_same(bins: sketch.Bins) -> None:
    assert sketch.decode(sketch.encode(bins)) == bins


@given(st.binary(max_size=60))
def test_foreign_bytes_are_bins_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        assert isinstance(sketch.decode(data), dict)


def test_too_many_bins_become_fewer_and_the_upper_quantiles_stay() -> None:
    bins: sketch.Bins = {}
    sketch.merge(bins, sketch.bins_of([sketch.GAMMA**n for n in range(-1500, 1500)]))
    assert len(bins) == sketch.MAX_BINS
    assert sum(bins.values()) == 3000
    exact = sketch.GAMMA ** (0.95 * 2999 - 1500)
    assert sketch.quantile(bins, 0.95) == pytest.approx(exact, rel=2 * sketch.RELATIVE_ERROR)


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="without values"):
        sketch.quantile({}, 0.5)
