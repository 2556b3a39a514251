"""Copies a database into a folder, as it is at one moment, while the platform goes on."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from sensorium.storage.backup_files import (
    FORMAT,
    BadBackup,
    DatabaseBackup,
    Manifest,
    Sequenced,
    TableFile,
    Written,
    finished,
    is_whole,
    note_finished,
    read_manifest,
    remove_others,
    write_manifest,
)
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.partitions import BACKUP_KEY

LEFT_OUT: Final = ("schema_migrations", "platform_claims", "restore_under_way", "compaction")
"""Tables that say something of the database itself, not of what is kept in it."""
SETTLED_AFTER: Final = timedelta(hours=1)
"""Longer than any transaction lasts: a partition that ended so long ago takes nothing more in."""
COPY_TIMEOUT_S: Final = 24 * 3600.0

Told = Callable[[str, int, int], None]
"""Is told, as it goes, of what is copied: the table, the bytes that are done, and those of everything."""

_TABLES: Final = """
SELECT c.relname::text AS name, coalesce(above.relname, parent.relname)::text AS parent,
       CASE WHEN above.oid IS NULL THEN pg_get_expr(c.relpartbound, c.oid)
            ELSE pg_get_expr(parent.relpartbound, parent.oid) END AS bound,
       CASE WHEN above.oid IS NOT NULL
            THEN substring(pg_get_expr(c.relpartbound, c.oid) FROM '[0-9]+')::int END AS class,
       pg_table_size(c.oid) AS bytes,
       array(SELECT attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             ORDER BY a.attnum) AS columns
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
LEFT JOIN pg_inherits j ON j.inhrelid = parent.oid LEFT JOIN pg_class above ON above.oid = j.inhparent
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relnamespace = 'public'::regnamespace
  AND c.relname <> ALL ($1::text[]) AND c.relname !~ '^compacting_\\d'
ORDER BY c.relname
"""
_SEQUENCES: Final = """
SELECT t.relname::text AS "table", a.attname::text AS "column", s.last_value AS last
FROM pg_depend d
JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S'
JOIN pg_class t ON t.oid = d.refobjid
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
JOIN pg_sequences s ON s.sequencename = q.relname AND s.schemaname = 'public'
WHERE t.relnamespace = 'public'::regnamespace AND s.last_value IS NOT NULL
ORDER BY 1, 2
"""
_BOUND: Final = re.compile(r"FOR VALUES FROM \('[0-9: +-]+'\) TO \('(\d{4}-\d\d-\d\d) 00:00:00\+00'\)")


class _Table(NamedTuple):
    name: str
    parent: str | None
    bound: str | None
    ends: datetime | None
    columns: tuple[str, ...]
    about_bytes: int
    retention_class: int | None


async def back_up(dsns: Sequence[str], folder: Path, version: str, told: Told) -> Manifest:
    """Write a backup of the databases into the folder, which is new or holds an earlier backup of them.

    Each database is copied as of one moment; what one transaction wrote is in it as a whole or not at all.
    Partitions of the past that an earlier backup has, also one that was cut off, are not copied again. Until
    the new backup is whole the folder keeps the one before.

    Raises:
        BadBackup: the folder holds something else.
        LogUnavailable: a database could not be read.
        OSError: the folder could not be written to.
    """
    earlier = _earlier(folder, len(dsns))
    sizes = [0] * len(dsns)

    def forward(position: int, table: str, done: int, of_all: int) -> None:
        sizes[position] = of_all
        told(table, sum(sizes[:position]) + done, sum(sizes))

    databases = []
    for position, dsn in enumerate(dsns):
        directory = folder / str(position)
        known = earlier[position] + finished(directory)
        databases.append(await _one(dsn, folder, directory, known, partial(forward, position)))
    manifest = Manifest(FORMAT, version, tuple(databases))
    write_manifest(folder, manifest)
    for position, database in enumerate(databases):
        remove_others(folder / str(position), database.tables)
    return manifest


def _earlier(folder: Path, databases: int) -> list[list[TableFile]]:
    """The files of the backup that is there already, by database. Makes the folders."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    strange = [p for p in folder.iterdir() if not p.name.startswith("manifest.json") and not p.name.isdigit()]
    if strange:
        raise BadBackup(f"{folder} is no folder for a backup: it holds {strange[0].name}")
    try:
        manifest = read_manifest(folder)
    except BadBackup:
        if (folder / "manifest.json").exists():
            raise
        _make_directories(folder, databases)
        return [[]] * databases
    if len(manifest.databases) != databases:
        raise BadBackup(
            f"{folder} holds a backup of {len(manifest.databases)} databases, and this is one of {databases}:"
            " name another folder"
        )
    return [list(database.tables) for database in manifest.databases]


