"""The shards of a host: which it owns at which epoch, and which of them are frozen for a hand-over. Pure."""

from collections.abc import Iterable, Mapping

from sensorium.actors.placement import shard_of
from sensorium.actors.ports import Held


class Ownership:
    """What a host believes; the commit tells it when it is wrong.

    A shard is *open* (owned), *frozen* (owned, but its messages wait) or neither. One that was closed does
    not open again at the same epoch, however late somebody says so. Which devices of an open shard have a
    dedicated one does not change within an epoch.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, int] = {}
        self.frozen: set[int] = set()
        self._closed: dict[int, int] = {}
        self._homes: dict[int, Mapping[str, int]] = {}
        self._dedicated: dict[str, int] = {}

    def shard_of(self, device_id: str) -> int:
        """The device's shard, if one is owned that could be it; else perhaps not."""
        return self._dedicated.get(device_id) or shard_of(device_id)

    def homes(self, shards: Iterable[int]) -> set[int]:
        """The dedicated shards of those shards' devices."""
        return {home for shard in shards for home in self._homes.get(shard, {}).values()}

    def news(self, held: Mapping[int, Held]) -> tuple[dict[int, Held], set[int]]:
        """What `held`, as the database has it, makes new and what it takes away: to open, and to close.

        A shard that went and came back meanwhile is both.
        """
        fresh = {
            shard: one
            for shard, one in held.items()
            if one.epoch > max(self.epochs.get(shard, 0), self._closed.get(shard, 0))
        }
        return fresh, {s for s in self.epochs if s not in held or s in fresh}

    def open(self, held: Mapping[int, Held]) -> None:
        """Own these from now on."""
        for shard, one in held.items():
            self.epochs[shard] = one.epoch
            if one.homes:
                self._homes[shard] = one.homes
        self._know()

    def close(self, shards: Iterable[int]) -> None:
        """Own these no longer."""
        for shard in shards:
            self._closed[shard] = self.epochs.pop(shard)
            self.frozen.discard(shard)
            self._homes.pop(shard, None)
        self._know()

    def freeze(self, epochs: Mapping[int, int]) -> set[int]:
        """Freeze those that are open at these epochs; returns them."""
        chosen = {s for s, e in epochs.items() if self.epochs.get(s) == e and s not in self.frozen}
        self.frozen |= chosen
        return chosen

    def thaw(self, shards: Iterable[int]) -> None:
        """Open these again, as far as they are owned."""
        self.frozen.difference_update(shards)

    def _know(self) -> None:
        self._dedicated = {device: shard for homes in self._homes.values() for device, shard in homes.items()}
