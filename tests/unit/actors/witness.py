"""A store that watches: what must hold of every commit and every answer, looked at when it happens."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from sensorium.actors.messages import Accepted, Answer, Duplicate
from sensorium.actors.placement import device_key
from sensorium.actors.records import Commit
from sensorium.actors.testing import MemoryStore


class Witness(MemoryStore):
    """Keeps in `violations` what was wrong, in words. Its checks owe nothing to the store's.

    Readings have the number of their device's message as key, from 1 on.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms)
        self.violations: list[str] = []
        self.acked: dict[str, int] = defaultdict(int)
        """The newest number that was acknowledged, by device."""
        self.wished: dict[str, int] = defaultdict(int)
        """The newest number of which it was acknowledged that it is desired, by device."""
        self._stored: dict[int, int] = defaultdict(int)
        self._committer: dict[tuple[int, int], int] = {}
        self._newest_epoch: dict[int, int] = {}

    def check(self) -> None:
        """Raise what was wrong first."""
        assert not self.violations, self.violations[0]

    def acknowledged(self, device_id: str, number: int, outcome: Any) -> None:
        """A sender was told so."""
        if not isinstance(outcome, Accepted | Duplicate):
            self.violations.append(f"{device_id} {number} was answered by {outcome}")
        if self._stored[device_key(device_id)] < number:
            self.violations.append(f"acknowledged and not stored: {device_id} {number}")
        if self.acked[device_id] != number - 1:
            self.violations.append(f"{number} acknowledged after {self.acked[device_id]}: {device_id}")
        self.acked[device_id] = number

    def granted(self, wish: tuple[str, int], outcome: Any) -> None:
        """Somebody was told that a number is desired of a device from now on."""
        device_id, number = wish
        if not isinstance(outcome, Answer):
            self.violations.append(f"{number} desired of {device_id} was answered by {outcome}")
        if self.twins[device_id].desired.values["n"] < number:
            self.violations.append(f"acknowledged and not stored: {number} desired of {device_id}")
        self.wished[device_id] = max(number, self.wished.get(device_id, 0))

    def answered(self, device_id: str, known: int, value: float) -> None:
        """A reader was told the latest value; `known` had been acknowledged before it asked."""
        if value < known:
            self.violations.append(f"{device_id} was read as {value} after {known} had been acknowledged")

    def _write(self, commit: Commit, incarnation: int) -> None:
        for shard, epoch in commit.epochs.items():
            self._own(shard, epoch, incarnation)
        rows = sorted((row.shard, row.offset) for row in [*commit.readings, *commit.events])
        for shard in {shard for shard, _ in rows} - commit.epochs.keys():
            self.violations.append(f"shard {shard} was written without its epoch")
        tops = dict(self._tops)
        for shard, offset in rows:
            if offset != tops.get(shard, 0) + 1:
                self.violations.append(f"offset {offset} after {tops.get(shard, 0)} in shard {shard}")
            tops[shard] = offset
        for row in commit.readings:
            if row.key <= self._stored[row.device]:
                self.violations.append(f"stored {row.key} after {self._stored[row.device]}: {row.device}")
            self._stored[row.device] = row.key
        versions = {device_id: twin.desired.version for device_id, twin in self.twins.items()}
        for twin in commit.twins:
            before = versions.get(twin.device_id, 0)
            if twin.desired.version not in (before, before + 1):
                self.violations.append(f"version {twin.desired.version} after {before}: {twin.device_id}")
            versions[twin.device_id] = twin.desired.version
        super()._write(commit, incarnation)

    def _own(self, shard: int, epoch: int, incarnation: int) -> None:
        if self.owners[shard][:2] != (incarnation, epoch) or not self.hosts[incarnation][1]:
            self.violations.append(
                f"{incarnation} wrote shard {shard} at epoch {epoch}, which is {self.owners[shard][:2]}'s"
            )
        if self._committer.setdefault((shard, epoch), incarnation) != incarnation:
            self.violations.append(f"two committers of shard {shard} at epoch {epoch}")
        if epoch < self._newest_epoch.get(shard, 0):
            self.violations.append(f"shard {shard} was written at epoch {epoch} after a newer one")
        self._newest_epoch[shard] = epoch
