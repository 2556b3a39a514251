"""What was, for those who relive it: the port by which backtests and explanations read. Never written to."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from sensorium.actors.merge_patch import merge_patch
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Registration, TailReading
from sensorium.actors.rules import Rule

MAX_TWIN_CHANGES: Final = 10_000
"""Of one device: what a backtest of rules that look at the twin takes."""


class TwinThen(NamedTuple):
    """What was desired of a device and what it reported, from `time_ms` on."""

    time_ms: int
    desired: dict[str, Any]
    reported: dict[str, Any]


Take = Callable[[Sequence[TailReading]], None]


class StoredPast(Protocol):
    """The stored past. One `readings` at a time; the other calls may run beside it.

    Every call raises `LogUnavailable` when the database does not answer.
    """

    async def devices(self, which: Filter, limit: int) -> list[Registration]:
        """Registrations, as they are today, of the first `limit` devices that match, in order of id."""
        ...

    async def rule(self, rule_id: str, version: int | None = None) -> Rule | None:
        """A rule as it is, or one of its versions; None when nothing is known of it."""
        ...

    async def rules(self) -> Sequence[Rule]:
        """The rules of the present."""
        ...

    async def has_readings(self, device_ids: Sequence[str], start_ms: int, end_ms: int) -> bool:
        """Whether any of the devices has any reading in the range."""
        ...

    async def readings(self, device_id: str, start_ms: int, end_ms: int, take: Take) -> None:
        """Hand a device's readings to `take` in pages, in the order in which they came.

        By event time from `start_ms` to `end_ms` (excluded). The next page is fetched when `take` returns;
        what it raises ends the reading.
        """
        ...

    async def twins(self, device_id: str, start_ms: int, end_ms: int) -> list[TwinThen]:
        """The device's twin at `start_ms` and after each change until `end_ms` (excluded), in order.

        Where the history of its changes does not go back so far, it was empty before. [] for no twin. No more
        than the first `MAX_TWIN_CHANGES` + 1.
        """
        ...

    async def alarm_times(
        self, device_id: str, rule_id: str, start_ms: int, end_ms: int
    ) -> list[tuple[int, int | None]]:
        """Start and end (None: it goes on) of the alarms of a rule at a device that began in the range."""
        ...

    async def close(self) -> None:
        """Give back the connections."""
        ...


StoredPastFactory = Callable[[], Awaitable[StoredPast]]
"""Opens it in another process. Must pickle."""


class Past(NamedTuple):
    """What it takes to relive devices: the way to its readings, and the profiles of the present."""

    open_past: StoredPastFactory
    profiles: Profiles


def moments(
    start_ms: int,
    desired: dict[str, Any],
    reported: dict[str, Any],
    changes: Iterable[tuple[str, int, dict[str, Any]]],
    end_ms: int,
) -> list[TwinThen]:
    """What `StoredPast.twins` answers, of documents and their changes after that, in the order of the log.

    Args:
        changes: kind of the event, time and merge patch of each.
    """
    found = [TwinThen(start_ms, desired, reported)]
    for kind, time_ms, patch in changes:
        if time_ms >= end_ms or len(found) > MAX_TWIN_CHANGES:
            break
        _, desired, reported = found[-1]
        if kind == "twin_desired":
            desired = merge_patch(desired, patch)
        else:
            reported = merge_patch(reported, patch)
        # Clocks of hosts differ: the log's order is that of the changes.
        then = TwinThen(max(time_ms, found[-1].time_ms), desired, reported)
        if time_ms <= start_ms:
            found.clear()
        found.append(then)
    return found
