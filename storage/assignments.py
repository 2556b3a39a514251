"""The rows of `assignments`: which incarnation owns a shard, at which epoch. For `hosts` and `log`."""

from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg
import msgspec

from sensorium.actors.errors import Moved
from sensorium.actors.lease import LEASE_S
from sensorium.actors.placement import SHARDS, shard_of
from sensorium.actors.ports import Held, Rehoming
from sensorium.storage import _write
from sensorium.storage._joined import Change
from sensorium.storage.database import Connection

PATIENCE: Final = "1s"
"""How long one who takes from a host waits for its commit in flight; then its connections are cut."""

LOSSES_SQLSTATE: Final = "SF003"

# Claims and takings go one after the other. No incarnation has the number 0.
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(1397051987, 0)"

_RENEW: Final = "UPDATE hosts SET renewed_at = clock_timestamp() WHERE incarnation = $1"
_LOSSES: Final = "SELECT losses FROM hosts WHERE incarnation = $1"
_LOST: Final = "UPDATE hosts SET losses = losses + 1 WHERE incarnation = $1"
_HELD: Final = "SELECT shard, epoch, head FROM assignments WHERE incarnation = $1"
_HOMES: Final = "SELECT device_id, shard FROM assignments WHERE device_id IS NOT NULL"
_FREE_HEADS: Final = (
    "SELECT shard, head FROM assignments"
    " WHERE shard = ANY($1::smallint[]) AND incarnation IS NULL AND device_id IS NULL AND head IS NOT NULL"
)

_ENTER_DEDICATED: Final = """
UPDATE assignments SET incarnation = $1, epoch = epoch + 1, head = $4, device_id = $5
WHERE shard = $2 AND epoch = $3 AND incarnation IS NULL AND device_id IS NULL
"""

_LEAVE_DEDICATED: Final = """
UPDATE assignments SET incarnation = NULL, epoch = epoch + 1, head = $4, device_id = NULL,
    free_at = '-infinity'
WHERE shard = $2 AND epoch = $3 AND incarnation = $1 AND device_id = $5
"""

_STAY: Final = """
UPDATE assignments SET epoch = epoch + 1, head = $4 WHERE shard = $2 AND epoch = $3 AND incarnation = $1
"""

_EVENT: Final = (
    "INSERT INTO events (shard, log_offset, device, time, kind, body, class)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7)"
)
_SNAPSHOT: Final = """
INSERT INTO snapshots (device, shard, log_offset, replay_from, saved_at, state)
VALUES ($1, $2, $3, $4, now(), $5)
ON CONFLICT (device) DO UPDATE SET shard = excluded.shard, log_offset = excluded.log_offset,
    replay_from = excluded.replay_from, saved_at = excluded.saved_at, state = excluded.state
"""
# Of a device that was deleted it is kept only while there are rows to be emptied that it stands for.
_ERASED: Final = """
DELETE FROM snapshots s WHERE device = $1 AND NOT EXISTS (SELECT FROM devices d WHERE d.device = s.device)
    AND (SELECT bool_and(e.state <> 'ERASING') FROM erasures e WHERE e.device = s.device)
"""
_TIMERS: Final = "UPDATE timers SET shard = $2 WHERE device = $1"

# A dedicated shard that is no device's is nobody's, however late a claim from before arrives.
_CLAIM: Final = f"""
UPDATE assignments a SET incarnation = $1, epoch = a.epoch + 1, head = NULL
FROM (SELECT shard FROM assignments LEFT JOIN hosts h USING (incarnation)
          WHERE shard = ANY($2::smallint[]) AND (shard < {SHARDS} OR device_id IS NOT NULL)
              AND clock_timestamp() >= CASE
              WHEN incarnation IS NULL THEN assignments.free_at
              WHEN h.state = 'fenced' THEN h.free_at ELSE 'infinity' END) AS free
WHERE a.shard = free.shard
"""

_HAND_OVER: Final = """
UPDATE assignments a SET incarnation = $2, epoch = a.epoch + 1, head = given.head
FROM unnest($3::smallint[], $4::bigint[], $5::bigint[]) AS given (shard, epoch, head)
WHERE a.shard = given.shard AND a.epoch = given.epoch AND a.incarnation = $1
    AND EXISTS (SELECT FROM hosts WHERE incarnation = $2 AND state = 'alive')
RETURNING a.shard, a.epoch
"""

