"""The memory of readings: it may have to ask the log, but it is never wrong."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors._seen_py import Seen as PythonSeen
from sensorium.actors.seen import REMEMBERED, Seen


@pytest.fixture(scope="module", params=["_seen", "_seen_py"], autouse=True)
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this file runs over both memories: `Seen` is the one at hand."""
    global Seen
    before = Seen
    Seen = pytest.importorskip(f"sensorium.actors.{request.param}", exc_type=ImportError).Seen
    yield
    Seen = before


READINGS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=3 * REMEMBERED)


@given(READINGS, st.integers(0, 3 * REMEMBERED))
def test_above_its_floor_it_knows_every_reading(readings, restart):
    seen = Seen()
    for number, (time_ms, key) in enumerate(readings):
        if number == restart:
            seen = Seen.restore(seen.dump())
        seen.remember(time_ms, key)
    told = set(readings)
    for time_ms in range(61):
        for key in range(6):
            if seen.holds(time_ms, key):
                assert (time_ms, key) in told
                assert seen.holds_key(key)
            elif time_ms > seen.floor_ms:
                assert (time_ms, key) not in told
    for time_ms, key in readings[-REMEMBERED:]:
        assert seen.holds(time_ms, key)


def test_an_empty_memory_knows_no_key():
    assert not Seen().holds_key(0)
    assert not Seen().holds(0, 0)


INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5) | st.integers()


@given(st.lists(st.tuples(INTEGERS, INTEGERS), max_size=2 * REMEMBERED))
def test_both_memories_are_the_same(readings):
    native = pytest.importorskip("sensorium.actors._seen", exc_type=ImportError)
    pair = native.Seen(), PythonSeen()
    for time_ms, key in readings:
        fits = all(-(2**63) <= number < 2**63 for number in (time_ms, key))
        for seen in pair:
            if fits:
                seen.remember(time_ms, key)
            else:
                with pytest.raises(OverflowError):
                    seen.remember(time_ms, key)
                assert not seen.holds(time_ms, key)
        if not fits:
            return  # a turn that fails drops the device, so what is left of it is never looked at
        assert pair[0].dump() == pair[1].dump()
        assert pair[0].floor_ms == pair[1].floor_ms
        assert pair[0].holds(time_ms, key)
        assert pair[0].holds_key(key) == pair[1].holds_key(key)
    for one, other in (pair, pair[::-1]):
        assert type(one).restore(other.dump()).dump() == other.dump()


def test_a_dump_of_something_else_is_refused():
    times, keys, place, floor_ms = Seen().dump()
    for wrong in (
        (times[:-8], keys, place, floor_ms),
        (times, b"", place, floor_ms),
        (times, keys, REMEMBERED, floor_ms),
        (times, keys, -1, floor_ms),
    ):
        with pytest.raises(ValueError, match="another memory"):
            Seen.restore(wrong)
