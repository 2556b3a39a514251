"""Who may use a database: one platform at a time, and the runtime that it has started.

A claim is an advisory lock of a session, so it goes with its process, however that ends. What is written in
`platform_claims` only says who holds it. It guards against a second platform by mistake; that two never both
commit for a device is what the fence is for (see `hosts`).
"""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, NamedTuple, NoReturn

import asyncpg

from sensorium.actors.errors import LogUnavailable, Unavailable
from sensorium.storage.database import connect, translated
from sensorium.storage.hosts import fence_by

_log = logging.getLogger(__name__)

KEEP_EVERY_S: Final = 1.0
"""How soon a connection that broke is noticed, and made anew."""
PING_TIMEOUT_S: Final = 5.0
CUT_TIMEOUT_S: Final = 5.0
"""In which the server ends a session that it was told to end."""
POLL_S: Final = 0.1

# A machine that is gone closes no connection: the server finds out after 5 + 3 * 2 s.
_SESSION: Final = """
SET idle_session_timeout = 0;
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3
"""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS platform_claims (
    role text PRIMARY KEY, host_name text NOT NULL, pid integer NOT NULL, since timestamptz NOT NULL,
    cluster_id text NOT NULL, ray_address text NOT NULL, backend_pid integer NOT NULL)
"""
# A row that is not of the session with the lock was written by an earlier one.
_HOLDER: Final = """
SELECT l.pid AS session, c.host_name, c.pid, c.since, c.cluster_id, c.ray_address
FROM pg_locks l LEFT JOIN platform_claims c ON c.role = $1 AND c.backend_pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint = $2::bigint >> 32 AND l.objid::bigint = $2::bigint & 4294967295
"""
_WRITE: Final = """
INSERT INTO platform_claims (role, host_name, pid, since, cluster_id, ray_address, backend_pid)
VALUES ($1, $2, $3, coalesce($4, now()), $5, $6, pg_backend_pid())
ON CONFLICT (role) DO UPDATE SET (host_name, pid, since, cluster_id, ray_address, backend_pid)
    = (excluded.host_name, excluded.pid, excluded.since, excluded.cluster_id, excluded.ray_address,
       excluded.backend_pid)
RETURNING since
"""


class Role(Enum):
    """What is claimed, and the key of its lock."""

    PLATFORM = 0x53454E_504C54
    """Held by `sensorium up` from its start to its end."""
    RUNTIME = 0x53454E_52554E
    """Held by the coordinator; a platform that is killed leaves it behind on a Ray cluster it had joined."""


class Holder(NamedTuple):
    """Who has a claim. `session` is the server's process; the rest is None until the holder wrote it."""

    session: int
    host_name: str | None
    pid: int | None
    since_ms: int | None
    cluster_id: str | None
    ray_address: str | None


class DatabaseClaimed(Unavailable):
    """Another platform uses this database. The message names it and says what to do."""


