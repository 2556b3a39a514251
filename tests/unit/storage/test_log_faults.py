"""What the log does when the database, the connection or a host fails at a bad moment."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import asyncpg
import pytest
from cutting import cut_waiting
from storage_rows import NOON_MS, alarm, event, reading, registration, snapshot

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit
from sensorium.storage import (
    EmbeddedPostgres,
    PgHostPorts,
    PgLog,
    PgMembership,
    PgMembershipFactory,
    drop_partitions,
    ensure_partitions,
    migrate,
)
from sensorium.storage.assignments import application_of
from sensorium.storage.database import Pool, acquired, connect
from sensorium.storage.migrate import SchemaMismatch, migrations

pytestmark = pytest.mark.database
T = TypeVar("T")


@asynccontextmanager
async def opened(dsn: str, pool: Pool, host: str = "a") -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join(host))
    try:
        yield log
    finally:
        await log.close()


async def tail(log: PgLog, device_id: str = "d") -> list[int]:
    [found] = await log.load([device_id])
    return [row.offset for row in found.tail]


async def at_second_try(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except LogUnavailable:
        return await call()


async def test_it_reconnects_after_its_connections_were_cut(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log:
        await log.commit(Commit(readings=[reading("d", 1)]))
        assert await tail(log) == [1]
        async with acquired(pool) as connection:
            cut = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
                application_of(log.incarnation),
            )
        assert len(cut) == 2
        # Whether the next call meets the broken connection or a new one is up to when its end is noticed.
        await at_second_try(lambda: log.commit(Commit(readings=[reading("d", 2)])))
        assert await at_second_try(lambda: tail(log)) == [1, 2]


async def test_a_connection_cut_within_a_commit_leaves_nothing(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log, acquired(pool) as blocker, acquired(pool) as observer:
        # The commit has copied its readings and waits for this lock; there it is cut.
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("LOCK TABLE alarms IN EXCLUSIVE MODE")
        rows = Commit(readings=[reading("d", 1)], alarms=[alarm("x", "d")])
        committing = asyncio.create_task(log.commit(rows))
        await cut_waiting(observer, log)
        with pytest.raises(LogUnavailable):
            await committing
        await transaction.rollback()
        assert await tail(log) == []
        await log.commit(rows)
        assert await tail(log) == [1]


async def test_loading_waits_for_a_commit_that_was_given_up(dsn: str, pool: Pool) -> None:
    """The server may still be about to commit when we have lost patience: `load` must know how it ended."""
    async with opened(dsn, pool) as log:
        await log.commit(Commit(readings=[reading("d", 1)]))
        # The transaction of a connection that we have given up, as the server sees it.
        zombie = await connect(dsn, application_of(log.incarnation))
        await zombie.execute(f"BEGIN; SELECT sensorium_check_fence({log.incarnation})")
        writer = log._writer
        assert writer is not None
        log._abandon(writer)
        loading = asyncio.create_task(log.load(["d"]))
        done, _ = await asyncio.wait([loading], timeout=0.3)
        assert not done
        await zombie.execute("COMMIT")
        [found] = await asyncio.wait_for(loading, 5)
        assert [t.offset for t in found.tail] == [1]
        await zombie.close()
        await log.commit(Commit(readings=[reading("d", 2)]))
        assert await tail(log) == [1, 2]


async def test_a_host_that_hangs_in_a_transaction_is_fenced_in_time(dsn: str, pool: Pool) -> None:
    members = PgMembership(pool)
    incarnation = await members.join("a")
    hanging = await connect(dsn, application_of(incarnation))
    await hanging.execute(f"BEGIN; SELECT sensorium_check_fence({incarnation})")
    await hanging.execute("INSERT INTO events VALUES (1, 1, 1, now(), 'k', '{}')")
    started = time.monotonic()
    await members.fence(incarnation)
    assert time.monotonic() - started < 4
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        await hanging.execute("COMMIT")
    async with acquired(pool) as connection:
        assert await connection.fetchval("SELECT count(*) FROM events") == 0
    hanging.terminate()


async def test_joining_again_fences_and_lists_who_is_alive(dsn: str, pool: Pool) -> None:
    members = PgMembership(pool)
    first, second, other = await members.join("a"), await members.join("a"), await members.join("b")
    assert [(row.incarnation, row.host) for row in await members.alive()] == [(second, "a"), (other, "b")]
    assert first < second
    joined = await asyncio.gather(*(members.join("a") for _ in range(4)))
    assert [row.incarnation for row in await members.alive()] == sorted([other, max(joined)])


async def test_a_missing_partition_is_made_and_the_commit_goes_through(dsn: str, pool: Pool) -> None:
    async with acquired(pool) as connection:
        assert len(await drop_partitions(connection, datetime(2999, 1, 1, tzinfo=UTC).date())) == 9
    async with opened(dsn, pool) as log:
        await log.commit(Commit(readings=[reading("d", 1)], events=[event("d", 2)]))
        assert await tail(log) == [1]
    async with acquired(pool) as connection:
        assert await ensure_partitions(connection) == []
        indexes = await connection.fetchval(
            "SELECT count(*) FROM pg_index JOIN pg_inherits ON inhrelid = indrelid"
            " WHERE inhparent = 'readings'::regclass"
        )
        assert indexes == 3 * 2
    async with acquired(pool) as connection:
        kept = await drop_partitions(connection, datetime.now(UTC).date())
        assert kept == []


async def test_a_database_that_is_away_is_unavailable(dsn: str) -> None:
    log = PgLog("postgresql://postgres@127.0.0.1:1/none", 1)
    with pytest.raises(LogUnavailable):
        await log.commit(Commit(events=[event("d", 1)]))
    with pytest.raises(LogUnavailable):
        await log.load(["d"])
    await log.close()
    ports = await PgHostPorts(dsn)(1)
    with pytest.raises(Fenced):
        await ports.logs[0].commit(Commit(events=[event("d", 1)]))
    await ports.close()
    members = await PgMembershipFactory(dsn)()
    assert await members.join("a") == 1
    await members.close()


async def test_two_ids_with_one_key_cannot_both_register(
    dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage._write.device_key", lambda _: 5)
    async with opened(dsn, pool) as log:
        await log.commit(Commit(registrations=[registration("first")]))
        with pytest.raises(InvalidMessage):
            await log.commit(Commit(registrations=[registration("second")]))
        await log.commit(Commit(registrations=[registration("first", site="x")]))


async def test_values_that_the_database_refuses_are_the_messages_fault(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log:
        for bad in (
            Commit(events=[event("d", 1, body=b"no json")]),
            Commit(registrations=[registration("d", note="a\0b")]),
            Commit(alarms=[alarm("x", "d", rule_version=2**40)]),
            Commit(readings=[reading("d", 1, time_ms=300_000 * 31_556_952_000)]),
        ):
            with pytest.raises(InvalidMessage):
                await log.commit(bad)
        await log.commit(Commit(readings=[reading("d", 1)]))
        assert await tail(log) == [1]


async def test_heads_in_doubt_are_not_saved(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log:
        log._doubtful.add(shard_of("d"))
        await log.save([snapshot("d", 4)], {shard_of("d"): 4, 9: 1})
        async with acquired(pool) as connection:
            assert [tuple(r) for r in await connection.fetch("SELECT shard, head FROM shards")] == [(9, 1)]
        await log.open([shard_of("d")])
        await log.save([], {shard_of("d"): 4})
        assert await log.open([shard_of("d")]) == {shard_of("d"): 4}


async def test_heads_are_found_behind_those_that_were_saved_long_ago(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log:
        shard = shard_of("d")
        await log.commit(Commit(readings=[reading("d", n) for n in range(1, 4)]))
        await log.save([], {shard: 2})
        async with acquired(pool) as connection:
            await connection.execute("UPDATE shards SET saved_at = saved_at - interval '3 days'")
        assert await log.open([shard]) == {shard: 3}
        async with acquired(pool) as connection:
            await connection.execute("UPDATE shards SET head = 7")
        assert await log.open([shard]) == {shard: 7}


async def test_several_migrate_one_database_at_once(server: EmbeddedPostgres) -> None:
    admin = await asyncpg.connect(server.dsn)
    await admin.execute("CREATE DATABASE fresh")
    fresh = server.dsn.replace("/postgres?", "/fresh?")
    try:
        applied = await asyncio.gather(*(migrate(fresh) for _ in range(3)))
        assert sorted(applied) == [0, 0, len(migrations())]
        connection = await connect(fresh)
        await connection.execute("UPDATE schema_migrations SET checksum = 'x' WHERE number = 1")
        with pytest.raises(SchemaMismatch, match="0001_log"):
            await migrate(fresh)
        await connection.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', 'x')")
        with pytest.raises(SchemaMismatch, match="9999_later"):
            await migrate(fresh)
        await connection.close()
    finally:
        await admin.execute("DROP DATABASE fresh WITH (FORCE)")
        await admin.close()


async def test_old_recordings_land_in_todays_partition(dsn: str, pool: Pool) -> None:
    async with opened(dsn, pool) as log:
        await log.commit(Commit(readings=[reading("d", 1, NOON_MS - 10 * 365 * 86_400_000)]))
        async with acquired(pool) as connection:
            name = await connection.fetchval(
                "SELECT tableoid::regclass::text FROM readings WHERE device = $1", device_key("d")
            )
        assert name == f"readings_{datetime.now(UTC):%Y%m%d}"
