"""The devices that a host has in memory: activated on first use, saved behind, let go by `passivation`."""

import asyncio
import itertools
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.errors import Moved
from sensorium.actors.footprint import footprint_bytes
from sensorium.actors.heap import Heap
from sensorium.actors.placement import ALL_SHARDS, shard_of
from sensorium.actors.ports import Log
from sensorium.actors.recency import Recency
from sensorium.actors.records import Snapshot
from sensorium.actors.recovery import activate, take_snapshot

LOAD_BATCH = 250
"""Devices that one load takes, so that it ends soon and the bytes of many do not pile up."""


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """When devices are saved and passivated.

    Attributes:
        snapshot_every_turns: a device is saved after so many turns at the latest: bounds its replay.
        snapshot_every_s: and after so many seconds with unsaved turns.
        save_batch: devices a save takes at most, so that a turn never waits long for the encoding.
        max_active: devices kept in memory; beyond it those used least lately are passivated.
        max_active_bytes: and what they may take there, as estimated and corrected by what the process takes.
        idle_after_s: a device that was not used for so long is passivated.
    """

    snapshot_every_turns: int = 256
    snapshot_every_s: float = 30.0
    save_batch: int = 100
    max_active: int = 50_000
    max_active_bytes: int = 2 << 30
    idle_after_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Leaving:
    """Devices that leave memory together, once the snapshots of those with unsaved turns are stored.

    Attributes:
        reasons: how many leave for being idle, beyond the count, beyond the memory; saved ones among them.
        devices: those that wait for `snapshots`.
        stored: set when they have left, or are back because they could not be saved.
    """

    reasons: Mapping[str, int]
    devices: Mapping[str, Device]
    snapshots: list[Snapshot]
    stored: asyncio.Event = field(default_factory=asyncio.Event)


