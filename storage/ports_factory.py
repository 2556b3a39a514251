"""Small picklable factories that travel to a process and open the ports there."""

from dataclasses import dataclass

from sensorium.actors.ports import HostPorts
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rules import PgRules


@dataclass(frozen=True, slots=True)
class PgHostPorts:
    """A `HostPortsFactory`: everything that a host needs of the database at `dsn`, which is migrated."""

    dsn: str

    async def __call__(self, incarnation: int) -> HostPorts:
        """Opens nothing yet; the first use connects."""
        log = PgLog(self.dsn, incarnation)
        pool = await open_pool(self.dsn, 2, "sensorium-host-reads")

        async def close() -> None:
            await log.close()
            await close_pool(pool)

        return HostPorts(log, PgRules(pool, self.dsn), PgRegistry(pool), close)


@dataclass(frozen=True, slots=True)
class PgMembershipFactory:
    """A `MembershipFactory` over the database at `dsn`, which is migrated."""

    dsn: str

    async def __call__(self) -> PgMembership:
        """Opens nothing yet; the first use connects."""
        return PgMembership(await open_pool(self.dsn, 2, "sensorium-membership"))
