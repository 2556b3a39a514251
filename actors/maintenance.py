"""Times at which nothing shall be told of some devices, since people work on them. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sensorium.actors.conditions.hours import date_problem, opening, zone_problem
from sensorium.actors.containment import contains
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.rules import Schedule

MAX_MS = 253_402_300_799_999


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A maintenance window: rules watch and raise alarms, and nothing is done about them.

    It is for the devices for which all holds that is given, at times for which all holds that is given.

    Attributes:
        metadata: must be contained in the device's, such as {"group": "hall 3"}.
        from_ms, until_ms: epoch milliseconds, the end excluded.
        weekly: hours of the week, by the clock of a time zone.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    device_ids: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(max_length=1_000)
    ] = ()
    device_type: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    metadata: dict[str, Any] = {}
    from_ms: Annotated[int, Meta(ge=0, le=MAX_MS)] | None = None
    until_ms: Annotated[int, Meta(ge=0, le=MAX_MS)] | None = None
    weekly: Schedule | None = None
    enabled: bool = True


def validate_maintenance(window: Maintenance) -> None:
    """Check what the types cannot say.

    Raises:
        InvalidMessage: it has no time, or one that never comes; the text says which field and why.
    """
    if window.until_ms is None and window.weekly is None:
        raise InvalidMessage("until_ms: give an end, or weekly hours; for ever is a rule without actions")
    if window.until_ms is not None and window.until_ms <= (window.from_ms or 0):
        raise InvalidMessage("until_ms: must be later than from_ms")
    weekly = window.weekly
    if weekly is None:
        return
    if (problem := weekly.problem()) is not None:
        raise InvalidMessage(f"weekly.{problem[0]}: {problem[1]}")
    if (problem_of_zone := zone_problem(weekly.timezone)) is not None:
        raise InvalidMessage(f"weekly.timezone: {problem_of_zone}")
    for number, date in enumerate(weekly.holidays):
        if (problem_of_date := date_problem(date)) is not None:
            raise InvalidMessage(f"weekly.holidays[{number}]: {problem_of_date}")


class Windows:
    """Maintenance windows at one time, ready to be asked."""

    def __init__(self, windows: Sequence[Maintenance]) -> None:
        self._windows: list[tuple[Maintenance, Callable[[int], bool | None] | None]] = [
            (window, None if window.weekly is None else opening(window.weekly))
            for window in windows
            if window.enabled
        ]

    @property
    def ask_for_metadata(self) -> bool:
        """Whether a device's metadata decides."""
        return any(window.metadata for window, _ in self._windows)

    def reason(
        self, device_id: str, device_type: str, metadata: Mapping[str, Any], moment_ms: int
    ) -> str | None:
        """Why nothing shall be told of the device then; None when there is no reason."""
        for window, open_at in self._windows:
            if (
                (not window.device_ids or device_id in window.device_ids)
                and window.device_type in (None, device_type)
                and (not window.metadata or contains(metadata, window.metadata))
                and (window.from_ms is None or window.from_ms <= moment_ms)
                and (window.until_ms is None or moment_ms < window.until_ms)
                and (open_at is None or open_at(moment_ms))
            ):
                return f"maintenance: {window.name}"
        return None
