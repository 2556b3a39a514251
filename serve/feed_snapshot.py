"""How things stand for a subscriber that begins: asked of the devices and the read models, bounded."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.errors import DeviceNotFound
from sensorium.actors.messages import DeviceInfo, GetDevice, GetLatest, Latest, LatestValue, Location
from sensorium.actors.ports import Filter
from sensorium.actors.records import OPEN_STATES, Alarm, Command, Registration
from sensorium.serve.feed_filter import ALARMS, COMMANDS, DEVICES, PRESENCE, READINGS, FeedFilter
from sensorium.serve.services import Services

MAX_DEVICES: Final = 1_000
MAX_ALARMS: Final = 1_000
ALARM_PAGES: Final = 5
"""Looked through for alarms that pass a filter which the database cannot hold."""
MAX_COMMANDS: Final = 1_000
ASKED_AT_ONCE: Final = 100
SNAPSHOTS_AT_ONCE: Final = 8


class DeviceState(msgspec.Struct, frozen=True):
    """A device as it stands. `metrics` are the newest values, when readings are wanted."""

    device_id: str
    device_type: str
    status: str
    location: Location | None
    connectivity: str
    last_seen_ms: int | None
    active_alarms: int
    metrics: dict[str, LatestValue]


class Snapshots:
    """Makes them, a few at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._making = asyncio.Semaphore(SNAPSHOTS_AT_ONCE)

    async def of(self, which: FeedFilter) -> dict[str, Any]:
        """Devices, active alarms and open commands, as far as the filter asks for them.

        `truncated` when there are more than the bounds above. Raises `SensoriumError`.
        """
        async with self._making:
            parts: dict[str, Any] = {}
            truncated = False
            if which.topics & {READINGS, PRESENCE, DEVICES}:
                found, more = await self._registrations(which)
                parts["devices"] = await self._states(found, which)
                truncated |= more
            if ALARMS in which.topics:
                parts["alarms"], more = await self._alarms(which)
                truncated |= more
            if COMMANDS in which.topics:
                parts["commands"], more = await self._commands(which)
                truncated |= more
            return {**parts, "truncated": truncated}

    async def _registrations(self, which: FeedFilter) -> tuple[list[Registration], bool]:
        ids = sorted(which.device_ids) or None
        found: list[Registration] = []
        more = False
        # One query a type: the registry filters by one.
        types: Sequence[str | None] = sorted(which.device_types) or [None]
        for device_type in types:
            left = MAX_DEVICES - len(found)
            if left == 0:
                return found, True
            page = await self._services.registry.page(Filter(device_type, "active", {}, ids), None, left)
            found += page.items
            more |= page.next is not None
        return found, more

    async def _states(self, found: Sequence[Registration], which: FeedFilter) -> list[DeviceState]:
        states: list[DeviceState] = []
        for n in range(0, len(found), ASKED_AT_ONCE):
            some = await asyncio.gather(*(self._state(r, which) for r in found[n : n + ASKED_AT_ONCE]))
            states += [state for state in some if state is not None]
        return states

    async def _state(self, registration: Registration, which: FeedFilter) -> DeviceState | None:
        ask, timeout_s = self._services.router.ask, self._services.timeout_s
        device_id = registration.device_id
        metrics: dict[str, LatestValue] = {}
        try:
            info = msgspec.convert(await ask(GetDevice(device_id), timeout_s), DeviceInfo)
            if READINGS in which.topics:
                latest = msgspec.convert(await ask(GetLatest(device_id), timeout_s), Latest)
                metrics = {
                    name: value
                    for name, value in latest.metrics.items()
                    if (not which.metrics or name in which.metrics)
                    and (not which.qualities or value.quality in which.qualities)
                }
        except DeviceNotFound:
            return None
        return DeviceState(
            device_id,
            info.device_type,
            info.status,
            info.location,
            info.connectivity,
            info.last_seen_ms,
            info.active_alarms,
            metrics,
        )

    async def _alarms(self, which: FeedFilter) -> tuple[list[Alarm], bool]:
        found: list[Alarm] = []
        after: Any = None
        for _ in range(ALARM_PAGES):
            page = await self._services.alarms.page(
                state="ACTIVE",
                severity=_only(which.severities),
                device_id=_only(which.device_ids),
                device_type=_only(which.device_types),
                rule_id=None,
                acknowledged=None,
                assignee=None,
                shelved=None,
                start_ms=None,
                end_ms=None,
                after=after,
                limit=MAX_ALARMS,
            )
            found += [alarm for alarm in page.items if _wants(which, alarm)]
            after = page.next
            if after is None or len(found) >= MAX_ALARMS:
                break
        return found[:MAX_ALARMS], after is not None or len(found) > MAX_ALARMS

    async def _commands(self, which: FeedFilter) -> tuple[list[Command], bool]:
        found: list[Command] = []
        more = False
        for state in sorted(OPEN_STATES):
            page = await self._services.commands.page(
                device_id=_only(which.device_ids),
                state=state.value,
                command=None,
                job_id=None,
                start_ms=None,
                end_ms=None,
                after=None,
                limit=MAX_COMMANDS,
            )
            more |= page.next is not None
            found += page.items
        types: dict[str, str] = {}
        if which.device_types and found:
            ids = sorted({command.device_id for command in found})
            registered = await self._services.registry.page(Filter(None, None, {}, ids), None, len(ids))
            types = {r.device_id: r.device_type for r in registered.items}
        wanted = [c for c in found if which.takes_device(c.device_id, types.get(c.device_id, ""))]
        return wanted[:MAX_COMMANDS], more or len(wanted) > MAX_COMMANDS


def _wants(which: FeedFilter, alarm: Alarm) -> bool:
    return (
        which.takes_device(alarm.device_id, alarm.device_type)
        and (not which.severities or alarm.severity in which.severities)
        and (not which.metrics or alarm.metric in which.metrics)
    )


def _only(names: frozenset[str]) -> str | None:
    """The one name of the set, to ask the database by; with several, what comes is looked through."""
    return next(iter(names)) if len(names) == 1 else None
