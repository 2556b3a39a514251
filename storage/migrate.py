"""Brings a database to the schema that this code needs, forward only; steps are `migrations/NNNN_*.sql`."""

from hashlib import sha256
from importlib.resources import files
from typing import Final, NamedTuple

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.partitions import ensure_partitions

LOCK_KEY: Final = 0x53454E_4D4947
"""The advisory lock that one migrating process holds at a time."""
MIGRATION_TIMEOUT_S: Final = 600.0


class Migration(NamedTuple):
    """One step: its number, the file's name and its SQL."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Tells whether an applied step was edited afterwards."""
        return sha256(self.sql.encode()).hexdigest()


class SchemaMismatch(LogUnavailable):
    """The database's schema is not one that this code wrote; the message says what to do."""


def migrations() -> list[Migration]:
    """The steps that ship with this code, in order, numbered from 1 without gaps."""
    found = sorted(
        Migration(int(entry.name[:4]), entry.name, entry.read_text(encoding="utf-8"))
        for entry in (files("sensorium.storage") / "migrations").iterdir()
        if entry.name.endswith(".sql")
    )
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise RuntimeError(f"migrations are misnumbered: {[step.name for step in found]}")
    return found


async def migrate(dsn: str, to: int | None = None) -> int:
    """Apply the steps that are missing and create the next days' partitions. Safe at any time, by many.

    With `to` no step after that one is applied, as for a database that an older backup is to fill.

    Each step commits by itself, so that one which fails leaves those before it.

    Returns:
        How many steps were applied.

    Raises:
        SchemaMismatch: the database is newer than this code, or a step that it applied was edited since.
        LogUnavailable: the database cannot be reached or a step failed.
    """
    connection = await connect(dsn, "sensorium migrate")
    try:
        with translated():
            await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
            await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY, timeout=MIGRATION_TIMEOUT_S)
            applied = await _apply(connection, to)
            await ensure_partitions(connection)
    finally:
        connection.terminate() if connection.is_closed() else await connection.close()
    return applied


async def _apply(connection: Connection, to: int | None) -> int:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text NOT NULL,"
        " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await connection.fetch("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    steps = migrations()
    if len(rows) > len(steps):
        raise SchemaMismatch(
            f"the database has migration {rows[-1]['name']}, which this version of Sensorium does not know:"
            " start the newer version, or restore the database from before"
        )
    for row, step in zip(rows, steps, strict=False):
        if row["number"] != step.number or row["checksum"] != step.checksum:
            raise SchemaMismatch(
                f"migration {step.name} is not the one that the database applied as {row['name']}:"
                " applied migrations never change; add a new one"
            )
    missing = steps[len(rows) : to]
    for step in missing:
        async with connection.transaction():
            await connection.execute(step.sql, timeout=MIGRATION_TIMEOUT_S)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                step.number,
                step.name,
                step.checksum,
            )
    return len(missing)
