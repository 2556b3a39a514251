"""The rules: implements `sensorium.actors.ports.RuleStore` and `RuleSource`."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import uuid4

import asyncpg
import msgspec

from sensorium.actors.conditions.recursion import check_recursion, derived_by
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Connection, Pool, acquired, connect, translated

CHANNEL: Final = "sensorium_rules"
RECONNECT_MIN_S: Final = 0.2
RECONNECT_MAX_S: Final = 5.0
HEARTBEAT_S: Final = 30.0
"""How long a silent connection is believed before it is asked."""

_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(1397051987, 1)"

_COLUMNS: Final = "rule_id, version, spec, created_at, updated_at"


class PgRules:
    """The rules over a pool, which stays the caller's; `changes` needs `dsn`, to listen by itself."""

    def __init__(self, pool: Pool, dsn: str | None = None) -> None:
        self._pool = pool
        self._dsn = dsn

    async def load(self) -> list[Rule]:
        """As the port says, in order of creation."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(f"SELECT {_COLUMNS} FROM rules ORDER BY created_at, rule_id")
        return [_rule(row) for row in rows]

    async def list(self) -> list[Rule]:
        """The same as `load`."""
        return await self.load()

    async def get(self, rule_id: str) -> Rule | None:
        """One rule."""
        if "\0" in rule_id:
            return None
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM rules WHERE rule_id = $1", rule_id)
        return None if row is None else _rule(row)

    async def create(self, spec: RuleSpec, by: str = "") -> Rule:
        """As the port says."""
        async with acquired(self._pool) as connection, connection.transaction():
            await _check_recursion(connection, spec)
            row = await connection.fetchrow(
                "INSERT INTO rules (rule_id, version, spec, created_at, updated_at, changed_by)"
                f" VALUES ($1, 1, $2, now(), now(), $3) RETURNING {_COLUMNS}",
                uuid4().hex,
                spec,
                by,
            )
            assert row is not None
            rule = _rule(row)
            await record(connection, "rule.create", rule.rule_id, None, rule.spec, by=by)
        return rule

    async def replace(self, rule_id: str, spec: RuleSpec, by: str = "") -> Rule | None:
        """As the port says."""
        if "\0" in rule_id:
            return None
        async with acquired(self._pool) as connection, connection.transaction():
            await _check_recursion(connection, spec, rule_id)
            old = await connection.fetchval("SELECT spec FROM rules WHERE rule_id = $1 FOR UPDATE", rule_id)
            row = await connection.fetchrow(
                "UPDATE rules SET version = version + 1, spec = $2, updated_at = now(), changed_by = $3"
                f" WHERE rule_id = $1 RETURNING {_COLUMNS}",
                rule_id,
                spec,
                by,
            )
            if row is None:
                return None
            await record(connection, "rule.replace", rule_id, old, spec, by=by, version=row["version"])
        return _rule(row)

    async def delete(self, rule_id: str) -> bool:
        """As the port says."""
        if "\0" in rule_id:
            return False
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchval("DELETE FROM rules WHERE rule_id = $1 RETURNING spec", rule_id)
            if old is None:
                return False
            await record(connection, "rule.delete", rule_id, old)
        return True

    async def changes(self) -> AsyncIterator[None]:
        """As the port says; also once at the start and after each reconnect, which it tries until closed."""
        if self._dsn is None:
            raise ValueError("PgRules was made without a dsn, which changes() listens on")
        delay_s = RECONNECT_MIN_S
        while True:
            try:
                async for _ in _changes_of_one_connection(self._dsn):
                    delay_s = RECONNECT_MIN_S
                    yield None
            except LogUnavailable:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, RECONNECT_MAX_S)


async def _changes_of_one_connection(dsn: str) -> AsyncIterator[None]:
    connection = await connect(dsn, "sensorium-rules")
    changed = asyncio.Event()

    def note(*_: Any) -> None:
        changed.set()

    try:
        connection.add_termination_listener(note)
        with translated():
            await connection.add_listener(CHANNEL, note)
        changed.set()
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                with translated():
                    await connection.execute("SELECT 1")
                continue
            changed.clear()
            if connection.is_closed():
                raise LogUnavailable("the connection that listens for rules broke")
            yield None
    finally:
        connection.terminate()


async def _check_recursion(connection: Connection, spec: RuleSpec, rule_id: str = "") -> None:
    """One rule that derives metrics at a time, so that two cannot lead to each other unseen."""
    if not derived_by(spec):
        return
    await connection.execute(_ONE_AT_A_TIME)
    rows = await connection.fetch("SELECT spec FROM rules WHERE rule_id <> $1", rule_id)
    check_recursion(spec, [msgspec.convert(row["spec"], RuleSpec) for row in rows])


def _rule(row: asyncpg.Record) -> Rule:
    rule_id, version, spec, created_ms, updated_ms = row
    return Rule(
        rule_id=rule_id,
        version=version,
        spec=msgspec.convert(spec, RuleSpec),
        created_ms=created_ms,
        updated_ms=updated_ms,
    )
