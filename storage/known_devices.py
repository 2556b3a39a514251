"""What sinks say of a device beside its readings: read once, remembered up to a bound. Not the registry."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Location
from sensorium.storage.database import Connection
from sensorium.storage.projection import LogEntry

MAX_KNOWN: Final = 100_000
"""Beyond it all are forgotten, and read again as they are needed."""
_CHANGES: Final = frozenset({"registered", "updated", "decommissioned"})
_SELECT: Final = (
    "SELECT device, device_id, device_type, location FROM devices WHERE device = ANY($1::bigint[])"
)


class KnownDevice(NamedTuple):
    """A device as it is registered now."""

    device_id: str
    device_type: str
    location: Location | None


class KnownDevices:
    """Devices by key. An event in the log that changes one has it read again."""

    def __init__(self) -> None:
        self._by_key: dict[int, KnownDevice] = {}

    async def of(self, connection: Connection, entries: Sequence[LogEntry]) -> dict[int, KnownDevice]:
        """The devices of these entries, as they are when the entries have been committed or later."""
        self._forget(entry.device for entry in entries if entry.kind in _CHANGES)
        keys = {entry.device for entry in entries}
        found = {key: self._by_key[key] for key in keys if key in self._by_key}
        if missing := [key for key in keys if key not in found]:
            read = {
                row["device"]: KnownDevice(
                    row["device_id"],
                    row["device_type"],
                    None if row["location"] is None else msgspec.convert(row["location"], Location),
                )
                for row in await connection.fetch(_SELECT, missing)
            }
            if len(self._by_key) + len(read) > MAX_KNOWN:
                self._by_key = {}
            self._by_key |= read
            found |= read
        return found

    def _forget(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._by_key.pop(key, None)


def named(devices: dict[int, KnownDevice], entry: LogEntry) -> KnownDevice:
    """The entry's device.

    Raises:
        InvalidMessage: nothing is known of it, so nothing can be said about it.
    """
    device = devices.get(entry.device)
    if device is None:
        raise InvalidMessage(f"no device of the key {entry.device} was ever registered")
    return device
