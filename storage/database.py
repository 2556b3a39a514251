"""Connections to PostgreSQL: how they are opened, what they speak and what their failures mean."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable, Moved

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection | PoolConnectionProxy

OLDEST_SERVER: Final = 15
CONNECT_TIMEOUT_S: Final = 5.0
STATEMENT_TIMEOUT_S: Final = 10.0
"""The server gives a statement up after it; we give the connection up `GRACE_S` later."""
GRACE_S: Final = 2.0
LOCK_TIMEOUT_S: Final = 8.0
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 10.0

EPOCH_2000_MS: Final = 946_684_800_000
"""PostgreSQL counts its timestamps from 2000."""

FENCED_SQLSTATE: Final = "SF001"
MOVED_SQLSTATE: Final = "SF002"


class MissingPartition(LogUnavailable):
    """The log has no partition for today yet; nothing was written."""


def check_dsn(dsn: str) -> str:
    """The DSN as given, once it looks like one.

    Raises:
        ValueError: it is no PostgreSQL URL; the message says what is wrong, without the password.
    """
    parts = urlsplit(dsn)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(f"a database URL starts with postgresql://, not {parts.scheme or dsn[:12]!r}")
    # Several hosts have commas between them: the one is tried that `target_session_attrs` asks for.
    hosts = parts.netloc.rpartition("@")[2].split(",")
    for host in hosts:
        try:
            _ = urlsplit(f"//{host}").port
        except ValueError as e:
            raise ValueError(f"the database URL's port is wrong: {e}") from e
    if not all(urlsplit(f"//{host}").hostname for host in hosts) and "host=" not in parts.query:
        raise ValueError("the database URL names no host, neither as //HOST/ nor as ?host=/socket/directory")
    return dsn


# Set by statement: what stands between us and the server, such as PgBouncer, refuses most of them at first.
_SET: Final = f"""
SET statement_timeout = '{STATEMENT_TIMEOUT_S:.0f}s'; SET lock_timeout = '{LOCK_TIMEOUT_S:.0f}s';
SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_TIMEOUT_S:.0f}s';
SET default_transaction_isolation = 'read committed'
"""


# What pools are used for is short: compiling it takes longer than it saves.
_SET_OF_POOL: Final = f"{_SET}; SET jit = off"

USERS_TYPES: Final = 16_384
"""Types with smaller numbers are the server's own, and the same in each."""

_told: dict[frozenset[int], Any] = {}
"""What asyncpg was told of the server's own types, such as bigint[]: on every connection it asks by a query
that the server plans for 10 ms. As many entries as our statements have different sets of such types."""


class _Known(NamedTuple):
    """Stands for the statement that asked: a named one, which has taken nothing else's place."""

    name: str = "known"


class _Ours(asyncpg.Connection):
    """A connection that keeps its settings when a pool takes it back, and asks of types once a process."""

    _as_it_was = False

    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> tuple[Any, Any]:
        asked = frozenset(typeoids)
        if asked in _told:
            return _told[asked], _Known()
        types, statement = await super()._introspect_types(asked, timeout)  # type: ignore[misc] # no stub
        if max(asked) < USERS_TYPES:
            _told[asked] = types
        return types, statement

    def is_as_it_was(self) -> None:
        """Say that nothing of the session was changed: the pool takes it back as it is, this time."""
        self._as_it_was = True

    def get_reset_query(self) -> str:
        """As asyncpg has it, and then the settings; empty: there is nothing to reset."""
        as_it_was, self._as_it_was = self._as_it_was, False
        if as_it_was:
            return ""
        query: str = super().get_reset_query()
        return f"{query};{_SET_OF_POOL}"


def _settings(application: str) -> dict[str, str]:
    return {"application_name": application, "timezone": "UTC"}


async def _speak(connection: Any, settings: str = _SET) -> None:
    """Timestamps travel as epoch milliseconds and jsonb as the value it means; nothing waits for ever."""
    await connection.execute(settings)
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda ms: ((ms - EPOCH_2000_MS) * 1000,),
        decoder=lambda parts: parts[0] // 1000 + EPOCH_2000_MS,
    )
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="text",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
    )