class Activations:
    """Devices by id, their shards' offset counters, and which of them are unsaved."""

    def __init__(
        self,
        log: Log,
        shards: Iterable[int],
        settings: ActivationSettings,
        clock_s: Callable[[], float] = time.monotonic,
        shard_of: Callable[[str], int] = shard_of,
    ) -> None:
        self.devices: dict[str, Device] = {}
        self.activated = 0
        self.estimated_bytes = 0
        """What the devices take, before any correction."""
        self._heap = Heap()
        self._recency = Recency(settings.max_active)
        self._sizes: dict[str, int] = {}
        self._leaving: dict[str, Leaving] = {}
        self._log = log
        self._given = list(shards)
        self._shards: dict[int, Shard] = {}
        self._unknown_heads: set[int] = set()
        self.settings = settings
        self._clock_s = clock_s
        self._shard_of = shard_of
        self._dirty: dict[str, Device] = {}
        self._due: dict[str, Device] = {}

    def owns(self, device_id: str) -> bool:
        """Whether the device's shard is among this host's."""
        return self._shard_of(device_id) in self._shards

    async def open(self, shards: Mapping[int, int | None] | None = None) -> None:
        """Own these shards too, by default those of the constructor; learn their heads where they are None.

        Raises `LogUnavailable`.
        """
        known = dict.fromkeys(self._given) if shards is None else shards
        unknown = sorted([number for number, head in known.items() if head is None])
        heads = await self._log.open(unknown) if unknown else {}
        for number, head in known.items():
            self._shards[number] = Shard(number, heads.get(number, 0) if head is None else head)

    def close(self, shards: Iterable[int]) -> None:
        """Own these shards no longer, and forget their devices. Call it only between turns."""
        gone = set(shards)
        for number in gone:
            self._shards.pop(number, None)
        self._unknown_heads -= gone
        self._drop([device.id for device in self.devices.values() if device.shard.number in gone])

    def certain_heads(self, shards: Iterable[int]) -> dict[int, int]:
        """The newest offsets of those of the shards where no commit is in doubt."""
        return {n: self._shards[n].head for n in shards if n in self._shards and n not in self._unknown_heads}

    async def ensure(self, device_ids: Iterable[str], around: Surroundings, *, scan: bool = False) -> None:
        """Activate those of the devices that are not in memory; one that is leaving is waited for first.

        Args:
            scan: these are looked at only: it is no use of those that are in memory already.

        Raises:
            LogUnavailable: some may have been activated.
        """
        if self._unknown_heads:
            for number, head in (await self._log.open(sorted(self._unknown_heads))).items():
                self._shards[number].head = head
            self._unknown_heads.clear()
        now_s = self._clock_s()
        devices, use = self.devices, self._recency.use
        missing = []
        for device_id in device_ids:
            device = devices.get(device_id)
            if device is None:
                missing.append(device_id)
            elif not scan:
                device.last_turn_s = now_s
                use(device_id)
        if not missing:
            return
        if not all(map(self.owns, missing)):
            raise Moved("a device's shard is not owned here")
        if self._leaving:
            missing = await self._left(missing)
        for start in range(0, len(missing), LOAD_BATCH):
            batch = missing[start : start + LOAD_BATCH]
            activated = []
            for stored in await self._log.load(batch):
                device = activate(stored, self._shards[self._shard_of(stored.device_id)], around)
                self._admit(device)
                activated.append(device)
                self.activated += 1
                if len(stored.tail) >= self.settings.snapshot_every_turns:
                    self.changed([device])
            if around.models is not None:
                around.models.catch_up(activated)
            self._heap.grew(len(batch))

    async def _left(self, device_ids: Iterable[str]) -> list[str]:
        """Those that are not in memory, once none of them is on its way out any more."""
        missing = list(device_ids)
        while waiting := {id(gone): gone for i in missing if (gone := self._leaving.get(i)) is not None}:
            for leaving in waiting.values():
                await leaving.stored.wait()
        return [device_id for device_id in missing if device_id not in self.devices]

    def _admit(self, device: Device) -> None:
        device.last_turn_s = self._clock_s()
        self.devices[device.id] = device
        self._recency.admit(device.id)
        self._measure(device)

    def _measure(self, device: Device) -> None:
        size_bytes = footprint_bytes(device)
        self.estimated_bytes += size_bytes - self._sizes.get(device.id, 0)
        self._sizes[device.id] = size_bytes

    def _drop(self, device_ids: Iterable[str]) -> None:
        """The one way out of `devices`."""
        for device_id in device_ids:
            if self.devices.pop(device_id, None) is not None:
                self.estimated_bytes -= self._sizes.pop(device_id)
                self._recency.remove((device_id,))
            self._dirty.pop(device_id, None)
            self._due.pop(device_id, None)

    def changed(self, devices: Iterable[Device]) -> None:
        """Note devices whose turns have been committed, so that they are saved in time."""
        now_s = self._clock_s()
        limit = self.settings.snapshot_every_turns
        for device in devices:
            device.last_turn_s = now_s
            if device.dirty_since_s is None:
                device.dirty_since_s = now_s
                self._dirty[device.id] = device
                # Once a snapshot is often enough: what grows are new metrics.
                self._measure(device)
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
        self._drop(device_ids)
        for number, head in heads.items():
            self._shards[number].head = head
        self._unknown_heads.update(heads)

    def take_due(self) -> list[Snapshot]:
        """Snapshots of the devices that should be saved now, `save_batch` at most.

        Call it only when every turn so far is committed.
        """
        settings = self.settings
        before_s = self._clock_s() - settings.snapshot_every_s
        due = list(self._due.values())[: settings.save_batch]
        for device in self._dirty.values():
            if len(due) >= settings.save_batch or (device.dirty_since_s or 0.0) > before_s:
                break
            if device.id not in self._due:
                due.append(device)
        return [self._clean(device) for device in due]

    def take_unsaved(self, shards: Container[int] = range(ALL_SHARDS)) -> list[Snapshot]:
        """Snapshots of unsaved devices, due or not, `save_batch` at most: for a clean stop or a hand-over."""
        unsaved = (device for device in self._dirty.values() if device.shard.number in shards)
        some = list(itertools.islice(unsaved, self.settings.save_batch))
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

    def beyond(self, correction: float = 1.0) -> tuple[int, int]:
        """How many devices and how many estimated bytes are above the bounds; neither is negative.

        Args:
            correction: how many bytes the process really takes for one that is estimated.
        """
        settings = self.settings
        allowed_bytes = int(settings.max_active_bytes / correction)
        return max(0, len(self.devices) - settings.max_active), max(0, self.estimated_bytes - allowed_bytes)

    def let_go(self, most: int, correction: float = 1.0) -> Leaving:
        """Take `most` devices at most out of memory: the idle, then those used least lately while `beyond`.

        Saved ones are gone at once. The others have to be saved; whoever asks for them waits until `gone`
        or `back` is called. Call it only when every turn so far is committed.
        """
        reasons: dict[str, int] = {}
        chosen = list(itertools.islice(self._idle(), most))
        reasons["idle"] = len(chosen)
        over, over_bytes = self.beyond(correction)
        over -= len(chosen)
        over_bytes -= sum(self._sizes[device_id] for device_id in chosen)
        reasons["count"] = reasons["memory"] = 0
        if over_bytes > 0:
            self._recency.capacity = min(self._recency.capacity, len(self.devices))
        if over > 0 or over_bytes > 0:
            already = set(chosen)
            for device_id in self._recency.oldest():
                if len(chosen) >= most or (over <= 0 and over_bytes <= 0):
                    break
                if device_id not in already:
                    reasons["count" if over > 0 else "memory"] += 1
                    chosen.append(device_id)
                    over -= 1
                    over_bytes -= self._sizes[device_id]
        unsaved = {i: self.devices[i] for i in chosen if self.devices[i].dirty_since_s is not None}
        leaving = Leaving(reasons, unsaved, [self._clean(device) for device in unsaved.values()])
        self._drop(chosen)
        self._leaving.update(dict.fromkeys(unsaved, leaving))
        if not unsaved:
            leaving.stored.set()
        return leaving

    def _idle(self) -> Iterable[str]:
        """Those that were not used for `idle_after_s`."""
        before_s = self._clock_s() - self.settings.idle_after_s
        for segment in self._recency.oldest_of_each():
            yield from itertools.takewhile(lambda i: self.devices[i].last_turn_s < before_s, segment)

    def gone(self, leaving: Leaving) -> None:
        """The snapshots of these are stored: whoever asks for them activates them again."""
        for device_id in leaving.devices:
            del self._leaving[device_id]
        leaving.stored.set()

    def back(self, leaving: Leaving) -> None:
        """These could not be saved, so they stay."""
        for device_id, device in leaving.devices.items():
            del self._leaving[device_id]
            if self._shards.get(device.shard.number) is device.shard:
                used_s = device.last_turn_s
                self._admit(device)
                self._recency.put_back(device_id)
                self.changed([device])
                device.last_turn_s = used_s
        leaving.stored.set()

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
