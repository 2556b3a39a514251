"""Copies of devices for a sandbox, taken beside them: nothing is activated, counted, saved or emitted."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sensorium.actors.device import Device
from sensorium.actors.ports import Log
from sensorium.actors.profile import Profiles
from sensorium.actors.records import StoredDevice
from sensorium.actors.recovery import as_stored
from sensorium.actors.rules import Rule

CLONE_CHUNK: Final = 100
"""Devices that are copied before waiting messages get their turn."""


class Clones(NamedTuple):
    """Devices of one host, and what surrounded them at that moment."""

    devices: list[StoredDevice]
    profiles: Profiles
    rules: list[Rule]


async def clone(device_ids: Sequence[str], active: Mapping[str, Device], log: Log) -> list[StoredDevice]:
    """Copies of the devices: of active ones as they are in memory, of others as the log has them.

    Call it while every turn so far is committed.
    """
    copies = {i: as_stored(active[i]) for i in device_ids if i in active}
    asleep = [i for i in device_ids if i not in copies]
    if asleep:
        copies |= {stored.device_id: stored for stored in await log.load(asleep)}
    return [copies[i] for i in device_ids]