async def connect(dsn: str, application: str = "sensorium") -> "asyncpg.Connection[asyncpg.Record]":
    """One connection that speaks as ours do. The caller closes it.

    Raises:
        LogUnavailable: no server answered in time, it refused us, or it is older than `OLDEST_SERVER`.
    """
    with translated():
        connection = await asyncpg.connect(
            check_dsn(dsn),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S + GRACE_S,
            server_settings=_settings(application),
            connection_class=_Ours,
        )
        try:
            _check_version(connection)
            await _speak(connection)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def open_pool(dsn: str, size: int = 4, application: str = "sensorium") -> Pool:
    """A pool of up to `size` connections that speak as ours do. The caller closes it.

    Raises:
        LogUnavailable: as `connect`.
    """
    with translated():
        return await asyncpg.create_pool(
            check_dsn(dsn),
            min_size=0,
            max_size=size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S + GRACE_S,
            max_inactive_connection_lifetime=300.0,
            server_settings=_settings(application),
            connection_class=_Ours,
            init=_first,
        )


async def close_pool(pool: Pool, timeout_s: float = 5.0) -> None:
    """Close the pool; connections that do not finish within `timeout_s` are cut."""
    try:
        async with asyncio.timeout(timeout_s):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def _first(connection: Any) -> None:
    _check_version(connection)
    await _speak(connection, _SET_OF_POOL)


def _check_version(connection: Any) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise LogUnavailable(
            f"the database is PostgreSQL {version.major}.{version.minor};"
            f" Sensorium needs {OLDEST_SERVER} or newer"
        )


@asynccontextmanager
async def acquired(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool, waited for at most as long as a statement may take; errors are translated."""
    with translated():
        async with pool.acquire(timeout=STATEMENT_TIMEOUT_S) as connection:
            yield connection


@asynccontextmanager
async def borrowed(pool: Pool) -> AsyncIterator[Connection]:
    """As `acquired`, for whoever leaves the session as it is: giving it back needs no way to the server.

    So no `SET` but `SET LOCAL`, no lock but a transaction's, no listening and no cursor that outlives one.
    After an error it is reset as ever.
    """
    async with acquired(pool) as connection:
        yield connection
        connection.is_as_it_was()  # type: ignore[union-attr] # ours, and a proxy passes it on


async def copy_in(connection: Connection, table: str, columns: Sequence[str], data: bytes) -> None:
    """Add rows of the binary COPY format to a table."""
    # A buffer goes out as it is; bytes would be taken for a path and a file be read in a thread. The stubs
    # know neither.
    await connection.copy_to_table(
        table,
        source=memoryview(data),  # type: ignore[arg-type]
        columns=columns,
        format="binary",
        timeout=STATEMENT_TIMEOUT_S + GRACE_S,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn what asyncpg and the network raise into our errors; ours pass through.

    Raises:
        Fenced: the transaction's fence check failed; `Moved` when that is so of some shards only.
        InvalidMessage: the database refused a value (SQLSTATE class 22 or 23).
        MissingPartition: a row's commit time has no partition.
        LogUnavailable: everything that another attempt may mend: connection, time-out, disk full, shut-down.
    """
    try:
        yield
    except asyncpg.PostgresError as e:
        state = e.sqlstate or ""
        if state == FENCED_SQLSTATE:
            raise Fenced(f"{e}: another incarnation owns its shards") from e
        if state == MOVED_SQLSTATE:
            raise Moved(str(e)) from e
        if isinstance(e, asyncpg.CheckViolationError) and not e.constraint_name:
            raise MissingPartition(f"the log lacks a partition: {e}") from e
        if state[:2] in ("22", "23"):
            raise InvalidMessage(f"the database refused a value: {e}") from e
        if state[:2] in ("42", "28", "3D"):
            raise LogUnavailable(f"the database refused us: {e} (SQLSTATE {state}); is it migrated?") from e
        raise LogUnavailable(f"the database failed: {e} (SQLSTATE {state})") from e
    except asyncpg.ClientConfigurationError as e:
        raise LogUnavailable(f"the database URL cannot be used: {e}") from e
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as e:
        if isinstance(e, ValueError):
            raise InvalidMessage(f"a value does not fit its column: {e}") from e
        raise LogUnavailable(f"the connection to the database broke: {e}") from e
    except TimeoutError as e:
        raise LogUnavailable(
            f"the database did not answer within {STATEMENT_TIMEOUT_S + GRACE_S:.0f} s"
        ) from e
    except (OSError, socket.gaierror, asyncio.IncompleteReadError) as e:
        raise LogUnavailable(f"the database cannot be reached: {e}") from e
