"""The rows of `hosts`: implements `sensorium.actors.ports.Membership`."""

from typing import Final, NamedTuple, Protocol

import asyncpg

from sensorium.storage.database import Connection, Pool, acquired, close_pool

PATIENCE: Final = "1s"
"""How long a fence waits for a commit in flight before it cuts the fenced host's connections."""


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

    async def join(self, host: str) -> int:
        """As the port says. Raises `DatabaseClaimed` when the guard has been lost to another platform."""
        if self._guard is not None:
            await self._guard.hold()
        async with acquired(self._pool) as connection, connection.transaction():
            # Two that join by one name at once go one after the other.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('join ' || $1, 0))", host)
            earlier = await connection.fetch(
                "SELECT incarnation FROM hosts WHERE host = $1 AND state = 'alive' ORDER BY incarnation", host
            )
            for row in earlier:
                await fence_by(connection, row["incarnation"])
            incarnation: int = await connection.fetchval(
                "INSERT INTO hosts (host) VALUES ($1) RETURNING incarnation", host
            )
            return incarnation

    async def fence(self, incarnation: int) -> None:
        """As the port says. Commits in flight end first, or are cut off after `PATIENCE`."""
        if self._guard is not None:
            await self._guard.hold()
        async with acquired(self._pool) as connection, connection.transaction():
            await fence_by(connection, incarnation)

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


async def fence_by(connection: Connection, incarnation: int) -> None:
    """Fence within the connection's transaction, as `PgMembership.fence` does."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'")
            await connection.execute("SELECT sensorium_fence($1)", incarnation)
    except asyncpg.LockNotAvailableError:
        # A host that hangs inside of a transaction, or whose machine is gone, holds the lock: its connections
        # are cut, which rolls the transaction back. Locks queue, so it cannot slip another one in.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = $1 AND usename = current_user",
            application_of(incarnation),
        )
        await connection.execute("SELECT sensorium_fence($1)", incarnation)


def application_of(incarnation: int) -> str:
    """The application name of a host's connections, by which they are found to be cut."""
    return f"sensorium-host-{incarnation}"
