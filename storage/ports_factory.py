"""Small picklable factories that travel to a process and open the ports there."""

from dataclasses import dataclass

from sensorium.actors.ports import HostPorts
from sensorium.storage.claim import Claim, KeptClaim, Role
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
    """A `MembershipFactory` over the database at `dsn`, which is migrated.

    With `cluster_id` the database is claimed for the runtime of this Ray cluster, until the membership is
    closed or its process ends.
    """

    dsn: str
    cluster_id: str = ""
    ray_address: str = ""

    async def __call__(self) -> PgMembership:
        """Claims the database, if at all; else it opens nothing yet.

        Raises:
            DatabaseClaimed: the runtime of another cluster uses the database.
            LogUnavailable: it cannot be reached.
        """
        guard = None
        if self.cluster_id:
            guard = KeptClaim(Claim(self.dsn, Role.RUNTIME, self.cluster_id, self.ray_address))
            await guard.hold()
        return PgMembership(await open_pool(self.dsn, 2, "sensorium-membership"), guard)
