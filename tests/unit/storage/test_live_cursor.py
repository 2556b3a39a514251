"""Cursors of the live feed: what is written is read, and everything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.errors import InvalidMessage
from sensorium.storage.live_cursor import (
    MAX_COMMITS,
    MAX_CURSOR_CHARS,
    Position,
    read_cursor,
    write_cursor,
)

FLOOR_MS = 1_795_000_000_000

positions = st.builds(
    lambda floor_ms, later: Position(floor_ms, frozenset(floor_ms * 1000 + us for us in later)),
    st.integers(0, 253_402_300_799_000),
    st.frozensets(st.integers(0, 60_000_000), max_size=50),
)


@given(st.lists(positions, min_size=1, max_size=4))
def test_a_cursor_says_where_it_came_from(where: list[Position]) -> None:
    assert read_cursor(write_cursor(where), len(where)) == where


@given(st.text(max_size=200))
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidMessage):
        read_cursor(text, 1)


@given(st.data())
def test_a_cursor_with_a_letter_changed_is_refused(data: st.DataObject) -> None:
    text = write_cursor([data.draw(positions)])
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + ("B" if text[place] == "A" else "A") + text[place + 1 :]
    # The last letter may hold bits that stand for nothing.
    if place < len(text) - 1:
        with pytest.raises(InvalidMessage):
            read_cursor(changed, 1)


def test_a_cursor_of_other_databases_says_so() -> None:
    with pytest.raises(InvalidMessage, match="2 databases, not 1"):
        read_cursor(write_cursor([Position(FLOOR_MS), Position(FLOOR_MS)]), 1)


def test_a_cursor_stays_short_and_leaves_old_commits_out() -> None:
    commits = frozenset(FLOOR_MS * 1000 + n * 10_000 for n in range(2 * MAX_COMMITS))
    text = write_cursor([Position(FLOOR_MS, commits)])
    assert len(text) < MAX_CURSOR_CHARS
    (found,) = read_cursor(text, 1)
    assert found.floor_ms == FLOOR_MS
    assert found.commits_us == frozenset(sorted(commits)[-MAX_COMMITS:])