class Claim:
    """The claim on the database at `dsn`. `hold` it, `keep` it, `close` it.

    Args:
        dsn: where; it need not be migrated for a `PLATFORM`.
        role: what is claimed.
        cluster_id: of the Ray cluster, for a `RUNTIME`: one of the same cluster is taken over.
        ray_address: how that cluster is reached, to be told to others.
    """

    def __init__(self, dsn: str, role: Role, cluster_id: str = "", ray_address: str = "") -> None:
        self._dsn = dsn
        self._role = role
        self._cluster_id = cluster_id
        self._ray_address = ray_address
        self._host_name = socket.gethostname()
        self._since_ms: int | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def hold(self) -> None:
        """Have the claim now. Makes the connection anew when it broke, which frees and takes the claim again.

        A `RUNTIME` of another cluster than the last one first fences every host that was left alive.

        Raises:
            DatabaseClaimed: somebody else has it.
            LogUnavailable: the database cannot be reached.
        """
        async with self._one_at_a_time:
            if self._connection is not None:
                try:
                    with translated():
                        await self._connection.execute("SELECT 1", timeout=PING_TIMEOUT_S)
                except LogUnavailable:
                    self._connection.terminate()
                    self._connection = None
                else:
                    return
            connection = await connect(self._dsn, f"sensorium-{self._role.name.lower()}-claim")
            try:
                with translated():
                    await self._take(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection

    async def keep(self) -> NoReturn:
        """Hold the claim until cancelled, through failures of the database.

        Raises:
            DatabaseClaimed: while the database was away, somebody else has taken it.
        """
        lost = False
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                await self.hold()
            except LogUnavailable as error:
                if not lost:
                    _log.warning("the claim on the database is lost for now: %s", error)
                lost = True
            else:
                lost = False

    async def holder(self, role: Role) -> Holder | None:
        """Who has another claim on the database; None when nobody has. This one is held."""
        async with self._one_at_a_time:
            if self._connection is None:
                raise LogUnavailable("the claim on the database is not held")
            with translated():
                return await _holder(self._connection, role)

    async def close(self) -> None:
        """Give the claim up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(LogUnavailable), translated():
                await connection.close(timeout=PING_TIMEOUT_S)

    async def _take(self, connection: Any) -> None:
        await connection.execute(_SESSION)
        async with asyncio.timeout(CUT_TIMEOUT_S):
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", self._role.value):
                holder = await _holder(connection, self._role)
                if holder is None:
                    continue
                if not self._is_ours(holder):
                    raise await _claimed(connection, self._role, holder)
                await connection.execute("SELECT pg_terminate_backend($1)", holder.session)
                await asyncio.sleep(POLL_S)
        await connection.execute(_TABLE)
        async with connection.transaction():
            if self._role is Role.RUNTIME:
                await self._fence_others(connection)
            self._since_ms = await connection.fetchval(
                _WRITE,
                self._role.name.lower(),
                self._host_name,
                os.getpid(),
                self._since_ms,
                self._cluster_id,
                self._ray_address,
            )

    def _is_ours(self, holder: Holder) -> bool:
        """Whether the lock is held by a session that we have lost, or that of the one whose place we take."""
        if self._role is Role.RUNTIME:
            return holder.cluster_id == self._cluster_id
        mine = (self._host_name, os.getpid(), self._since_ms)
        return self._since_ms is not None and mine == (holder.host_name, holder.pid, holder.since_ms)

    async def _fence_others(self, connection: Any) -> None:
        last = await connection.fetchval(
            "SELECT cluster_id FROM platform_claims WHERE role = $1", self._role.name.lower()
        )
        if last != self._cluster_id:
            for row in await connection.fetch("SELECT incarnation FROM hosts WHERE state = 'alive'"):
                await fence_by(connection, row["incarnation"])


class KeptClaim:
    """A claim that a task of its own keeps from the first `hold` to `close`. Implements `hosts.Guard`."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._task: asyncio.Task[None] | None = None

    async def hold(self) -> None:
        """As `Claim.hold`."""
        await self._claim.hold()
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="keep the claim on the database")

    async def close(self) -> None:
        """As `Claim.close`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._claim.close()

    async def _keep(self) -> None:
        try:
            await self._claim.keep()
        except DatabaseClaimed as error:
            # Whoever needs the claim next hears it from `hold`.
            _log.error("%s", error)


async def await_no_other_runtime(claim: Claim, cluster_id: str, timeout_s: float) -> None:
    """Return when no runtime uses the database, or one of the cluster `cluster_id` only.

    `claim` is the platform's, held, so that none can come meanwhile; one whose Ray ends with its platform is
    waited for.

    Raises:
        DatabaseClaimed: one of another cluster does, after `timeout_s`.
        LogUnavailable: the database cannot be reached.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while (holder := await claim.holder(Role.RUNTIME)) and holder.cluster_id != cluster_id:
        if asyncio.get_running_loop().time() >= deadline_s:
            raise DatabaseClaimed(
                f"the hosts of a platform that was killed still run on the Ray cluster"
                f" {holder.ray_address or '(unknown)'} and use this database{_since(holder)}; start with"
                " --ray-address to take their place, or end that cluster (ray stop)"
            )
        await asyncio.sleep(POLL_S)


async def _holder(connection: Any, role: Role) -> Holder | None:
    if await connection.fetchval("SELECT to_regclass('platform_claims')") is None:
        await connection.execute(_TABLE)
    row = await connection.fetchrow(_HOLDER, role.name.lower(), role.value)
    return None if row is None else Holder(*row)


async def _claimed(connection: Any, role: Role, holder: Holder) -> DatabaseClaimed:
    database = await connection.fetchval("SELECT current_database()")
    if holder.host_name is None:
        who = f"another platform that is just starting (the server's session {holder.session})"
    else:
        kind = "platform" if role is Role.PLATFORM else "runtime"
        who = f"the {kind} on {holder.host_name} (pid {holder.pid}){_since(holder)}"
    return DatabaseClaimed(
        f"the database {database} is in use by {who}: end that one first, or give this one a database of its"
        " own (DEVICE_DB_URL)"
    )


def _since(holder: Holder) -> str:
    if holder.since_ms is None:
        return ""
    since = datetime.fromtimestamp(holder.since_ms // 1000, UTC)
    return f" since {since:%Y-%m-%d %H:%M:%S} UTC"
