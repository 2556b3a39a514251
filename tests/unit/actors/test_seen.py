"""The memory of readings: it may have to ask the log, but it is never wrong."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.actors.seen import REMEMBERED, Seen

READINGS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=3 * REMEMBERED)


@given(READINGS, st.integers(0, 3 * REMEMBERED))
@settings(max_examples=200, deadline=None)
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
