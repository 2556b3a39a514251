"""Whether a server will do: asked at the start, answered in one line for each thing that is wrong."""

from typing import Final

import asyncpg

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import connect, translated

_ASK: Final = """
SELECT current_database() AS database, current_user AS role,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only')::bool AS read_only,
       to_regclass('restore_under_way') IS NOT NULL AS restoring,
       has_schema_privilege(current_schema(), 'CREATE, USAGE') AS creates,
       has_database_privilege(current_database(), 'TEMPORARY') AS stages,
       pg_encoding_to_char(d.encoding) AS encoding, d.datconnlimit AS database_limit,
       r.rolconnlimit AS role_limit,
       current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int AS server_limit,
       current_setting('fsync')::bool AS fsync,
       current_setting('full_page_writes')::bool AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit
FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user
"""


class UnsuitableDatabase(LogUnavailable):
    """The server cannot serve as it is set up; each line of the message says one thing to change."""


async def check_server(dsn: str, connections: int) -> list[str]:
    """Look whether the server at `dsn` has the version, rights and settings that a platform needs of it.

    `connections` is how many may be asked of it at the worst.

    Returns:
        What is dangerous or scarce, though it works: one line each.

    Raises:
        UnsuitableDatabase: what does not work.
        LogUnavailable: it cannot be reached, or is too old.
    """
    connection = await connect(dsn, "sensorium-checkup")
    try:
        with translated():
            row = await connection.fetchrow(_ASK)
    finally:
        connection.terminate()
    assert row is not None
    name = f"the database {row['database']}"
    if wrong := _wrong(row):
        raise UnsuitableDatabase("\n".join(f"{name} {line}" for line in wrong))
    return [f"{name} {line}" for line in _dangerous(row, connections)]


def _wrong(found: asyncpg.Record) -> list[str]:
    lines = []
    if found["standby"]:
        lines.append("is a standby: name the primary too, and target_session_attrs=read-write in the URL")
    elif found["read_only"]:
        lines.append("is read-only: set default_transaction_read_only to off")
    if found["restoring"]:
        lines.append("is half restored from a backup: run sensorium restore again, to its end")
    if not found["creates"]:
        lines.append(f"lets {found['role']} create no tables: GRANT CREATE, USAGE ON SCHEMA public")
    if not found["stages"]:
        lines.append(f"lets {found['role']} create no temporary tables: GRANT TEMPORARY ON DATABASE")
    if found["encoding"] != "UTF8":
        lines.append(f"is encoded in {found['encoding']}: create it with ENCODING 'UTF8'")
    return lines


def _dangerous(found: asyncpg.Record, connections: int) -> list[str]:
    lines = [
        f"has {name} off: a crash of its machine can destroy it"
        for name in ("fsync", "full_page_writes")
        if not found[name]
    ]
    if found["synchronous_commit"] == "off":
        lines.append("has synchronous_commit off: a crash loses readings that were acknowledged")
    limits = {
        "max_connections less those reserved": found["server_limit"],
        f"the connection limit of the role {found['role']}": found["role_limit"],
        "its own connection limit": found["database_limit"],
    }
    for what, limit in limits.items():
        # -1 is no limit.
        if 0 <= limit < connections:
            lines.append(
                f"grants {limit} connections ({what}), and up to {connections} may be needed:"
                " raise that, or have fewer hosts or replicas"
            )
    return lines
