"""What the contract tests need of a store, and both stores as such."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from spread_log import SpreadLog

from sensorium.actors.past import StoredPast
from sensorium.actors.ports import Log, Membership
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.testing import MemoryPast, MemoryStore
from sensorium.storage.database import Pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.rules import PgRules
from sensorium.storage.spread_members import SpreadMembership
from sensorium.storage.stored_past import PgStoredPastFactory


class Store(Protocol):
    """One implementation of the ports, empty."""

    members: Membership

    def log(self, incarnation: int) -> Log: ...
    async def past(self) -> StoredPast: ...
    async def create_rule(self, spec: RuleSpec) -> Rule: ...


class MemoryPorts:
    def __init__(self) -> None:
        self._store = MemoryStore()
        self.members: Membership = self._store

    def log(self, incarnation: int) -> Log:
        return self._store.log(incarnation)

    async def past(self) -> StoredPast:
        return MemoryPast(self._store)

    async def create_rule(self, spec: RuleSpec) -> Rule:
        return await self._store.create(spec)


class SpreadPorts:
    """Over several databases."""

    def __init__(self, dsns: Sequence[str], pools: Sequence[Pool]) -> None:
        self._dsns = dsns
        self._pools = pools
        self._logs: list[SpreadLog] = []
        self.members: Membership = SpreadMembership([PgMembership(pool) for pool in pools])

    def log(self, incarnation: int) -> Log:
        log = SpreadLog([PgLog(dsn, incarnation) for dsn in self._dsns])
        self._logs.append(log)
        return log

    async def past(self) -> StoredPast:
        first, *others = self._dsns
        return await PgStoredPastFactory(first, tuple(others))()

    async def create_rule(self, spec: RuleSpec) -> Rule:
        return await PgRules(self._pools[0]).create(spec)

    async def close(self) -> None:
        await asyncio.gather(*(log.close() for log in self._logs))


class PostgresPorts:
    def __init__(self, dsn: str, pool: Pool) -> None:
        self._dsn = dsn
        self._pool = pool
        self._logs: list[PgLog] = []
        self.members: Membership = PgMembership(pool)

    def log(self, incarnation: int) -> Log:
        log = PgLog(self._dsn, incarnation)
        self._logs.append(log)
        return log

    async def past(self) -> StoredPast:
        return await PgStoredPastFactory(self._dsn)()

    async def create_rule(self, spec: RuleSpec) -> Rule:
        return await PgRules(self._pool).create(spec)

    async def close(self) -> None:
        await asyncio.gather(*(log.close() for log in self._logs))
