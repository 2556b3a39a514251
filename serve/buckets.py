"""Intervals of aggregates as charts want them: all of them, also where nothing was measured."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from sensorium.actors.messages import Value
from sensorium.serve.problems import invalid_parameter

MAX_BUCKETS: Final = 10_000
_DAY_S: Final = 86_400
_MONDAY: Final = date(2001, 1, 1)

Values = Mapping[str, Value | None]


class Fill(StrEnum):
    """An interval without readings is left out, or says null, 0, the value before, or one on the line between
    those before and after."""

    NONE = "none"
    NULL = "null"
    ZERO = "zero"
    PREVIOUS = "previous"
    LINEAR = "linear"


class Filled(NamedTuple):
    """An interval; `filled` when nothing was measured in it."""

    start_ms: int
    values: Values
    filled: bool


def fill(
    how: Fill,
    buckets: Sequence[tuple[int, Values]],
    interval_s: int,
    zone: str | None,
    start_ms: int | None,
    end_ms: int | None,
) -> list[Filled]:
    """All intervals in order of time, from that of `start_ms` to that of `end_ms`; else from the first to the
    last that is there.

    Texts and truth values lie on no line: with LINEAR they are null in between.

    Raises:
        Problem: they are more than `MAX_BUCKETS`.
    """
    there = dict(sorted(buckets))
    names = dict.fromkeys(name for values in there.values() for name in values)
    first = min(there, default=start_ms) if start_ms is None else start_ms
    last = max(there, default=None) if end_ms is None else end_ms - 1
    if first is None or last is None or first > last:
        return []
    grid = _starts(first, last, interval_s, zone)
    values = [dict(there.get(at_ms, dict.fromkeys(names))) for at_ms in grid]
    for name in names:
        _fill_metric(how, grid, values, name)
    return [Filled(at_ms, found, at_ms not in there) for at_ms, found in zip(grid, values, strict=True)]


def _starts(first_ms: int, last_ms: int, interval_s: int, zone: str | None) -> list[int]:
    if (last_ms - first_ms) // (interval_s * 1000) > MAX_BUCKETS:
        raise invalid_parameter("fill", f"more than {MAX_BUCKETS:,} intervals: choose a longer one")
    if zone is None:
        width_ms = interval_s * 1000
        return list(range(first_ms // width_ms * width_ms, last_ms + 1, width_ms))
    place, days = ZoneInfo(zone), interval_s // _DAY_S
    day = datetime.fromtimestamp(first_ms / 1000, place).date()
    day -= timedelta(days=(day - _MONDAY).days % days)
    starts: list[int] = []
    while True:
        at_ms = round(datetime(day.year, day.month, day.day, tzinfo=place).timestamp() * 1000)
        if at_ms > last_ms:
            return starts
        starts.append(at_ms)
        day += timedelta(days=days)


def _fill_metric(how: Fill, grid: Sequence[int], values: Sequence[dict[str, Any]], name: str) -> None:
    if how is Fill.LINEAR:
        _fill_lines(grid, values, name)
        return
    before: Value | None = None
    for found in values:
        if found.get(name) is None:
            found[name] = 0.0 if how is Fill.ZERO else before if how is Fill.PREVIOUS else None
        before = found[name]


def _fill_lines(grid: Sequence[int], values: Sequence[dict[str, Any]], name: str) -> None:
    known = [n for n, found in enumerate(values) if type(found.get(name)) in (float, int)]
    for found in values:
        found.setdefault(name, None)
    for left, right in pairwise(known):
        low, high = values[left][name], values[right][name]
        for n in range(left + 1, right):
            if values[n][name] is None:
                along = (grid[n] - grid[left]) / (grid[right] - grid[left])
                values[n][name] = low + (high - low) * along
