"""Who may commit, over several databases: the first gives out incarnations, and says who is alive.

Each database fences, and gives out its shards, by rows of its own. One that is away is brought into line by
the first look at which it answers again: who is no longer alive is fenced there before anybody is given the
shards that it had there, and who joined meanwhile is let in.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.placement import ALL_SHARDS, database_of
from sensorium.actors.ports import Isolated, Member, Members, Wanted
from sensorium.storage.spread import by_database

ANSWER_S: Final = 2.0
"""In which a database answers, or counts as away."""
AWAY_ANSWER_S: Final = 0.25
"""In which one that was away does: others do not wait for it again and again."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class DatabaseMembers(Protocol):
    """The members of one database; see `Membership` and `hosts.PgMembership`."""

    async def term(self) -> int: ...
    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int: ...
    async def hold(self) -> None: ...
    async def let_in(self, member: Member) -> None: ...
    async def fence(self, incarnation: int, dead: bool = False) -> None: ...
    async def take(self, epochs: Mapping[int, int]) -> None: ...
    async def want(self, wanted: Wanted) -> None: ...
    async def read(self) -> Members: ...
    async def isolated_by_rank(
        self, by_type: Mapping[str, bool], otherwise: bool, limit: int
    ) -> list[tuple[int, Isolated]]: ...
    async def close(self) -> None: ...


class SpreadMembership:
    """`Membership` over those of several databases, the first of which is main; `close` closes them.

    Only while the main database is away does every call raise. Of another one that is away it says what
    it has last seen.
    """

    def __init__(self, members: Sequence[DatabaseMembers]) -> None:
        self._main = members[0]
        self._others = [_Other(one, position) for position, one in enumerate(members[1:], 1)]

    async def term(self) -> int:
        """As the port says, of the main database."""
        return await self._main.term()

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """As the port says. Databases that are away let it in later.

        Raises `DatabaseClaimed` when a guard has been lost to another platform.
        """
        incarnation = await self._main.join(host, node, weight)
        member = Member(incarnation, host, node, weight)
        await asyncio.gather(*(other.let_in(member) for other in self._others))
        return incarnation

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """As the port says; in databases that are away, before anybody is given its shards there."""
        await self._main.fence(incarnation, dead)
        await asyncio.gather(*(other.fence(incarnation, dead) for other in self._others))

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As the port says, in each shard's database."""
        everywhere = [self._main, *(other.members for other in self._others)]
        for n, shards in by_database(epochs, lambda shard: shard, len(everywhere)).items():
            await everywhere[n].take({shard: epochs[shard] for shard in shards})

    async def want(self, wanted: Wanted) -> None:
        """As the port says, in the main database."""
        await self._main.want(wanted)

    async def read(self) -> Members:
        """As the port says, but each database as of its own moment. Alive is who is so in the main one."""
        # The main one last: who is alive elsewhere has joined there before, so is fenced if not alive now.
        looks = await asyncio.gather(*(other.look() for other in self._others))
        main = await self._main.read()
        alive = {member.incarnation: member for member in main.alive}
        for other, seen in zip(self._others, looks, strict=True):
            if seen is not None:
                await other.bring_into_line(seen, alive)
        found = [main, *(other.seen for other in self._others)]
        owners = []
        for shard in range(ALL_SHARDS):
            seen = found[database_of(shard, len(found))]
            owner, epoch = (None, 0) if seen is None else seen.owners[shard]
            owners.append((owner if owner in alive else None, epoch))
        homes = {device: shard for one in found if one is not None for device, shard in one.homes.items()}
        away = [other.position for other in self._others if other.away]
        answering = [one for n, one in enumerate(found) if one is not None and n not in away]
        wait_s = max(one.claimable_in_s for one in answering)
        return Members(main.alive, owners, wait_s, main.wanted, homes, len(found), away)

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """As the port says, over the devices of all databases."""
        rows = await self._main.isolated_by_rank(by_type, otherwise, limit)
        asked = (other.isolated_by_rank(by_type, otherwise, limit) for other in self._others)
        for found in await asyncio.gather(*asked):
            rows += found
        return [one for _, one in sorted(rows)][:limit]

    async def close(self) -> None:
        """As the port says."""
        await asyncio.gather(self._main.close(), *(other.close() for other in self._others))


class _Other:
    """A further database's members, as last seen, and whether it is away."""

    def __init__(self, members: DatabaseMembers, position: int) -> None:
        self.members = members
        self.position = position
        self.away = False
        self._held = False
        self.seen: Members | None = None
        self._isolated: list[tuple[int, Isolated]] = []
        self._late: asyncio.Future[Any] | None = None
        """What has not been answered in time: nothing more is asked before it ends."""

    async def look(self) -> Members | None:
        """What it says; None when it is away."""
        if (self.away or not self._held) and not await self._done(self.members.hold, anew=True):
            return None
        self._held = True
        seen = await self._within(self.members.read, anew=True)
        if seen is not None:
            self.seen = seen
        return seen

    async def bring_into_line(self, seen: Members, alive: Mapping[int, Member]) -> None:
        """Fence those that are not alive, and let in those that are; they were `seen` here otherwise."""
        there = {member.incarnation for member in seen.alive}
        if there == alive.keys():
            return
        for incarnation in sorted(there - alive.keys()):
            await self.fence(incarnation)
        for incarnation in sorted(alive.keys() - there):
            await self.let_in(alive[incarnation])
        await self.look()

    async def isolated_by_rank(
        self, by_type: Mapping[str, bool], otherwise: bool, limit: int
    ) -> list[tuple[int, Isolated]]:
        """As `PgMembership.isolated_by_rank`; while it is away, what it said last."""
        found = await self._within(lambda: self.members.isolated_by_rank(by_type, otherwise, limit))
        if found is not None:
            self._isolated = found
        return list(self._isolated)

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """As `Membership.fence`, unless it is away."""
        await self._done(lambda: self.members.fence(incarnation, dead))

    async def let_in(self, member: Member) -> None:
        """As `PgMembership.let_in`, unless it is away."""
        await self._done(lambda: self.members.let_in(member))

    async def close(self) -> None:
        """Give back the connections."""
        if self._late is not None:
            self._late.cancel()
        await self.members.close()

    async def _done(self, change: Callable[[], Awaitable[None]], anew: bool = False) -> bool:
        async def done() -> bool:
            await change()
            return True

        return await self._within(done, anew) is not None

    async def _within(self, ask: Callable[[], Awaitable[T]], anew: bool = False) -> T | None:
        """What it answers; None when it is away, which is found out `anew` or taken for granted.

        Raises `DatabaseClaimed`.
        """
        within_s = AWAY_ANSWER_S if self.away else ANSWER_S
        if self._late is not None and anew:
            await asyncio.wait({self._late}, timeout=within_s)
        if self._late is not None and self._late.done():
            self._late = None
        if self._late is not None or (self.away and not anew):
            return None
        asked = asyncio.ensure_future(ask())
        asked.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait({asked}, timeout=within_s)
        if not asked.done():
            self._late = asked
            self._is_away("it does not answer")
            return None
        try:
            result = asked.result()
        except LogUnavailable as error:
            self._is_away(str(error))
            return None
        if self.away:
            _log.warning("database %d of the log is back", self.position + 1)
        self.away = False
        return result

    def _is_away(self, why: str) -> None:
        if not self.away:
            _log.warning("database %d of the log is away; what is in it waits: %s", self.position + 1, why)
        self.away = True
