"""Maintenance windows as people set them, and for who decides what is told."""

from typing import Final
from uuid import uuid4

import asyncpg
import msgspec

from sensorium.actors.maintenance import Maintenance, Windows
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Connection, Pool, acquired

MAX_WINDOWS: Final = 1_000

_COLUMNS: Final = "maintenance_id, spec, created_at, updated_at"


class StoredMaintenance(msgspec.Struct, frozen=True):
    """A maintenance window with its id."""

    maintenance_id: str
    spec: Maintenance
    created_ms: int
    updated_ms: int


class PgMaintenance:
    """Over a pool, which stays the caller's. Raises `LogUnavailable` while the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list(self) -> list[StoredMaintenance]:
        """All of them, the oldest first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM maintenance ORDER BY created_at, maintenance_id"
            )
        return [_stored(row) for row in rows]

    async def get(self, maintenance_id: str) -> StoredMaintenance | None:
        """One of them."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM maintenance WHERE maintenance_id = $1", maintenance_id
            )
        return None if row is None else _stored(row)

    async def create(self, spec: Maintenance) -> StoredMaintenance | None:
        """Store a new one; None: there are too many."""
        async with acquired(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(
                "INSERT INTO maintenance (maintenance_id, spec)"
                " SELECT $1, $2 WHERE (SELECT count(*) FROM maintenance) < $3"
                f" RETURNING {_COLUMNS}",
                uuid4().hex,
                spec,
                MAX_WINDOWS,
            )
            if row is None:
                return None
            await record(connection, "maintenance.create", row["maintenance_id"], None, spec)
        return _stored(row)

    async def replace(self, maintenance_id: str, spec: Maintenance) -> StoredMaintenance | None:
        """None: there is no such window."""
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchval(
                "SELECT spec FROM maintenance WHERE maintenance_id = $1 FOR UPDATE", maintenance_id
            )
            row = await connection.fetchrow(
                "UPDATE maintenance SET spec = $2, updated_at = now() WHERE maintenance_id = $1"
                f" RETURNING {_COLUMNS}",
                maintenance_id,
                spec,
            )
            if row is None:
                return None
            await record(connection, "maintenance.replace", maintenance_id, old, spec)
        return _stored(row)

    async def delete(self, maintenance_id: str) -> bool:
        """False when there was none."""
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchval(
                "DELETE FROM maintenance WHERE maintenance_id = $1 RETURNING spec", maintenance_id
            )
            if old is None:
                return False
            await record(connection, "maintenance.delete", maintenance_id, old)
        return True


async def windows(connection: Connection) -> Windows:
    """All of them, ready to be asked."""
    rows = await connection.fetch("SELECT spec FROM maintenance")
    return Windows([msgspec.convert(row["spec"], Maintenance) for row in rows])


def _stored(row: asyncpg.Record) -> StoredMaintenance:
    maintenance_id, spec, created_ms, updated_ms = row
    return StoredMaintenance(maintenance_id, msgspec.convert(spec, Maintenance), created_ms, updated_ms)
