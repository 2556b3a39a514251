"""Reads for many devices: what they find, and that the number of devices is not that of statements."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from storage_rows import NOON_MS, alarm, reading, registration

from sensorium.actors.messages import Quality, ReadingFlag
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Command, CommandState, Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.batched import Batched
from sensorium.storage.database import Pool, close_pool, open_pool

pytestmark = pytest.mark.database
TABLES = ("devices", "alarms", "commands", "readings", "metric_sets")
"""Whatever else is said is between the driver and the server."""
IDS = [f"sensor-{n:03}" for n in range(60)]


def command(device_id: str, number: int) -> Command:
    return Command(
        *(f"{device_id}-{number}", device_id, "reboot", {}, CommandState.QUEUED, NOON_MS, NOON_MS, 1000),
        expires_ms=NOON_MS + 1000,
        number=number,
    )


@pytest.fixture
async def filled(dsn: str, pool: Pool) -> AsyncIterator[None]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    offsets: dict[int, int] = {}
    readings = []
    for device_id in IDS:
        for n in range(3):
            shard = shard_of(device_id)
            offsets[shard] = offsets.get(shard, 0) + 1
            row = reading(device_id, offsets[shard], NOON_MS + n, key=n, level=float(n), mode="eco")
            readings.append(row._replace(flags=int(ReadingFlag.SUSPECT)) if n == 1 else row)
    await log.commit(
        Commit(
            readings=readings,
            registrations=[registration(device_id) for device_id in IDS],
            alarms=[alarm(f"{d}-a", d) for d in IDS] + [alarm(f"{d}-c", d, "CLEARED") for d in IDS],
            commands=[command(device_id, n) for device_id in IDS for n in (1, 2)],
        )
    )
    yield
    await log.close()


@pytest.fixture
async def single(dsn: str) -> AsyncIterator[tuple[Pool, list[str]]]:
    """A pool of one connection, and the statements that it is given."""
    pool = await open_pool(dsn, 1)
    said: list[str] = []
    async with pool.acquire() as connection:
        connection.add_query_logger(lambda record: said.append(record.query))
    yield pool, said
    await close_pool(pool)


async def test_one_statement_for_sixty_devices(filled: None, single: tuple[Pool, list[str]]) -> None:
    pool, said = single
    batched = Batched([pool])

    async def counted(asked: Any) -> Any:
        said.clear()
        found = await asked
        return found, [text for text in said if any(f"FROM {table}" in text for table in TABLES)]

    found, statements = await counted(batched.registrations([*IDS, "nobody", "\0"]))
    assert (sorted(found), len(statements)) == (IDS, 1)
    found, statements = await counted(batched.alarms(IDS, "ACTIVE", 10))
    assert ({d: [a.alarm_id for a in found[d]] for d in IDS}, len(statements)) == (
        {d: [f"{d}-a"] for d in IDS},
        1,
    )
    found, statements = await counted(batched.alarms(IDS, None, 1))
    assert ([len(found[d]) for d in IDS], len(statements)) == ([1] * 60, 1)
    found, statements = await counted(batched.commands(IDS, "QUEUED", 1))
    assert ([found[d][0].number for d in IDS], len(statements)) == ([2] * 60, 1)
    found, statements = await counted(batched.readings(IDS, NOON_MS, NOON_MS + 2, 5))
    assert [[point.time_ms - NOON_MS for point in found[d]] for d in IDS] == [[1, 0]] * 60
    assert found[IDS[0]][0].values == {"level": 1.0, "mode": "eco"}
    # The second is for the names of the metrics, the first time.
    assert len(statements) == 2
    _, statements = await counted(batched.readings(IDS, None, None, 1))
    assert len(statements) == 1
    for quality, times in ((Quality.GOOD, [2, 0]), (Quality.SUSPECT, [1])):
        found, statements = await counted(batched.readings(IDS, None, None, 5, quality))
        assert [[point.time_ms - NOON_MS for point in found[d]] for d in IDS] == [times] * 60
        assert len(statements) == 1


async def test_each_database_is_asked_for_its_own(two_dsns: list[str], two_pools: list[Pool]) -> None:
    logs = [
        PgLog(dsn, await PgMembership(pool).join("a")) for dsn, pool in zip(two_dsns, two_pools, strict=True)
    ]
    for n, log in enumerate(logs):
        mine = [d for d in IDS if shard_of(d) * 2 // 1024 == n]
        await log.commit(
            Commit(registrations=[registration(d) for d in mine], alarms=[alarm(f"{d}-a", d) for d in mine])
        )
        await log.close()
    batched = Batched(two_pools)
    assert sorted(await batched.registrations(IDS)) == IDS
    assert sorted(await batched.alarms(IDS, None, 5)) == IDS
