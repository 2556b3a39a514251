"""Who may commit, over several databases: the first gives out incarnations, each has all of them."""

from collections.abc import Mapping, Sequence
from typing import Final

from sensorium.actors.placement import ALL_SHARDS, database_of
from sensorium.actors.ports import Isolated, Member, Members, Wanted
from sensorium.storage.database import Connection, Pool, acquired, close_pool
from sensorium.storage.hosts import Guard, HostRow, PgMembership, fence_by
from sensorium.storage.spread import by_database

_ALIVE: Final = "SELECT incarnation FROM hosts WHERE host = $1 AND state = 'alive' AND incarnation <> $2"
_LET_IN: Final = (
    "INSERT INTO hosts (incarnation, host, node, weight) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (incarnation) DO NOTHING"
)


class SpreadMembership:
    """`Membership` over a pool for each database, the first of which is main; `close` closes them.

    An incarnation is let in, and fenced, in all databases before a call returns: while one of them is away,
    nobody is let in and nobody's shards are taken over.
    """

    def __init__(self, pools: Sequence[Pool], guards: Sequence[Guard] = ()) -> None:
        self._main = PgMembership(pools[0])
        self._members = [self._main, *map(PgMembership, pools[1:])]
        self._others = pools[1:]
        self._guards = guards

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """As the port says. Raises `DatabaseClaimed` when a guard has been lost to another platform."""
        await self._check()
        incarnation = await self._main.join(host, node, weight)
        for pool in self._others:
            async with acquired(pool) as connection, connection.transaction():
                await _let_in(connection, Member(incarnation, host, node, weight))
        return incarnation

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """As the port says, in every database; raises `LogUnavailable` unless it is done in all."""
        await self._check()
        for members in self._members:
            await members.fence(incarnation, dead)

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As the port says, in each shard's database."""
        await self._check()
        for n, shards in by_database(epochs, lambda shard: shard, len(self._members)).items():
            await self._members[n].take({shard: epochs[shard] for shard in shards})

    async def want(self, wanted: Wanted) -> None:
        """As the port says, in the first database."""
        await self._main.want(wanted)

    async def read(self) -> Members:
        """As the port says, but each database as of its own moment. Alive is who is so in all of them."""
        found = [await members.read() for members in self._members]
        everywhere = set.intersection(*({m.incarnation for m in members.alive} for members in found))
        owners = []
        for shard in range(ALL_SHARDS):
            owner, epoch = found[database_of(shard, len(found))].owners[shard]
            owners.append((owner if owner in everywhere else None, epoch))
        alive = [member for member in found[0].alive if member.incarnation in everywhere]
        homes = {device: shard for members in found for device, shard in members.homes.items()}
        wait_s = max(members.claimable_in_s for members in found)
        return Members(alive, owners, wait_s, found[0].wanted, homes, len(found))

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """As the port says, over the devices of all databases."""
        found = [await members.isolated_by_rank(by_type, otherwise, limit) for members in self._members]
        return [one for _, one in sorted(row for part in found for row in part)][:limit]

    async def alive(self) -> list[HostRow]:
        """Those that may commit, oldest first, as the first database says."""
        return await self._main.alive()

    async def close(self) -> None:
        """As the port says."""
        await self._main.close()
        for pool in self._others:
            await close_pool(pool)
        for guard in self._guards:
            await guard.close()

    async def _check(self) -> None:
        for guard in self._guards:
            await guard.hold()


async def _let_in(connection: Connection, member: Member) -> None:
    # One that joined the first database only, and was fenced there, never came this far.
    for row in await connection.fetch(_ALIVE, member.host, member.incarnation):
        await fence_by(connection, row["incarnation"])
    await connection.execute(_LET_IN, *member)
