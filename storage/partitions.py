"""The daily partitions of the log's tables, by commit time (UTC)."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sensorium.storage.database import Connection

TABLES: Final = ("readings", "events", "kept_snapshots")
DAYS_AHEAD: Final = 2
LOCK_KEY: Final = 0x53454E_504152
"""The advisory lock that one process that changes partitions holds at a time."""
BACKUP_KEY: Final = 0x53454E_42434B
"""The advisory lock that backups share while they read, and that dropping partitions needs for itself."""


async def ensure_partitions(
    connection: Connection, now: datetime | None = None, days_ahead: int = DAYS_AHEAD
) -> list[str]:
    """Create the partitions of the day of `now` (the server's clock when None) and the days after it.

    Call it at start and daily; the log creates one that is missing by itself. Does not block commits.

    Returns:
        The names of those created.
    """
    moment: datetime = now or datetime.fromtimestamp(
        await connection.fetchval("SELECT extract(epoch FROM now())::float8"), UTC
    )
    today = moment.astimezone(UTC).date()
    created = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        for table in TABLES:
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", table):
                # Of a schema that an older backup is to fill.
                continue
            have = {day for day, _ in await attached(connection, table)}
            for day in (today + timedelta(days=n) for n in range(days_ahead + 1)):
                if day not in have:
                    created.append(await create(connection, table, day))
    return created


async def drop_partitions(connection: Connection, before: date, tables: Sequence[str] = TABLES) -> list[str]:
    """Drop the partitions of days before `before`: the readings and events committed then are gone.

    Drops none while a backup is made: it would wait for that, and commits would wait for it.

    Returns:
        The names of those dropped.
    """
    dropped: list[str] = []
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", BACKUP_KEY):
            return dropped
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        for table in tables:
            for day, name in await attached(connection, table):
                if day < before:
                    await connection.execute(f'DROP TABLE "{name}"')
                    dropped.append(name)
    return dropped


async def attached(connection: Connection, table: str) -> list[tuple[date, str]]:
    """The first day and the name of each partition, oldest first."""
    rows = await connection.fetch(
        "SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = $1::text::regclass ORDER BY c.relname",
        table,
    )
    return [(datetime.strptime(row["name"][-8:], "%Y%m%d").date(), row["name"]) for row in rows]


async def create(connection: Connection, table: str, day: date, days: int = 1) -> str:
    """Create the partition of `days` days from `day` on and give its name. Readers and writers go on."""
    name = f"{table}_{day:%Y%m%d}"
    # Attaching a finished table takes a lock that commits do not mind; CREATE … PARTITION OF stops them all.
    await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
    await connection.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {name}"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=days)} 00:00+00')"
    )
    return name
