"""The rows of `hosts`: implements `sensorium.actors.ports.Membership`."""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from sensorium.actors.lease import LEASE_S
from sensorium.actors.ports import Member, Members, Wanted
from sensorium.storage.assignments import exclude, take
from sensorium.storage.database import Connection, Pool, acquired, close_pool

_FREE: Final = f"""
UPDATE hosts SET free_at = CASE WHEN $2 THEN clock_timestamp()
                                ELSE renewed_at + interval '{LEASE_S} s' END
WHERE incarnation = $1 AND ($2 OR free_at = '-infinity')
"""

# `greatest`, because PostgreSQL before 17 subtracts nothing from infinity.
_OWNERS: Final = """
SELECT CASE WHEN h.state = 'alive' THEN incarnation END AS owner, epoch,
       CASE WHEN incarnation IS NULL THEN extract(epoch FROM greatest(a.free_at, now) - now)
            WHEN h.state = 'fenced' THEN extract(epoch FROM greatest(h.free_at, now) - now) END::float8
           AS claimable_in_s
FROM assignments a LEFT JOIN hosts h USING (incarnation), clock_timestamp() AS now ORDER BY shard
"""


class HostRow(NamedTuple):
    """An incarnation that may commit."""

    incarnation: int
    host: str
    joined_ms: int


class Guard(Protocol):
    """What must be held while members are let in; see `claim.Claim`."""

    async def hold(self) -> None:
        """Raise unless it is held."""
        ...

    async def close(self) -> None:
        """Give it up."""
        ...


class PgMembership:
    """`Membership` over a pool and, if given, under a guard; `close` closes both."""

    def __init__(self, pool: Pool, guard: Guard | None = None) -> None:
        self._pool = pool
        self._guard = guard

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """As the port says. Raises `DatabaseClaimed` when the guard has been lost to another platform."""
        await self._hold()
        async with acquired(self._pool) as connection, connection.transaction():
            # Two that join by one name at once go one after the other.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('join ' || $1, 0))", host)
            earlier = await connection.fetch(
                "SELECT incarnation FROM hosts WHERE host = $1 AND state = 'alive' ORDER BY incarnation", host
            )
            for row in earlier:
                await fence_by(connection, row["incarnation"])
            incarnation: int = await connection.fetchval(
                "INSERT INTO hosts (host, node, weight) VALUES ($1, $2, $3) RETURNING incarnation",
                host,
                node,
                weight,
            )
            return incarnation

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """As the port says. Commits in flight end first, or are cut off after `assignments.PATIENCE`."""
        await self._hold()
        async with acquired(self._pool) as connection, connection.transaction():
            await fence_by(connection, incarnation, dead)

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As the port says. Commits in flight end first, or are cut off after `assignments.PATIENCE`."""
        await self._hold()
        async with acquired(self._pool) as connection, connection.transaction():
            await take(connection, epochs)

    async def want(self, wanted: Wanted) -> None:
        """As the port says."""
        async with acquired(self._pool) as connection:
            await connection.execute(
                "UPDATE runtime SET wanted_hosts = $1, drained = $2", wanted.hosts, list(wanted.drained)
            )

    async def read(self) -> Members:
        """As the port says."""
        async with (
            acquired(self._pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            alive = await connection.fetch(
                "SELECT incarnation, host, node, weight FROM hosts WHERE state = 'alive' ORDER BY incarnation"
            )
            rows = await connection.fetch(_OWNERS)
            [wanted] = await connection.fetch("SELECT wanted_hosts, drained FROM runtime")
        waits = [row["claimable_in_s"] for row in rows if row["claimable_in_s"] is not None]
        return Members(
            [Member(*row) for row in alive],
            [(row["owner"], row["epoch"]) for row in rows],
            max(0.0, *waits) if waits else 0.0,
            Wanted(wanted["wanted_hosts"], tuple(wanted["drained"])),
        )

    async def alive(self) -> list[HostRow]:
        """Those that may commit, oldest first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT incarnation, host, joined_at FROM hosts WHERE state = 'alive' ORDER BY incarnation"
            )
        return [HostRow(*row) for row in rows]

    async def close(self) -> None:
        """As the port says."""
        await close_pool(self._pool)
        if self._guard is not None:
            await self._guard.close()

    async def _hold(self) -> None:
        if self._guard is not None:
            await self._guard.hold()


async def fence_by(connection: Connection, incarnation: int, dead: bool = False) -> None:
    """Fence within the connection's transaction, as `PgMembership.fence` does."""
    await exclude(connection, incarnation, "SELECT sensorium_fence($1)")
    await connection.execute(_FREE, incarnation, dead)
