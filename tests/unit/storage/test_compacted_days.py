"""Which days a question looks into: never too few, and its windows cover its range once."""

from collections.abc import Mapping
from datetime import date, timedelta
from itertools import pairwise
from unittest.mock import patch

import pytest
from asyncpg import Connection
from hypothesis import given
from hypothesis import strategies as st

from sensorium.storage._readings_sql import DAY_MS
from sensorium.storage.batched import Batched
from sensorium.storage.compacted_days import _DAYS, MAX_RANGES, CompactedDays
from sensorium.storage.database import Pool
from sensorium.storage.fleet_figures import FleetFigures
from sensorium.storage.spread_history import SpreadHistory

NEW_YEAR = date(2024, 1, 1)
NEW_YEAR_MS = 1_704_067_200_000
FIRST = NEW_YEAR_MS // DAY_MS
numbers = st.integers(0, 60)
known = st.dictionaries(numbers, st.sets(numbers, max_size=4), max_size=60)
moments = st.none() | st.integers(NEW_YEAR_MS - DAY_MS, NEW_YEAR_MS + 62 * DAY_MS)


def days_of(compacted: Mapping[int, set[int]], others: set[int]) -> CompactedDays:
    def day(number: int) -> date:
        return NEW_YEAR + timedelta(days=number)

    days = CompactedDays()
    days.know({day(d): list(map(day, events)) for d, events in compacted.items()}, list(map(day, others)))
    return days


@given(known, moments, moments)
def test_every_day_that_may_have_events_of_the_range_is_looked_into(
    compacted: dict[int, set[int]], start_ms: int | None, end_ms: int | None
) -> None:
    rows_from, ranges = days_of(compacted, set()).ranges(start_ms, end_ms)
    assert len(ranges) <= MAX_RANGES
    for number in range(-2, 64):
        day_ms = NEW_YEAR_MS + number * DAY_MS
        inside = any(
            (b is None or b <= FIRST + number) and (e is None or FIRST + number < e) for b, e in ranges
        )
        # A reading is committed a day before its event at most, and of a day nobody knows what is in it.
        early = start_ms is not None and day_ms + 2 * DAY_MS < start_ms
        events = [NEW_YEAR_MS + event * DAY_MS for event in compacted.get(number, ())]
        asked = [
            at
            for at in events
            if (start_ms is None or at + DAY_MS > start_ms) and (end_ms is None or at < end_ms)
        ]
        if not early and (asked or number not in compacted):
            assert inside
            assert rows_from is None or rows_from <= FIRST + number


spans = st.lists(st.tuples(numbers, numbers).map(lambda ends: (min(ends), max(ends))), max_size=4)


@given(known, spans, st.none() | st.integers(0, 62))
def test_every_day_that_may_have_readings_of_the_devices_is_looked_into(
    compacted: dict[int, set[int]], of_them: list[tuple[int, int]], since: int | None
) -> None:
    days = days_of(compacted, set())
    since_ms = None if since is None else NEW_YEAR_MS + since * DAY_MS + 1
    asked = [(FIRST + first, FIRST + last) for first, last in of_them]
    with patch("sensorium.storage.compacted_days.Committed.of_days", lambda *ranges: ranges):
        rows_from, ranges = days.of_devices(asked, since_ms)
    assert len(ranges) <= MAX_RANGES
    assert rows_from == (None if since is None else FIRST + since)
    for number in range(-2, 64):
        day = FIRST + number
        inside = any((b is None or b <= day) and (e is None or day < e) for b, e in ranges)
        has_some = number not in compacted or any(first <= number <= last for first, last in of_them)
        if has_some and (since is None or number >= since):
            assert inside
        if len(ranges) < MAX_RANGES and not has_some:
            assert not inside


def test_one_day_among_many_is_looked_into_alone() -> None:
    days = days_of({n: {n} for n in range(40)} | {30: {12, 30}}, {41})
    noon_ms = NEW_YEAR_MS + 12 * DAY_MS + DAY_MS // 2
    _, ranges = days.ranges(noon_ms, noon_ms + 3_600_000)
    assert ranges == [(FIRST + 12, FIRST + 13), (FIRST + 30, FIRST + 31), (FIRST + 40, None)]
    told = days.committed(noon_ms, noon_ms + 3_600_000)
    assert told.rows == "r.committed_at >= timestamptz '2024-01-12 00:00+00'"
    assert told.chunks.startswith(
        "(c.committed_at >= timestamptz '2024-01-13 00:00+00' AND"
        " c.committed_at < timestamptz '2024-01-14 00:00+00' OR "
    )


@given(known, st.sets(numbers), moments, moments, st.sampled_from(["asc", "desc"]))
def test_windows_cover_the_range_once_in_order(
    compacted: dict[int, set[int]], others: set[int], start_ms: int | None, end_ms: int | None, order: str
) -> None:
    windows = list(days_of(compacted, others).windows(order, start_ms, end_ms))
    if order == "desc":
        windows.reverse()
    assert windows[0][0] == start_ms
    assert windows[-1][1] == end_ms
    for (begin, end), (then, _) in pairwise(windows):
        assert end is not None
        assert end == then
        assert begin is None or begin < end
    assert len(windows) <= 4


def test_the_first_windows_are_short() -> None:
    days = days_of({n: {n} for n in range(300)}, {300, 301})
    assert next(days.windows("desc", None, None)) == (NEW_YEAR_MS + 298 * DAY_MS, None)
    assert next(days.windows("asc", NEW_YEAR_MS + 5, None)) == (NEW_YEAR_MS + 5, NEW_YEAR_MS + 4 * DAY_MS)


@pytest.mark.database
async def test_readers_of_a_database_ask_of_its_days_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    inner = Connection.fetch

    async def fetch(self: Connection, query: str, *arguments: object) -> object:
        read.append(query)
        return await inner(self, query, *arguments)

    monkeypatch.setattr(Connection, "fetch", fetch)
    days = [CompactedDays()]
    await SpreadHistory([pool], None, days).readings("d1")
    await FleetFigures([pool], days).arrivals("d1", 0, 1)
    await Batched([pool], days).readings(["d1"], None, None, 10)
    assert read.count(_DAYS) == 1
