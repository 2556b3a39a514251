"""Tests of the hour of the week, by the clock of a time zone."""

import datetime
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any, Final

from sensorium.actors.conditions.kinds import EVERY_DAY, Schedule
from sensorium.actors.conditions.registry import Memory, Test, compiles
from sensorium.actors.metrics import MetricSet
from sensorium.actors.windows import Window

_DAY_MINUTES: Final = 24 * 60
_DAY: Final = datetime.timedelta(days=1)


def zone_problem(name: str) -> str | None:
    """Why it is no time zone; None for one."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return f"no time zone {name!r} is known; use an IANA name such as Europe/Berlin"
    return None


def date_problem(date: str) -> str | None:
    """Why it is no date; None for one."""
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        return f"{date} is not a day of the calendar"
    return None


@compiles(Schedule)
def _schedule(condition: Schedule, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    open_at = opening(condition)

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        return open_at(time_ms)

    return test


def opening(schedule: Schedule) -> Callable[[int], bool | None]:
    """Whether a time is within the schedule; None for one that the calendar does not reach."""
    zone = zoneinfo.ZoneInfo(schedule.timezone)
    days = frozenset(EVERY_DAY.index(day) for day in schedule.days)
    holidays = frozenset(datetime.date.fromisoformat(date) for date in schedule.holidays)
    start, end = _minutes(schedule.start), _minutes(schedule.end)
    overnight = end <= start

    def begins_on(date: datetime.date) -> bool:
        return date.weekday() in days and date not in holidays

    def open_at(time_ms: int) -> bool | None:
        try:
            local = datetime.datetime.fromtimestamp(time_ms / 1000, zone)
            minute = local.hour * 60 + local.minute
            if overnight and minute < end:
                return begins_on(local.date() - _DAY)
        except (OverflowError, ValueError, OSError):
            return None
        until = _DAY_MINUTES if overnight else end
        return start <= minute < until and begins_on(local.date())

    return open_at


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
