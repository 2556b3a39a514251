"""Pausing, resuming and rewinding a projection that runs."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from storage_rows import NOON_MS, reading

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool, acquired
from sensorium.storage.projection import ProjectionSettings
from sensorium.storage.projection_control import Projections
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup_sink import RollupSink

pytestmark = pytest.mark.database


@pytest.fixture
async def runner(dsn: str) -> AsyncIterator[ProjectionRunner]:
    runner = ProjectionRunner(dsn, ProjectionSettings("rollups", poll_s=0.02), RollupSink())
    await runner.start()
    yield runner
    await runner.stop()


async def counted(pool: Pool) -> int:
    async with acquired(pool) as connection:
        total: int | None = await connection.fetchval("SELECT sum(n) FROM rollups_1h")
    return total or 0


async def test_it_stands_still_goes_on_and_begins_again(
    dsn: str, pool: Pool, runner: ProjectionRunner
) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    projections = Projections(pool)

    async def until_counted(wanted: int) -> None:
        async with asyncio.timeout(20):
            while await counted(pool) != wanted:
                await asyncio.sleep(0.02)

    await log.commit(Commit(readings=[reading("d", n, NOON_MS + n, n) for n in range(1, 11)]))
    await until_counted(10)
    assert await projections.pause("rollups")
    async with asyncio.timeout(20):
        while runner.statistics()["state"] != "paused":
            await asyncio.sleep(0.02)
    await log.commit(Commit(readings=[reading("d", n, NOON_MS + n, n) for n in range(11, 16)]))
    [shown] = await projections.list()
    assert (shown.name, shown.state, shown.rewinding) == ("rollups", "paused", False)
    assert await counted(pool) == 10
    assert await projections.resume("rollups")
    await until_counted(15)

    # What should not be there shows whether it counts anew: rewinding leaves nothing of it.
    async with acquired(pool) as connection:
        await connection.execute("UPDATE rollups_1h SET n = 1000")
    assert await projections.rewind("rollups")
    await until_counted(15)
    await log.close()


async def test_what_cannot_be_is_said(pool: Pool) -> None:
    projections = Projections(pool)
    assert not await projections.pause("nothing")
    assert not await projections.rewind("nothing")
    with pytest.raises(InvalidMessage, match="beginning"):
        await projections.rewind("rollups", NOON_MS)
    async with acquired(pool) as connection:
        await connection.execute("INSERT INTO retention VALUES ('log', now())")
    with pytest.raises(InvalidMessage, match="retention"):
        await projections.rewind("rollups")