_OWNERS: Final = """
SELECT DISTINCT a.incarnation FROM assignments a
JOIN unnest($1::smallint[], $2::bigint[]) AS asked (shard, epoch) USING (shard, epoch)
WHERE a.incarnation IS NOT NULL ORDER BY a.incarnation
"""

_TAKE: Final = f"""
UPDATE assignments a SET incarnation = NULL, epoch = a.epoch + 1, head = NULL,
    free_at = clock_timestamp() + interval '{LEASE_S} s'
FROM unnest($1::smallint[], $2::bigint[]) AS asked (shard, epoch)
WHERE a.shard = asked.shard AND a.epoch = asked.epoch AND a.incarnation IS NOT NULL
"""


class Title:
    """What an incarnation owned when it last looked, and how many losses it had had by then.

    It is what makes the check of a commit cheap: as long as there is no further loss, all of that is still
    its own. Whatever is not covered so is looked up shard by shard.
    """

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._losses = 0
        self._epochs: dict[int, int] = {}

    async def held(self, connection: Connection) -> dict[int, Held]:
        """As `Log.held`, in a transaction of its own."""
        async with connection.transaction():
            await connection.execute("SELECT sensorium_check_fence($1)", self._incarnation)
            await connection.execute(_RENEW, self._incarnation)
            looked = await self._look(connection)
        return self._found(*looked)

    async def claim(self, connection: Connection, shards: Sequence[int]) -> dict[int, Held]:
        """As `Log.claim`, in a transaction of its own."""
        async with connection.transaction():
            await connection.execute(_ONE_AT_A_TIME)
            await connection.execute("SELECT sensorium_check_fence($1)", self._incarnation)
            await connection.execute(_CLAIM, self._incarnation, list(shards))
            looked = await self._look(connection)
        return self._found(*looked)

    async def hand_over(self, connection: Connection, given: Mapping[int, Held], to: int) -> dict[int, int]:
        """As `Log.hand_over`, in a transaction of its own."""
        epochs = [one.epoch for one in given.values()]
        heads = [one.head for one in given.values()]
        async with connection.transaction():
            await connection.execute("SELECT sensorium_await_commits($1)", self._incarnation)
            await connection.execute("SELECT sensorium_check_fence($1)", self._incarnation)
            rows = await connection.fetch(_HAND_OVER, self._incarnation, to, list(given), epochs, heads)
            if rows:
                await connection.execute(_LOST, self._incarnation)
            looked = await self._look(connection)
        self._found(*looked)
        return {row["shard"]: row["epoch"] for row in rows}

    async def rehome(self, connection: Connection, move: Rehoming) -> dict[int, Held]:
        """As `Log.rehome`, in a transaction of its own."""
        incarnation, snapshot, event = self._incarnation, move.snapshot, move.event
        async with connection.transaction():
            await connection.execute("SELECT sensorium_await_commits($1)", incarnation)
            await connection.execute("SELECT sensorium_check_fence($1)", incarnation)
            for shard, dedicated in ((move.left, _LEAVE_DEDICATED), (move.to, _ENTER_DEDICATED)):
                whose = (move.device_id,) if shard >= SHARDS else ()
                changed = await connection.execute(
                    dedicated if whose else _STAY,
                    *(incarnation, shard, move.epochs[shard], move.heads[shard], *whose),
                )
                if changed != "UPDATE 1":
                    raise Moved(f"shard {shard} is not as it was when {move.device_id} was to change it")
            await connection.execute(_LOST, incarnation)
            body = msgspec.json.decode(event.body)
            await connection.execute(_EVENT, *event[:5], body, event.retention_class)
            await _write.keep(connection, [snapshot.device])
            await connection.execute(_SNAPSHOT, *snapshot)
            await connection.execute(_ERASED, snapshot.device)
            await connection.execute(_TIMERS, snapshot.device, move.to)
            await _write.heads(connection, move.heads)
            looked = await self._look(connection)
        return self._found(*looked)

    def covers(self, epochs: Mapping[int, int]) -> bool:
        """Whether `check` is enough for these shards."""
        return bool(epochs) and epochs.items() <= self._epochs.items()

    @property
    def check(self) -> Change:
        """The SELECT that raises the database's error unless all that it owned is still its own.

        With `LOSSES_SQLSTATE` it may have lost others than those that matter: `begin` tells.
        """
        return Change("SELECT sensorium_check_losses($1, $2)", (self._incarnation, self._losses))

    async def begin(self, writer: "asyncpg.Connection[asyncpg.Record]", epochs: Mapping[int, int]) -> None:
        """Begin a transaction that nobody takes these shards from before it ends.

        Raises the database's error, to be `translated`: `Fenced`, or `Moved` when one is at another epoch.
        """
        if self.covers(epochs):
            known = f"{self._incarnation:d}, {self._losses:d}"
            try:
                await writer.execute(f"BEGIN; SELECT sensorium_check_losses({known})")
            except asyncpg.PostgresError as error:
                if error.sqlstate != LOSSES_SQLSTATE:
                    raise
                await writer.execute("ROLLBACK")
            else:
                return
        await writer.execute(f"BEGIN; {check(self._incarnation, epochs)}")

    async def _look(self, connection: Connection) -> tuple[int, list[asyncpg.Record], list[asyncpg.Record]]:
        # Nothing leaves the incarnation meanwhile: the transaction holds its lock.
        losses: int = await connection.fetchval(_LOSSES, self._incarnation)
        held = await connection.fetch(_HELD, self._incarnation)
        return losses, held, await connection.fetch(_HOMES)

    def _found(
        self, losses: int, rows: Sequence[asyncpg.Record], homes: Sequence[asyncpg.Record]
    ) -> dict[int, Held]:
        # Only once it is committed: what is rolled back would be taken for true at that number of losses.
        self._losses, self._epochs = losses, {row["shard"]: row["epoch"] for row in rows}
        by_shard: dict[int, dict[str, int]] = {}
        for device_id, shard in homes:
            by_shard.setdefault(shard, {})[device_id] = shard
            by_shard.setdefault(shard_of(device_id), {})[device_id] = shard
        return {shard: Held(epoch, head, by_shard.get(shard, {})) for shard, epoch, head in rows}


