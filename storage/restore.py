"""Fills an empty database from a backup; one that was cut off is gone on with."""

import re
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from sensorium.storage.backup import COPY_TIMEOUT_S, LEFT_OUT, Told
from sensorium.storage.backup_files import (
    BadBackup,
    DatabaseBackup,
    Manifest,
    TableFile,
    pieces,
    read_manifest,
)
from sensorium.storage.claim import Claim, Role
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.migrate import migrate, migrations
from sensorium.storage.partitions import ROLLUP_KEY, create_class

UNDER_WAY: Final = "restore_under_way"
"""The table that is there while a database is restored: the files that are done. No platform starts on it."""

_USED: Final = """
SELECT (SELECT count(*) FROM devices) AS devices, (SELECT count(*) FROM rules) AS rules,
       EXISTS (SELECT FROM shards WHERE head > 0) AS readings
"""
_COLUMNS: Final = """
SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""
_KIND: Final = "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)"
# Partitions of rollups have a key of their own, once the whole table has none.
_KEY: Final = f"""
SELECT CASE WHEN $1 LIKE 'rollups\\_%' AND NOT EXISTS (
                SELECT FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype = 'p')
            THEN '{ROLLUP_KEY}' ELSE '' END
"""
_PARTITION: Final = re.compile(r"((\w+?)_\d{8})(?:_c(\d+))?")
_BOUND: Final = re.compile(r"FOR VALUES FROM \('[0-9: +-]+'\) TO \('[0-9: +-]+'\)")


async def verify(folder: Path, told: Told) -> Manifest:
    """Read every file of a backup and compare its checksum.

    Raises:
        BadBackup: the first that is missing or damaged.
    """
    manifest = read_manifest(folder)
    of_all = sum(database.size_bytes for database in manifest.databases)
    done = 0
    for database in manifest.databases:
        for table in database.tables:
            async for piece in pieces(folder, table):
                done += len(piece)
                told(table.table, done, of_all)
    return manifest


async def restore(folder: Path, dsns: Sequence[str], told: Told) -> Manifest:
    """Fill the databases, which are empty or were being restored from this backup, and migrate them.

    Each table or partition is a transaction, checked against its checksum before it counts.

    Raises:
        BadBackup: the backup is damaged, of a newer version, or the databases are not empty or not as many.
        DatabaseClaimed: a platform, or another restore, is at work on one of them.
        LogUnavailable: one of them cannot be reached.
    """
    manifest = read_manifest(folder)
    if len(manifest.databases) != len(dsns):
        raise BadBackup(
            f"{folder} is a backup of {len(manifest.databases)} databases, and {len(dsns)} are named:"
            " name as many empty ones (LOG_DB_URLS)"
        )
    newest = len(migrations())
    if any(database.schema > newest for database in manifest.databases):
        raise BadBackup(
            f"{folder} was written by Sensorium {manifest.version}, which is newer than this one:"
            " use that version"
        )
    claims = [Claim(dsn, Role.PLATFORM) for dsn in dsns]
    of_all = sum(database.size_bytes for database in manifest.databases)
    before = 0
    try:
        for claim in claims:
            await claim.hold()
        for dsn, database in zip(dsns, manifest.databases, strict=True):
            await _empty(dsn, folder, database)
        for dsn, database in zip(dsns, manifest.databases, strict=True):
            await _fill(dsn, folder, database, partial(_further, told, before, of_all))
            before += database.size_bytes
        for dsn in dsns:
            await migrate(dsn)
            await _finish(dsn)
    finally:
        for claim in claims:
            await claim.close()
    return manifest


def _further(told: Told, before: int, of_all: int, table: str, done: int, _: int) -> None:
    told(table, before + done, of_all)


async def _empty(dsn: str, folder: Path, database: DatabaseBackup) -> None:
    """See to it that nothing is overwritten, and mark the database."""
    connection = await connect(dsn, "sensorium-restore")
    try:
        with translated():
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", UNDER_WAY):
                taken = await connection.fetchval(f"SELECT taken_ms FROM {UNDER_WAY} WHERE file = ''")
                if taken != database.taken_ms:
                    raise BadBackup(
                        f"another backup than {folder} was being restored: go on with that one,"
                        " or use an empty database"
                    )
                return
            if await connection.fetchval("SELECT to_regclass('devices') IS NOT NULL"):
                row = await connection.fetchrow(_USED)
                if row is not None and (row["devices"] or row["rules"] or row["readings"]):
                    raise BadBackup(
                        f"the database holds {row['devices']} devices and {row['rules']} rules already:"
                        " restore into an empty one"
                    )
            async with connection.transaction():
                await connection.execute(
                    f"CREATE TABLE {UNDER_WAY} (file text PRIMARY KEY, taken_ms bigint NOT NULL)"
                )
                await connection.execute(f"INSERT INTO {UNDER_WAY} VALUES ('', $1)", database.taken_ms)
    finally:
        connection.terminate()


async def _fill(dsn: str, folder: Path, database: DatabaseBackup, told: Told) -> None:
    await migrate(dsn, database.schema)
    connection = await connect(dsn, "sensorium-restore")
    try:
        with translated():
            await connection.execute("SET statement_timeout = 0")
            done = {row["file"] for row in await connection.fetch(f"SELECT file FROM {UNDER_WAY}")}
            before = 0
            for table in database.tables:
                if table.file not in done:
                    async with connection.transaction():
                        await _load(connection, folder, table, before, told)
                        await connection.execute(
                            f"INSERT INTO {UNDER_WAY} VALUES ($1, $2)", table.file, database.taken_ms
                        )
                before += table.size_bytes
                told(table.table, before, 0)
            for sequence in database.sequences:
                await connection.execute(
                    "SELECT setval(pg_get_serial_sequence($1, $2), $3)",
                    sequence.table,
                    sequence.column,
                    sequence.last,
                )
            await connection.execute("ANALYZE", timeout=COPY_TIMEOUT_S)
    finally:
        connection.terminate()


async def _load(connection: Connection, folder: Path, table: TableFile, before: int, told: Told) -> None:
    if table.parent is not None:
        await _have_partition(connection, table)
    columns = await connection.fetchval(_COLUMNS, table.table)
    if table.table in LEFT_OUT or columns is None or tuple(columns) != table.columns:
        raise BadBackup(f"{folder} has a table {table.table} that does not fit this database")
    await connection.execute(f'TRUNCATE "{table.table}"')

    async def source() -> AsyncIterator[bytes]:
        done = before
        async for piece in pieces(folder, table):
            yield piece
            done += len(piece)
            told(table.table, done, 0)

    status: str = await connection.copy_to_table(
        table.table, source=source(), columns=table.columns, format="binary", timeout=COPY_TIMEOUT_S
    )
    if int(status.split()[1]) != table.rows:
        raise BadBackup(f"{folder / table.file} has {status.split()[1]} rows instead of {table.rows}")


async def _have_partition(connection: Connection, table: TableFile) -> None:
    named = _PARTITION.fullmatch(table.table)
    number = table.retention_class
    if (
        named is None
        or named[2] != table.parent
        or named[3] != (None if number is None else str(number))
        or not _BOUND.fullmatch(table.bound or "")
    ):
        raise BadBackup(f"the backup has a partition {table.table!r} that is none")
    day, by_class = named[1], " PARTITION BY LIST (class)" if number is not None else ""
    key = await connection.fetchval(_KEY, table.parent) if number is None else ""
    kind = await connection.fetchval(_KIND, day)
    if kind is not None and kind != ("p" if by_class else "r"):
        # Made ahead, and empty: the database was.
        await connection.execute(f'DROP TABLE "{day}"')
        kind = None
    if kind is None:
        await connection.execute(f'CREATE TABLE "{day}" (LIKE "{table.parent}" INCLUDING ALL{key}){by_class}')
        await connection.execute(f'ALTER TABLE "{table.parent}" ATTACH PARTITION "{day}" {table.bound}')
    if number is not None and await connection.fetchval(_KIND, table.table) is None:
        await create_class(connection, day, number)


async def _finish(dsn: str) -> None:
    connection = await connect(dsn, "sensorium-restore")
    try:
        with translated():
            await connection.execute(f"DROP TABLE {UNDER_WAY}")
    finally:
        connection.terminate()
