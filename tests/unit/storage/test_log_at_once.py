"""Commits without readings: one statement to the database, with all that a transaction holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from cutting import cut_waiting
from storage_rows import NOON_MS, event, registration

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable, Moved
from sensorium.actors.origin import Origin
from sensorium.actors.placement import shard_of
from sensorium.actors.records import AuditRow, Command, CommandState, Commit, PresenceRow, TimerRow
from sensorium.storage import PgLog, PgMembership, drop_partitions
from sensorium.storage.database import Pool, acquired

pytestmark = pytest.mark.database

HOME = shard_of("d")
EPOCHS = {HOME: 1}


@asynccontextmanager
async def owning(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    """The log of a host that owns the device's shard."""
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    try:
        await log.claim([1, HOME])
        yield log
    finally:
        await log.close()


def command(state: CommandState = CommandState.QUEUED, ready: bool = True) -> Command:
    return Command(
        *("c", "d", "echo", {"n": 1}, state, NOON_MS, NOON_MS, 1_000, NOON_MS + 1_000),
        number=1,
        ready=ready,
    )


def queued() -> Commit:
    """What a command commits."""
    return Commit(
        events=[event("d", 1, "command_queued", b'{"n": 1}')],
        registrations=[registration("d")],
        commands=[command()],
        timers=[
            TimerRow(HOME, "d", "commands", NOON_MS, NOON_MS),
            TimerRow(HOME, "d", "gone", None, NOON_MS),
        ],
        presences=[PresenceRow("d", True, NOON_MS)],
        audits=[AuditRow("d", NOON_MS, Origin("ada"), "command.send", "c", None, None)],
        epochs=EPOCHS,
    )


async def test_it_is_one_statement(dsn: str, pool: Pool) -> None:
    async with owning(dsn, pool) as log:
        await log.commit(queued())
        assert log._writer is not None
        asked: list[str] = []
        with log._writer.query_logger(lambda record: asked.append(record.query)):
            await log.commit(Commit(commands=[command(CommandState.SENT, ready=False)], epochs=EPOCHS))
        [found] = await log.load(["d"])
        assert [c.state for c in found.commands] == [CommandState.SENT]
        assert list(found.timers) == ["commands"]
        assert found.presence is not None
        assert found.registration == registration("d")
        rows = await pool.fetch("SELECT shard, log_offset, kind, body FROM events")
        assert [tuple(row) for row in rows] == [(HOME, 1, "command_queued", {"n": 1})]
        assert await pool.fetchval("SELECT count(*) FROM audit_outbox") == 1
        assert len(asked) == 1


async def test_who_listens_is_told_with_the_commit(dsn: str, pool: Pool) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    async with owning(dsn, pool) as log, acquired(pool) as listener:

        def hear(*said: Any) -> None:
            told.put_nowait(said[-1])

        await listener.add_listener("sensorium_commands_ready", hear)
        await log.commit(queued())
        async with asyncio.timeout(5):
            assert await told.get() == '[["d","c",1,"mqtt"]]'
        await listener.remove_listener("sensorium_commands_ready", hear)


async def test_one_that_is_cut_leaves_nothing_and_is_repeated(dsn: str, pool: Pool) -> None:
    async with owning(dsn, pool) as log, acquired(pool) as blocker, acquired(pool) as observer:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("LOCK TABLE commands IN EXCLUSIVE MODE")
        committing = asyncio.create_task(log.commit(queued()))
        await cut_waiting(observer, log)
        with pytest.raises(LogUnavailable):
            await committing
        assert log._doubtful == {HOME}
        await transaction.rollback()
        assert await pool.fetchval("SELECT count(*) FROM events") == 0
        await log.commit(queued())
        assert await pool.fetchval("SELECT count(*) FROM events") == 1


async def test_a_value_that_is_refused_costs_no_connection(dsn: str, pool: Pool) -> None:
    async with owning(dsn, pool) as log:
        await log.commit(queued())
        writer = log._writer
        for bad in (event("d", 2, "a\0"), event("d", 2, "\ud800"), event("d", 2)._replace(time_ms=2**62)):
            with pytest.raises(InvalidMessage):
                await log.commit(Commit(events=[bad], epochs=EPOCHS))
        await log.commit(Commit(events=[event("d", 2)], epochs=EPOCHS))
        assert log._writer is writer
        assert not log._doubtful


async def test_a_missing_partition_is_made(dsn: str, pool: Pool) -> None:
    async with owning(dsn, pool) as log, acquired(pool) as connection:
        await drop_partitions(connection, datetime(2999, 1, 1, tzinfo=UTC).date())
        await log.commit(queued())
        assert await connection.fetchval("SELECT count(*) FROM events") == 1


async def test_only_the_owner_commits(dsn: str, pool: Pool) -> None:
    members = PgMembership(pool)
    async with owning(dsn, pool) as log:
        await members.take({1: 1})
        # It knows of fewer losses than it has had, but what it commits is its own.
        await log.commit(Commit(events=[event("d", 1)], epochs=EPOCHS))
        await members.take(EPOCHS)
        with pytest.raises(Moved):
            await log.commit(Commit(events=[event("d", 2)], epochs=EPOCHS))
        await members.fence(log.incarnation)
        with pytest.raises(Fenced):
            await log.commit(Commit(events=[event("d", 2)], epochs=EPOCHS))
        assert await pool.fetchval("SELECT count(*) FROM events") == 1
