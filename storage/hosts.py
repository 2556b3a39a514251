"""The rows of `hosts`: implements `sensorium.actors.ports.Membership`."""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from sensorium.actors.lease import LEASE_S
from sensorium.actors.placement import SHARDS
from sensorium.actors.ports import Isolated, Member, Members, Wanted
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


# Three ways to be isolated, each by an index, so that a look costs what it finds.
_ISOLATED_NOW: Final = """
SELECT d.device_id, d.device_type FROM assignments JOIN devices d USING (device_id)
WHERE d.status = 'active' AND CASE WHEN d.isolation IS NOT NULL THEN d.isolation = 'process'
    ELSE d.device_type = ANY($1::text[]) OR ($3 AND d.device_type <> ALL($2::text[])) END
"""
_ISOLATED_THEMSELVES: Final = """
SELECT device_id, device_type FROM devices WHERE isolation = 'process' AND status = 'active'
ORDER BY device_id LIMIT $1
"""
_ISOLATED_BY_TYPE: Final = """
SELECT d.device_id, d.device_type FROM unnest($1::text[]) AS asked (device_type), LATERAL (
    SELECT device_id, device_type FROM devices
    WHERE device_type = asked.device_type AND status = 'active' AND isolation IS NULL
    ORDER BY device_id LIMIT $2) AS d
ORDER BY d.device_id LIMIT $2
"""
_ISOLATED_ELSE: Final = """
SELECT device_id, device_type FROM devices
WHERE device_type <> ALL($1::text[]) AND status = 'active' AND isolation IS NULL ORDER BY device_id LIMIT $2
"""


_EARLIER: Final = "SELECT incarnation FROM hosts WHERE host = $1 AND state = 'alive' AND incarnation < $2"
_LET_IN: Final = (
    "INSERT INTO hosts (incarnation, host, node, weight) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (incarnation) DO NOTHING"
)


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

    async def term(self) -> int:
        """As the port says: a number that no incarnation gets."""
        async with acquired(self._pool) as connection:
            number: int = await connection.fetchval(
                "SELECT nextval(pg_get_serial_sequence('hosts', 'incarnation'))"
            )
            return number

    async def let_in(self, member: Member) -> None:
        """Have an incarnation that has joined another database be alive in this one, too, if it is new here.

        Every earlier one of the name is fenced first. Raises as `join`.
        """
        await self.hold()
        async with acquired(self._pool) as connection, connection.transaction():
            for row in await connection.fetch(_EARLIER, member.host, member.incarnation):
                await fence_by(connection, row["incarnation"])
            await connection.execute(_LET_IN, *member)

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """As the port says. Raises `DatabaseClaimed` when the guard has been lost to another platform."""
        await self.hold()
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
        await self.hold()
        async with acquired(self._pool) as connection, connection.transaction():
            await fence_by(connection, incarnation, dead)

    async def take(self, epochs: Mapping[int, int]) -> None:
        """As the port says. Commits in flight end first, or are cut off after `assignments.PATIENCE`."""
        await self.hold()
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
            homes = await connection.fetch(
                "SELECT device_id, shard FROM assignments WHERE device_id IS NOT NULL"
            )
            [wanted] = await connection.fetch("SELECT wanted_hosts, drained FROM runtime")
        dedicated = {row["device_id"]: row["shard"] for row in homes}
        used = {*range(SHARDS), *dedicated.values()}
        waits = [w for n, row in enumerate(rows) if n in used and (w := row["claimable_in_s"]) is not None]
        return Members(
            [Member(*row) for row in alive],
            [(row["owner"], row["epoch"]) for row in rows],
            max(0.0, *waits) if waits else 0.0,
            Wanted(wanted["wanted_hosts"], tuple(wanted["drained"])),
            dedicated,
        )

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """As the port says."""
        return [one for _, one in await self.isolated_by_rank(by_type, otherwise, limit)][:limit]

    async def isolated_by_rank(
        self, by_type: Mapping[str, bool], otherwise: bool, limit: int
    ) -> list[tuple[int, Isolated]]:
        """What `isolated` says and perhaps more, each behind the number of its part of the order."""
        process = [name for name, isolates in by_type.items() if isolates]
        async with acquired(self._pool) as connection:
            present = await connection.fetch(_ISOLATED_NOW, process, list(by_type), otherwise)
            themselves = await connection.fetch(_ISOLATED_THEMSELVES, limit)
            typed = await connection.fetch(_ISOLATED_BY_TYPE, process, limit) if process else []
            if otherwise:
                typed += await connection.fetch(_ISOLATED_ELSE, list(by_type), limit)
        found: dict[Isolated, int] = {}
        for rank, rows in enumerate((present, themselves, typed)):
            for row in rows:
                found.setdefault(Isolated(*row), rank)
        return sorted((rank, one) for one, rank in found.items())

    async def alive(self) -> list[HostRow]:
        """Those that may commit, oldest first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT incarnation, host, joined_at FROM hosts WHERE state = 'alive' ORDER BY incarnation"
            )
        return [HostRow(*row) for row in rows]

    async def hold(self) -> None:
        """Have the guard hold. Raises as `join`."""
        if self._guard is not None:
            await self._guard.hold()

    async def close(self) -> None:
        """As the port says."""
        await close_pool(self._pool)
        if self._guard is not None:
            await self._guard.close()


async def fence_by(connection: Connection, incarnation: int, dead: bool = False) -> None:
    """Fence within the connection's transaction, as `PgMembership.fence` does."""
    await exclude(connection, incarnation, "SELECT sensorium_fence($1)")
    await connection.execute(_FREE, incarnation, dead)
