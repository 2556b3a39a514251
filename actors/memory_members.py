"""Who may commit and who owns which shard, in memory: `testing`'s counterpart of the database's tables."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count

from sensorium.actors.errors import Fenced, LogUnavailable, Moved
from sensorium.actors.lease import LEASE_S
from sensorium.actors.placement import ALL_SHARDS, SHARDS, shard_of
from sensorium.actors.ports import Held, Member, Members, Rehoming, Wanted


class MemoryMembers:
    """`Membership`, and what `Log` says of ownership, each call at once and whole.

    Attributes:
        hosts: by incarnation the host's name, and whether it may commit.
        owners: by shard the incarnation (None: nobody's), the epoch and the head as it was handed over.
        homes: by device its dedicated shard.
    """

    def __init__(self) -> None:
        self.hosts: dict[int, tuple[str, bool]] = {}
        self.owners: list[tuple[int | None, int, int | None]] = [(None, 0, None)] * ALL_SHARDS
        self.homes: dict[str, int] = {}
        self._wanted = Wanted()
        self._placed: dict[int, tuple[str, float]] = {}
        self._renewed_s: dict[int, float] = {}
        self._free_s: dict[int, float] = {}
        self._shard_free_s: dict[int, float] = {}
        self._incarnations = count(1)
        self._terms = count(1)

    async def term(self) -> int:
        """As `Membership` says."""
        await self._turn()
        return next(self._terms)

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """As `Membership` says."""
        await self._turn()
        for incarnation, (name, alive) in self.hosts.items():
            if name == host and alive:
                self._fence(incarnation, dead=False)
        incarnation = next(self._incarnations)
        self.hosts[incarnation] = (host, True)
        self._placed[incarnation] = (node, weight)
        self._renewed_s[incarnation] = _now_s()
        return incarnation

    async def hold(self) -> None:
        """As `PgMembership` says."""
        await self._turn()

    async def let_in(self, member: Member) -> None:
        """As `PgMembership` says."""
        await self._turn()
        for incarnation, (name, alive) in self.hosts.items():
            if name == member.host and alive and incarnation < member.incarnation:
                self._fence(incarnation, dead=False)
        if member.incarnation not in self.hosts:
            self.hosts[member.incarnation] = (member.host, True)
            self._placed[member.incarnation] = (member.node, member.weight)
            self._renewed_s[member.incarnation] = _now_s()

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """As `Membership` says."""
        await self._turn()
        if incarnation in self.hosts:
            self._fence(incarnation, dead)

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As `Membership` says."""
        await self._turn()
        for shard, epoch in epochs.items():
            owner, present, _ = self.owners[shard]
            if present == epoch and owner is not None:
                self.owners[shard] = (None, epoch + 1, None)
                self._shard_free_s[shard] = _now_s() + LEASE_S

    async def want(self, wanted: Wanted) -> None:
        """As `Membership` says."""
        await self._turn()
        self._wanted = wanted

    async def read(self) -> Members:
        """As `Membership` says."""
        await self._turn()
        alive = [Member(i, name, *self._placed[i]) for i, (name, up) in self.hosts.items() if up]
        living = {member.incarnation for member in alive}
        owners = [(o if o in living else None, epoch) for o, epoch, _ in self.owners]
        used = [*range(SHARDS), *self.homes.values()]
        waits = [self._free_from_s(shard) - _now_s() for shard in used if owners[shard][0] is None]
        return Members(alive, owners, max(0.0, *waits) if waits else 0.0, self._wanted, dict(self.homes))

    async def held(self, incarnation: int) -> dict[int, Held]:
        """As `Log.held`, for an incarnation."""
        await self._turn()
        self._check_let_in(incarnation)
        self._renewed_s[incarnation] = _now_s()
        return self._held(incarnation)

    async def claim(self, incarnation: int, shards: Sequence[int]) -> dict[int, Held]:
        """As `Log.claim`, for an incarnation."""
        await self._turn()
        self._check_let_in(incarnation)
        now_s, homes = _now_s(), set(self.homes.values())
        for shard in shards:
            if (shard < SHARDS or shard in homes) and self._free_from_s(shard) <= now_s:
                self.owners[shard] = (incarnation, self.owners[shard][1] + 1, None)
        return self._held(incarnation)

    async def hand_over(self, incarnation: int, given: Mapping[int, Held], to: int) -> dict[int, int]:
        """As `Log.hand_over`, for an incarnation."""
        await self._turn()
        self._check_fence(incarnation)
        went: dict[int, int] = {}
        for shard, held in given.items():
            if self.owners[shard][:2] == (incarnation, held.epoch) and self.hosts.get(to, ("", False))[1]:
                self.owners[shard] = (to, held.epoch + 1, held.head)
                went[shard] = held.epoch + 1
        return went

    def _rehome(self, incarnation: int, move: Rehoming) -> int:
        """What `Log.rehome` does to the owners; the new epoch of the shard that the device goes to."""
        self._check_fence(incarnation)
        mine = [move.left] if move.to >= SHARDS else [move.left, move.to]
        if move.to >= SHARDS and (self.owners[move.to][0] is not None or move.to in self.homes.values()):
            raise Moved("the dedicated shard is not free")
        if move.left >= SHARDS and self.homes.get(move.device_id) != move.left:
            raise Moved("the dedicated shard is another device's")
        if any(self.owners[shard][:2] != (incarnation, move.epochs[shard]) for shard in mine):
            raise Moved("a shard has another owner")
        if self.owners[move.to][1] != move.epochs[move.to]:
            raise Moved("the dedicated shard was used meanwhile")
        for shard, epoch in move.epochs.items():
            self.owners[shard] = (incarnation, epoch + 1, move.heads[shard])
        if move.to >= SHARDS:
            self.homes[move.device_id] = move.to
        else:
            self.owners[move.left] = (None, *self.owners[move.left][1:])
            self._shard_free_s.pop(move.left, None)
            del self.homes[move.device_id]
        return move.epochs[move.to] + 1

    async def _turn(self) -> None:
        await asyncio.sleep(0)

    def _check_let_in(self, incarnation: int) -> None:
        if incarnation not in self.hosts:
            raise LogUnavailable(f"incarnation {incarnation} is not let in here yet")
        self._check_fence(incarnation)

    def _check_fence(self, incarnation: int) -> None:
        if not self.hosts.get(incarnation, ("", False))[1]:
            raise Fenced(f"incarnation {incarnation} is fenced")

    def _check_epochs(self, epochs: Mapping[int, int]) -> None:
        if any(self.owners[shard][1] != epoch for shard, epoch in epochs.items()):
            raise Moved("a shard has another owner")

    def _fence(self, incarnation: int, dead: bool) -> None:
        self.hosts[incarnation] = (self.hosts[incarnation][0], False)
        if dead:
            self._free_s[incarnation] = _now_s()
        else:
            self._free_s.setdefault(incarnation, self._renewed_s[incarnation] + LEASE_S)

    def _free_from_s(self, shard: int) -> float:
        owner = self.owners[shard][0]
        if owner is None:
            return self._shard_free_s.get(shard, float("-inf"))
        return float("inf") if self.hosts[owner][1] else self._free_s[owner]

    def _held(self, incarnation: int) -> dict[int, Held]:
        homes: dict[int, dict[str, int]] = {}
        for device, shard in self.homes.items():
            homes.setdefault(shard, {})[device] = shard
            homes.setdefault(shard_of(device), {})[device] = shard
        return {
            shard: Held(epoch, head, homes.get(shard, {}))
            for shard, (owner, epoch, head) in enumerate(self.owners)
            if owner == incarnation
        }


def _now_s() -> float:
    return asyncio.get_running_loop().time()
