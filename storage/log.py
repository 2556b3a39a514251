"""The log in PostgreSQL: implements `sensorium.actors.ports.Log` for one incarnation of a host."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable, Moved, SensoriumError
from sensorium.actors.metrics import MetricSet
from sensorium.actors.placement import device_key
from sensorium.actors.ports import Held, Rehoming
from sensorium.actors.records import (
    Command,
    Commit,
    Identity,
    PresenceRow,
    Snapshot,
    StoredDevice,
    TailReading,
    Timer,
    TimerRow,
)
from sensorium.storage import _log_sql as sql
from sensorium.storage import (
    _write,
    _write_anomalies,
    _write_commands,
    _write_twins,
    assignments,
    audit_trail,
    erasures,
)
from sensorium.storage._joined import Change, apply, joined
from sensorium.storage._known_sets import KnownSets
from sensorium.storage._read import alarm_of, command_of, registration_of, twin_of
from sensorium.storage._readings_sql import AHEAD_MS, DAY_MS, WHENEVER, Committed
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import (
    GRACE_S,
    Connection,
    MissingPartition,
    Pool,
    acquired,
    close_pool,
    connect,
    copy_in,
    open_pool,
    translated,
)
from sensorium.storage.encode import (
    READING_COLUMNS,
    decode_values,
    encode_readings,
)
from sensorium.storage.partitions import ensure_partitions

if TYPE_CHECKING:
    Dedicated = asyncpg.Connection[asyncpg.Record]

COMMIT_TIMEOUT_S: Final = 30.0
T = TypeVar("T")
OPEN_TIMEOUT_S: Final = 120.0
NO_CHECK: Final = Change("SELECT 1", ())


class PgLog:
    """`Log` over a PostgreSQL that is migrated.

    Holds one connection for commits and up to `readers` for the rest, opened on first use and again after a
    break. After a commit whose outcome is unknown, every call first waits until the server has ended that
    transaction, so what `load` returns is final.
    """

    def __init__(self, dsn: str, incarnation: int, readers: int = 2) -> None:
        self.incarnation = incarnation
        self._dsn = dsn
        self._readers = readers
        self._application = assignments.application_of(incarnation)
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._settling = asyncio.Lock()
        self._writer: Dedicated | None = None
        self._writer_pid = 0
        self._unsettled_pids: list[int] = []
        self._doubtful: set[int] = set()
        """Shards of commits whose outcome is unknown, until `open` has read their heads anew."""
        self._sets = KnownSets()
        self._days = CompactedDays()
        self._title = assignments.Title(incarnation)

    async def open(self, shards: Sequence[int]) -> dict[int, int]:
        """As the port says."""
        pool = await self._ready()
        async with acquired(pool) as connection, connection.transaction():
            known = await assignments.free_heads(connection, shards)
            if len(known) == len(shards):
                return known
            # The scan's length depends on how long ago heads were saved; it has a limit of its own.
            await connection.execute(f"SET LOCAL statement_timeout = '{OPEN_TIMEOUT_S:.0f}s'")
            saved_ms = await connection.fetchval(sql.SAVED, list(shards))
            since = WHENEVER if saved_ms is None else Committed.of_ms(saved_ms - sql.HEAD_SLACK_S * 1000)
            rows = await connection.fetch(sql.heads(since), list(shards), timeout=OPEN_TIMEOUT_S + GRACE_S)
        self._doubtful.difference_update(shards)
        return {row["shard"]: row["head"] for row in rows}

    async def held(self) -> dict[int, Held]:
        """As the port says."""
        return await self._let_in(self._title.held)

    async def claim(self, shards: Sequence[int]) -> dict[int, Held]:
        """As the port says."""
        return await self._let_in(lambda connection: self._title.claim(connection, shards))

    async def _let_in(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask; raises `LogUnavailable` while `SpreadMembership` has not let this incarnation in yet."""
        try:
            async with acquired(await self._ready()) as connection:
                return await ask(connection)
        except Moved:
            raise
        except Fenced:
            async with acquired(await self._ready()) as connection:
                if await connection.fetchval(sql.LET_IN, self.incarnation):
                    raise
            raise LogUnavailable(f"incarnation {self.incarnation} is not let in here yet") from None

    async def hand_over(self, held: Mapping[int, Held], to: int) -> dict[int, int]:
        """As the port says."""
        async with acquired(await self._ready()) as connection:
            return await self._title.hand_over(connection, held, to)

    async def rehome(self, move: Rehoming) -> dict[int, Held]:
        """As the port says. A missing partition of the log is created, and it is tried once more."""
        try:
            async with acquired(await self._ready()) as connection:
                return await self._title.rehome(connection, move)
        except MissingPartition:
            async with acquired(await self._opened()) as connection:
                await ensure_partitions(connection, classes={move.event.retention_class})
                return await self._title.rehome(connection, move)

    async def commit(self, commit: Commit) -> None:
        """As the port says. A missing partition of the log is created, and the commit tried once more."""
        if not commit:
            return
        readings = encode_readings(commit.readings) if commit.readings else b""
        new_sets = self._sets.missing({row.metric_set for row in commit.readings})
        await self._settle()
        try:
            await self._transact(commit, readings, new_sets)
        except MissingPartition:
            async with acquired(await self._opened()) as connection:
                await ensure_partitions(
                    connection, classes={event.retention_class for event in commit.events}
                )
            await self._transact(commit, readings, new_sets)
        self._sets.add(new_sets)

    async def _transact(self, commit: Commit, readings: bytes, new_sets: Mapping[int, MetricSet]) -> None:
        writer = self._writer
        if writer is None or writer.is_closed():
            writer = self._writer = await connect(self._dsn, self._application)
            # Remembered, because a connection that broke no longer says.
            self._writer_pid = writer.get_server_pid()
        changes, told = _changes(commit), _write_commands.notices(commit.commands, commit.twins, commit.told)
        several = readings or commit.erasures or commit.alarm_notes
        if not several and self._title.covers(commit.epochs):
            whole = joined(changes, _tell(told, self._title.check))
            if await self._at_once(writer, commit, whole):
                return
        committing = False
        try:
            with translated():
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    await self._title.begin(writer, commit.epochs)
                    if new_sets:
                        await _write.metric_sets(writer, new_sets.values())
                    if readings:
                        await copy_in(writer, "readings", READING_COLUMNS, readings)
                    if commit.erasures:
                        await erasures.begin(writer, commit.erasures)
                    if changes or told:
                        await apply(writer, joined(changes, _tell(told)))
                    if commit.alarm_notes:
                        await _write.alarm_notes(writer, commit.alarm_notes)
                    committing = True
                    if await writer.execute("COMMIT") != "COMMIT":
                        raise LogUnavailable("the database rolled the commit back")
        except BaseException:
            if committing:
                self._doubt(commit)
                self._abandon(writer)
            else:
                await self._roll_back(writer)
            raise

    async def _at_once(self, writer: "Dedicated", commit: Commit, change: Change) -> bool:
        """Commit by one statement that is a transaction by itself; False: it must be asked shard by shard.

        What a command waits for is the ways to the server and back, so this is what its commits are.
        """
        try:
            with translated():
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    await apply(writer, change)
        except BaseException as error:
            said = error.__cause__
            if isinstance(said, asyncpg.PostgresError) and said.sqlstate == assignments.LOSSES_SQLSTATE:
                return False
            # The server's ERROR is certain; what ends the connection may have come after the commit.
            refused = isinstance(said, asyncpg.PostgresError) and said.severity_en == "ERROR"
            if not refused and not isinstance(error, InvalidMessage):
                self._doubt(commit)
                self._abandon(writer)
            raise
        return True

    def _doubt(self, commit: Commit) -> None:
        """Nobody knows whether it was committed."""
        self._doubtful.update(row.shard for row in commit.readings)
        self._doubtful.update(row.shard for row in commit.events)

    async def _roll_back(self, writer: "Dedicated") -> None:
        """End the writer's transaction, or give the connection up when that does not work at once."""
        try:
            with translated():
                async with asyncio.timeout(GRACE_S):
                    await writer.execute("ROLLBACK")
        except SensoriumError:
            self._abandon(writer)
        except BaseException:
            self._abandon(writer)
            raise

    def _abandon(self, writer: "Dedicated") -> None:
        """Drop the connection; whether its transaction still ends in a commit is to be settled."""
        self._writer = None
        self._unsettled_pids.append(self._writer_pid)
        writer.terminate()

    async def _settle(self) -> None:
        """Return once no transaction of an abandoned connection is under way any more.

        Raises:
            LogUnavailable: one still is, or nobody can tell.
        """
        if not self._unsettled_pids:
            return
        async with self._settling:
            pids = list(self._unsettled_pids)
            if not pids:
                return
            # Over a new connection: when one broke, those of the pool have probably broken with it.
            connection = await connect(self._dsn, "sensorium-settle")
            try:
                with translated():
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid = ANY($1::int[]) AND application_name = $2 AND usename = current_user",
                        pids,
                        self._application,
                    )
                    await connection.execute("SELECT sensorium_await_commits($1)", self.incarnation)
            finally:
                connection.terminate()
            del self._unsettled_pids[: len(pids)]

    async def load(self, device_ids: Sequence[str]) -> list[StoredDevice]:
        """As the port says."""
        pool = await self._ready()
        keys = [device_key(device_id) for device_id in device_ids]
        async with acquired(pool) as connection:
            await self._days.refresh(connection)
            days = copy(self._days)
            # One snapshot for all of them, so that a save in between cannot hide a tail.
            begin = connection.transaction(isolation="repeatable_read", readonly=True)
            async with begin:
                device_rows = await connection.fetch(sql.DEVICES, list(device_ids))
                snapshot_rows = await connection.fetch(sql.SNAPSHOTS, keys)
                alarm_rows = await connection.fetch(sql.ACTIVE_ALARMS, keys)
                timer_rows = await connection.fetch(sql.TIMERS_OF, keys)
                command_rows = await connection.fetch(sql.COMMANDS_OF, list(set(keys)))
                presence_rows = await connection.fetch(sql.PRESENCE_OF, keys)
                twin_rows = await connection.fetch(sql.TWINS_OF, keys)
                saved = {row["device"]: row["saved_at"] for row in snapshot_rows}
                tail_rows = await _tails(connection, set(keys), saved, days)
                sets = await self._sets.find(connection, {row["metric_set"] for row in tail_rows})
        registrations = {row["device_id"]: registration_of(row) for row in device_rows}
        snapshots = {device: Snapshot(device, *rest) for device, *rest, _ in snapshot_rows}
        alarms: dict[str, list[asyncpg.Record]] = {}
        for row in alarm_rows:
            alarms.setdefault(row["device_id"], []).append(row)
        timers: dict[int, dict[str, Timer]] = {}
        for device, name, due_ms, since_ms in timer_rows:
            timers.setdefault(device, {})[name] = Timer(due_ms, since_ms)
        commands: dict[int, list[Command]] = {}
        for device, body in command_rows:
            commands.setdefault(device, []).append(command_of(body))
        presences = {row["device"]: row for row in presence_rows}
        twins = {row["device"]: twin_of(row["body"]) for row in twin_rows}
        tails: dict[int, list[TailReading]] = {}
        for device, offset, time_ms, key, flags, set_id, numbers, texts in tail_rows:
            metrics = sets[set_id]
            tails.setdefault(device, []).append(
                TailReading(offset, time_ms, key, flags, metrics, decode_values(metrics, numbers, texts))
            )
        return [
            StoredDevice(
                device_id,
                registrations.get(device_id),
                snapshots.get(key),
                tails.get(key, []),
                [alarm_of(row) for row in alarms.get(device_id, ())],
                timers.get(key, {}),
                commands.get(key, ()),
                PresenceRow(device_id, *presences[key][1:]) if key in presences else None,
                twins.get(key),
            )
            for device_id, key in zip(device_ids, keys, strict=True)
        ]

    async def seen(self, identities: Sequence[Identity]) -> set[Identity]:
        """As the port says."""
        pool = await self._ready()
        timed = [i for i in identities if i.time_ms is not None]
        untimed = [i for i in identities if i.time_ms is None]
        found: set[Identity] = set()
        async with acquired(pool) as connection:
            if timed:
                columns = list(zip(*timed, strict=True))
                statement = sql.seen(Committed.of_ms(min(columns[1]) - AHEAD_MS))
                found.update(Identity(*row) for row in await connection.fetch(statement, *map(list, columns)))
            if untimed:
                rows = await connection.fetch(
                    sql.SEEN_WITHOUT_TIME, [i.device for i in untimed], [i.key for i in untimed]
                )
                pairs = {(row["device"], row["key"]) for row in rows}
                found.update(i for i in untimed if (i.device, i.key) in pairs)
        return found

    async def timers(self, shards: Sequence[int], before_ms: int, limit: int) -> list[TimerRow]:
        """As the port says."""
        async with acquired(await self._ready()) as connection:
            rows = await connection.fetch(sql.TIMERS_DUE, list(shards), before_ms, limit)
        return [TimerRow(*row) for row in rows]

    async def save(self, snapshots: Sequence[Snapshot], heads: Mapping[int, int]) -> None:
        """As the port says. `heads` must not be older than `HEAD_SLACK_S` less a commit."""
        pool = await self._ready()
        # The head of a doubtful shard may be too low, and must not be dated now.
        heads = {shard: head for shard, head in heads.items() if shard not in self._doubtful}
        async with acquired(pool) as connection, connection.transaction():
            await connection.execute("SELECT sensorium_check_fence($1)", self.incarnation)
            if snapshots:
                await _write.keep(connection, list({snapshot.device for snapshot in snapshots}))
                await _write.snapshots(connection, snapshots)
            if heads:
                await _write.heads(connection, heads)

    async def close(self) -> None:
        """As the port says. Commits that are under way are cut off."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.terminate()
        pool, self._pool = self._pool, None
        if pool is not None:
            await close_pool(pool)

    async def _ready(self) -> Pool:
        await self._settle()
        return await self._opened()

    async def _opened(self) -> Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await open_pool(self._dsn, self._readers, self._application)
            return self._pool


def _changes(commit: Commit) -> list[Change]:
    """What is written besides readings, erasures and notes on alarms."""
    writers: tuple[tuple[Callable[[Any], Change], Sequence[Any]], ...] = (
        (_write.events, commit.events),
        (_write.registrations, commit.registrations),
        (_write.alarms, commit.alarms),
        (_write_commands.commands, commit.commands),
        (_write_commands.presences, commit.presences),
        (_write_twins.twins, commit.twins),
        (audit_trail.entries, commit.audits),
        (_write_anomalies.anomalies, commit.anomalies),
        (_write.dead_letters, commit.dead_letters),
    )
    return [*(write(rows) for write, rows in writers if rows), *_write.timers(commit.timers)]


def _tell(told: Sequence[tuple[str, str]], check: Change = NO_CHECK) -> Change:
    """Tell who listens, after a check."""
    n = len(check.arguments)
    channels, payloads = [channel for channel, _ in told], [payload for _, payload in told]
    statement = (
        f"{check.statement}, (SELECT count(pg_notify(channel, payload))"
        f" FROM unnest(${n + 1}::text[], ${n + 2}::text[]) AS told (channel, payload))"
    )
    return Change(statement, [*check.arguments, channels, payloads])


async def _tails(
    connection: Connection, devices: set[int], saved_ms: Mapping[int, int], days: CompactedDays
) -> list[asyncpg.Record]:
    """What stands behind the devices' snapshots; `days` was known before the transaction began.

    Most devices have nothing of it in days that are compacted, so these are not looked into for them, however
    long ago they were saved, or if never.
    """
    since_ms = {device: saved_ms[device] - sql.TAIL_SLACK_MS for device in devices & saved_ms.keys()}
    spans = {
        device: (first, last)
        for device, first, last in await connection.fetch(sql.COMPACTED_DEVICES, list(devices))
        if device not in since_ms or last >= since_ms[device] // DAY_MS
    }
    rows: list[asyncpg.Record] = []
    for some in (devices - spans.keys(), devices & spans.keys()):
        if some:
            since = None if some - since_ms.keys() else min(since_ms[device] for device in some)
            committed = days.of_devices([spans[device] for device in some & spans.keys()], since)
            rows += await connection.fetch(sql.tails(committed), list(some))
    return rows
