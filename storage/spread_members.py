"""Who may commit, over several databases: the first gives out incarnations, each has all of them."""

from collections.abc import Sequence
from typing import Final

from sensorium.storage.database import Connection, Pool, acquired, close_pool
from sensorium.storage.hosts import Guard, HostRow, PgMembership, fence_by

_ALIVE: Final = "SELECT incarnation FROM hosts WHERE host = $1 AND state = 'alive' AND incarnation <> $2"
_LET_IN: Final = (
    "INSERT INTO hosts (incarnation, host) OVERRIDING SYSTEM VALUE VALUES ($1, $2)"
    " ON CONFLICT (incarnation) DO NOTHING"
)


class SpreadMembership:
    """`Membership` over a pool for each database, the first of which is main; `close` closes them.

    An incarnation is let in, and fenced, in all databases before a call returns: while one of them is away,
    nobody is let in and nobody's shards are taken over.
    """

    def __init__(self, pools: Sequence[Pool], guards: Sequence[Guard] = ()) -> None:
        self._main = PgMembership(pools[0])
        self._others = pools[1:]
        self._guards = guards

    async def join(self, host: str) -> int:
        """As the port says. Raises `DatabaseClaimed` when a guard has been lost to another platform."""
        await self._check()
        incarnation = await self._main.join(host)
        for pool in self._others:
            async with acquired(pool) as connection, connection.transaction():
                await _let_in(connection, host, incarnation)
        return incarnation

    async def fence(self, incarnation: int) -> None:
        """As the port says, in every database; raises `LogUnavailable` unless it is done in all."""
        await self._check()
        await self._main.fence(incarnation)
        for pool in self._others:
            async with acquired(pool) as connection, connection.transaction():
                await fence_by(connection, incarnation)

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


async def _let_in(connection: Connection, host: str, incarnation: int) -> None:
    # One that joined the first database only, and was fenced there, never came this far.
    for row in await connection.fetch(_ALIVE, host, incarnation):
        await fence_by(connection, row["incarnation"])
    await connection.execute(_LET_IN, incarnation, host)
