"""Small picklable factories that travel to a process and open the ports there."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import zip_longest

from sensorium.actors.ports import HostPorts
from sensorium.storage.claim import Claim, KeptClaim, Role
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.models.active import PgActiveModels
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rules import PgRules
from sensorium.storage.spread_members import SpreadMembership
from sensorium.storage.spread_reads import SpreadRegistry
from sensorium.storage.stored_past import PgStoredPastFactory


@dataclass(frozen=True, slots=True)
class PgHostPorts:
    """A `HostPortsFactory`: everything that a host needs of the database at `dsn`, which is migrated."""

    dsn: str
    others: tuple[str, ...] = ()
    """The further databases that the log is spread over (see `spread`)."""

    async def __call__(self, incarnation: int) -> HostPorts:
        """Opens nothing yet; the first use connects."""
        dsns = (self.dsn, *self.others)
        logs = [PgLog(dsn, incarnation) for dsn in dsns]
        pools = [await open_pool(dsn, 2, "sensorium-host-reads") for dsn in dsns]
        registry = SpreadRegistry(pools) if self.others else PgRegistry(pools[0])

        async def close() -> None:
            await asyncio.gather(*(log.close() for log in logs), *map(close_pool, pools))

        past = PgStoredPastFactory(self.dsn, self.others)
        models = PgActiveModels(pools[0], self.dsn)
        return HostPorts(logs, PgRules(pools[0], self.dsn), registry, close, past, models)


@dataclass(frozen=True, slots=True)
class PgMembershipFactory:
    """A `MembershipFactory` over the database at `dsn`, which is migrated.

    With `cluster_id` the database is claimed for the runtime of this Ray cluster, until the membership is
    closed or its process ends.
    """

    dsn: str
    cluster_id: str = ""
    ray_address: str = ""
    others: tuple[str, ...] = ()
    """The further databases that the log is spread over (see `spread`)."""

    async def __call__(self) -> PgMembership | SpreadMembership:
        """Claims the main database, if at all; the further ones are claimed with the first look at them.

        Raises:
            DatabaseClaimed: the runtime of another cluster uses the database.
            LogUnavailable: it cannot be reached.
        """
        dsns = (self.dsn, *self.others)
        guards = [
            KeptClaim(Claim(dsn, Role.RUNTIME, self.cluster_id, self.ray_address))
            for dsn in dsns
            if self.cluster_id
        ]
        async with AsyncExitStack() as stack:
            for guard in guards:
                stack.push_async_callback(guard.close)
            for guard in guards[:1]:
                await guard.hold()
            pools = [await open_pool(dsn, 2, "sensorium-membership") for dsn in dsns]
            stack.pop_all()
        members = [PgMembership(pool, guard) for pool, guard in zip_longest(pools, guards)]
        return SpreadMembership(members) if self.others else members[0]
