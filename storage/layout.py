"""Which databases a log is spread over: noted in them at the first start, compared at every other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import Connection, connect, translated

_READ: Final = "SELECT layout_id, position, databases FROM log_layout"
_WRITE: Final = """
INSERT INTO log_layout (layout_id, position, databases) VALUES ($1, $2, $3)
ON CONFLICT (only_one) DO UPDATE
    SET (layout_id, position, databases) = (excluded.layout_id, excluded.position, excluded.databases)
"""
_USED: Final = "SELECT EXISTS (SELECT FROM devices) OR EXISTS (SELECT FROM shards WHERE head > 0)"


class Layout(NamedTuple):
    """What a database says of itself."""

    layout_id: UUID
    position: int
    databases: int


class LayoutMismatch(LogUnavailable):
    """The databases are not those that the log is spread over, or not in their order. Says what to do."""


async def check_layout(dsns: Sequence[str]) -> None:
    """See to it that the log is spread over these databases, in this order. They are migrated and claimed.

    At the first start that is noted in all of them, in the first last: what the first says counts.

    Raises:
        LayoutMismatch: it is spread over others, or one of them holds a log already.
        LogUnavailable: one of them cannot be reached.
    """
    found = [await _read(dsn) for dsn in dsns]
    main = found[0]
    if main is None:
        await _first_start(dsns)
        return
    if main.position != 0:
        raise LayoutMismatch(
            f"{_name(dsns[0])} is database {main.position + 1} of {main.databases} of a log:"
            " name the first one first (LOG_DB_URLS, DEVICE_DB_URL)"
        )
    if main.databases != len(dsns):
        raise LayoutMismatch(
            f"the log is spread over {main.databases} database{'s' if main.databases > 1 else ''}, and"
            f" {len(dsns)} {'are' if len(dsns) > 1 else 'is'} named: name the same in the same order"
            " (LOG_DB_URLS), or move the data first (docs/databases.md)"
        )
    for position, (dsn, there) in enumerate(zip(dsns, found, strict=True)):
        if there != Layout(main.layout_id, position, main.databases):
            raise LayoutMismatch(
                f"{_name(dsn)} is not database {position + 1} of this log:"
                " name the same in the same order (LOG_DB_URLS)"
            )


async def _first_start(dsns: Sequence[str]) -> None:
    layout_id = uuid4()
    if len(dsns) > 1:
        for dsn in dsns:
            if await _used(dsn):
                raise LayoutMismatch(
                    f"{_name(dsn)} holds a log that is not spread over {len(dsns)} databases:"
                    " name empty databases, or move the data first (docs/databases.md)"
                )
    for position in reversed(range(len(dsns))):
        async with _connected(dsns[position]) as connection:
            await connection.execute(_WRITE, layout_id, position, len(dsns))


async def _read(dsn: str) -> Layout | None:
    async with _connected(dsn) as connection:
        row = await connection.fetchrow(_READ)
    return None if row is None else Layout(*row)


async def _used(dsn: str) -> bool:
    async with _connected(dsn) as connection:
        used: bool = await connection.fetchval(_USED)
    return used


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(dsn, "sensorium-layout")
    try:
        with translated():
            yield connection
    finally:
        connection.terminate()


def _name(dsn: str) -> str:
    """The database by server and name, without whoever connects."""
    parts = urlsplit(dsn)
    return f"the database {parts.netloc.rpartition('@')[2] or parts.query}{parts.path}"
