"""The devices that a host has in memory: activated on first use, saved behind, passivated when idle."""

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.placement import device_key, shard_of_key
from sensorium.actors.ports import Log
from sensorium.actors.records import Snapshot
from sensorium.actors.recovery import activate, take_snapshot


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """When devices are saved and passivated.

    Attributes:
        snapshot_every_turns: a device is saved after so many turns at the latest: bounds its replay.
        snapshot_every_s: and after so many seconds with unsaved turns.
        save_batch: devices a save takes at most, so that a turn never waits long for the encoding.
        max_active: devices kept in memory; beyond it the longest idle are passivated.
        idle_after_s: a device without turns for so long is passivated.
    """

    snapshot_every_turns: int = 256
    snapshot_every_s: float = 30.0
    save_batch: int = 100
    max_active: int = 50_000
    idle_after_s: float = 900.0


class Activations:
    """Devices by id, their shards' offset counters, and which of them are unsaved."""

    def __init__(
        self,
        log: Log,
        shards: Iterable[int],
        settings: ActivationSettings,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices: dict[str, Device] = {}
        self.activated = 0
        self._log = log
        self._owned = frozenset(shards)
        self._shards: dict[int, Shard] = {}
        self._unknown_heads: set[int] = set()
        self._settings = settings
        self._clock_s = clock_s
        self._dirty: dict[str, Device] = {}
        self._due: dict[str, Device] = {}

    def owns(self, device_id: str) -> bool:
        """Whether the device's shard is among this host's."""
        return shard_of_key(device_key(device_id)) in self._owned

    async def open(self) -> None:
        """Learn the shards' heads. Raises `LogUnavailable`."""
        heads = await self._log.open(sorted(self._owned))
        self._shards = {number: Shard(number, heads.get(number, 0)) for number in self._owned}

    async def ensure(self, device_ids: Iterable[str], around: Surroundings) -> None:
        """Activate those of the devices that are not in memory. Raises `LogUnavailable`."""
        if self._unknown_heads:
            for number, head in (await self._log.open(sorted(self._unknown_heads))).items():
                self._shards[number].head = head
            self._unknown_heads.clear()
        missing = [device_id for device_id in device_ids if device_id not in self.devices]
        if not missing:
            return
        for stored in await self._log.load(missing):
            shard = self._shards[shard_of_key(device_key(stored.device_id))]
            device = activate(stored, shard, around)
            device.last_turn_s = self._clock_s()
            self.devices[stored.device_id] = device
            self.activated += 1
            if len(stored.tail) >= self._settings.snapshot_every_turns:
                self.changed([device])

    def changed(self, devices: Iterable[Device]) -> None:
        """Note devices whose turns have been committed, so that they are saved in time."""
        now_s = self._clock_s()
        limit = self._settings.snapshot_every_turns
        for device in devices:
            device.last_turn_s = now_s
            if device.dirty_since_s is None:
                device.dirty_since_s = now_s
                self._dirty[device.id] = device
            if device.turns >= limit:
                self._due[device.id] = device

    def mark(self, device_ids: Iterable[str]) -> dict[int, int]:
        """The heads of these devices' shards, to be given to `discard` if their turns go wrong."""
        shards = {self.devices[device_id].shard for device_id in device_ids}
        return {shard.number: shard.head for shard in shards}

    def discard(self, device_ids: Iterable[str], heads: Mapping[int, int]) -> None:
        """Forget devices whose turns may not have been committed; `heads` are their shards' as marked before.

        The true heads are read before the next turn. Until then the marked ones are safe for snapshots of
        the shards' other devices, none of which has a later row.
        """
        for device_id in device_ids:
            self.devices.pop(device_id, None)
            self._dirty.pop(device_id, None)
            self._due.pop(device_id, None)
        for number, head in heads.items():
            self._shards[number].head = head
        self._unknown_heads.update(heads)

    def take_due(self) -> list[Snapshot]:
        """Snapshots of the devices that should be saved now, `save_batch` at most.

        Call it only when every turn so far is committed.
        """
        settings = self._settings
        before_s = self._clock_s() - settings.snapshot_every_s
        due = list(self._due.values())[: settings.save_batch]
        for device in self._dirty.values():
            if len(due) >= settings.save_batch or (device.dirty_since_s or 0.0) > before_s:
                break
            if device.id not in self._due:
                due.append(device)
        return [self._clean(device) for device in due]

    def take_unsaved(self) -> list[Snapshot]:
        """Snapshots of unsaved devices, due or not, `save_batch` at most: for a clean stop."""
        some = list(itertools.islice(self._dirty.values(), self._settings.save_batch))
        return [self._clean(device) for device in some]

    def unsaved(self, snapshots: Iterable[Snapshot]) -> None:
        """Note that these snapshots could not be stored."""
        failed = {snapshot.device for snapshot in snapshots}
        self.changed(device for device in self.devices.values() if device.key in failed)

    def heads(self, snapshots: Iterable[Snapshot]) -> Mapping[int, int]:
        """The newest offsets of the snapshots' shards, as of when they were taken."""
        heads: dict[int, int] = {}
        for snapshot in snapshots:
            heads[snapshot.shard] = max(heads.get(snapshot.shard, 0), snapshot.offset)
        return heads

    def passivate(self) -> int:
        """Drop saved devices that are idle, and the longest idle beyond the cap; returns how many.

        Unsaved ones beyond the cap become due instead: flushed first, dropped at a later call. Call it only
        between turns.
        """
        settings = self._settings
        before_s = self._clock_s() - settings.idle_after_s
        idle = [d for d in self.devices.values() if d.dirty_since_s is None and d.last_turn_s < before_s]
        for device in idle:
            del self.devices[device.id]
        dropped = len(idle)
        excess = len(self.devices) - settings.max_active
        if excess > 0:
            for device in heapq.nsmallest(excess, self.devices.values(), key=lambda d: d.last_turn_s):
                if device.dirty_since_s is None:
                    del self.devices[device.id]
                    dropped += 1
                else:
                    self._due[device.id] = device
        return dropped

    @property
    def dirty(self) -> int:
        """How many devices have turns that no snapshot holds."""
        return len(self._dirty)

    def _clean(self, device: Device) -> Snapshot:
        device.turns = 0
        device.dirty_since_s = None
        self._dirty.pop(device.id, None)
        self._due.pop(device.id, None)
        return take_snapshot(device)