async def free_heads(connection: Connection, shards: Sequence[int]) -> dict[int, int]:
    """The newest offsets of those of the shards that are dedicated ones and nobody's."""
    dedicated = [shard for shard in shards if shard >= SHARDS]
    rows = await connection.fetch(_FREE_HEADS, dedicated) if dedicated else []
    return {row["shard"]: row["head"] for row in rows}


async def take(connection: Connection, epochs: Mapping[int, int]) -> None:
    """As `Membership.take`, in the connection's transaction."""
    await connection.execute(_ONE_AT_A_TIME)
    asked = (list(epochs), list(epochs.values()))
    for row in await connection.fetch(_OWNERS, *asked):
        await exclude(connection, row["incarnation"], "SELECT sensorium_await_commits($1)")
        await connection.execute(_LOST, row["incarnation"])
    await connection.execute(_TAKE, *asked)


async def exclude(connection: Connection, incarnation: int, statement: str) -> None:
    """Run the statement, which waits for the incarnation's commits in flight; they end or are cut off."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'")
            await connection.execute(statement, incarnation)
    except asyncpg.LockNotAvailableError:
        # A host that hangs inside of a transaction, or whose machine is gone, holds the lock: its connections
        # are cut, which rolls the transaction back. Locks queue, so it cannot slip another one in.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = $1 AND usename = current_user",
            application_of(incarnation),
        )
        await connection.execute(statement, incarnation)


def application_of(incarnation: int) -> str:
    """The application name of a host's connections, by which they are found to be cut."""
    return f"sensorium-host-{incarnation}"


def check(incarnation: int, epochs: Mapping[int, int]) -> str:
    """The statement that raises `Fenced` or `Moved` unless the incarnation owns these shards."""
    if not epochs:
        return f"SELECT sensorium_check_fence({incarnation:d})"
    shards = ",".join(map(str, epochs))
    return f"SELECT sensorium_check_shards({incarnation:d}, '{{{shards}}}', {sum(epochs.values()):d})"
