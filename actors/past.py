"""What was, for those who relive it: the port by which backtests and explanations read. Never written to."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Registration, TailReading
from sensorium.actors.rules import Rule

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