def _make_directories(folder: Path, databases: int) -> None:
    for position in range(databases):
        (folder / str(position)).mkdir(mode=0o700, exist_ok=True)


async def _one(
    dsn: str, folder: Path, directory: Path, known: Sequence[TableFile], told: Told
) -> DatabaseBackup:
    connection = await connect(dsn, "sensorium-backup")
    try:
        with translated():
            await connection.execute(
                "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;"
                " SET lock_timeout = '60s'"
            )
            # Held until the connection ends. Dropping a partition would wait for us, and everything for it.
            await connection.execute("SELECT pg_advisory_lock_shared($1)", BACKUP_KEY)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await _copied(connection, folder, directory, known, told)
    finally:
        connection.terminate()


async def _copied(
    connection: Connection, folder: Path, directory: Path, known: Sequence[TableFile], told: Told
) -> DatabaseBackup:
    taken: int = await connection.fetchval("SELECT now()")
    schema: int = await connection.fetchval("SELECT max(number) FROM schema_migrations")
    tables = [_table(row) for row in await connection.fetch(_TABLES, LEFT_OUT)]
    of_all = sum(table.about_bytes for table in tables)
    settled = datetime.fromtimestamp(taken / 1000, UTC) - SETTLED_AFTER
    have = {file.table: file for file in known}
    before = 0
    files = []
    for table in tables:
        told(table.name, before, of_all)
        there = have.get(table.name)
        if not (
            there is not None
            and table.ends is not None
            and table.ends <= settled
            and there.columns == table.columns
            and there.rows == await connection.fetchval(f'SELECT count(*) FROM "{table.name}"')
            and await is_whole(folder, there)
        ):
            there = await _copy(connection, table, directory, partial(_within, told, table, before, of_all))
            note_finished(directory, there)
        files.append(there)
        before += table.about_bytes
    told("", of_all, of_all)
    sequences = [Sequenced(*row) for row in await connection.fetch(_SEQUENCES)]
    return DatabaseBackup(schema, taken, tuple(files), tuple(sequences))


def _within(told: Told, table: _Table, before: int, of_all: int, done: int) -> None:
    # Rows take another size in the file than in the database: about the same is as good as can be known.
    told(table.name, before + min(done, table.about_bytes), of_all)


async def _copy(
    connection: Connection, table: _Table, directory: Path, told: Callable[[int], None]
) -> TableFile:
    # The name of the copy is new each time: the manifest of the backup before still names the old one.
    path = _unused(directory, table.name)
    columns = ", ".join(f'"{column}"' for column in table.columns)
    with Written(path) as file:

        async def output(piece: bytes) -> None:
            file.add(piece)
            told(file.size_bytes)

        status: str = await connection.copy_from_query(
            f'SELECT {columns} FROM "{table.name}"', output=output, format="binary", timeout=COPY_TIMEOUT_S
        )
    return TableFile(
        f"{directory.name}/{path.name}",
        table.name,
        table.columns,
        int(status.split()[1]),
        file.size_bytes,
        file.digest(),
        table.parent,
        table.bound,
        None if table.ends is None else int(table.ends.timestamp() * 1000),
        table.retention_class,
    )


def _unused(directory: Path, table: str) -> Path:
    number = 1
    while (path := directory / f"{table}.{number}.copy.gz").exists():
        number += 1
    return path


def _table(row: Any) -> _Table:
    ends = None
    if row["bound"] is not None and (found := _BOUND.fullmatch(row["bound"])):
        ends = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    return _Table(
        *(row["name"], row["parent"], row["bound"], ends, tuple(row["columns"]), row["bytes"], row["class"])
    )
