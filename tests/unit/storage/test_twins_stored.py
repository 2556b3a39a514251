"""Twins in PostgreSQL: as they were at any time, and how they changed."""

import random
from typing import Any

import pytest
from storage_rows import NOON_MS
from tests.unit.actors.driving import DEVICE_ID, TYPE, Driver

from sensorium.actors.errors import NoHistory
from sensorium.actors.messages import ChangeTwin, Register
from sensorium.actors.twin_documents import WHOLE_EVERY, Document
from sensorium.storage.database import Pool, acquired
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.twins import Twins

pytestmark = pytest.mark.database

CHANGES = 3 * WHOLE_EVERY


@pytest.fixture
async def log(dsn: str, pool: Pool) -> Any:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


def random_patch(rng: random.Random, n: int) -> dict[str, Any]:
    value = rng.choice([n, 1e300, None, {"x": n}, {"x": None, "y": [n, None]}, "ü", {}])
    return {rng.choice("abc"): value, "n": n}


async def test_it_is_known_how_it_was_at_any_time_that_is_kept(log: PgLog, pool: Pool) -> None:
    rng = random.Random(4711)
    driver = Driver(register=False)
    driver.now_ms = NOON_MS
    driver.send(Register(DEVICE_ID, TYPE))
    way: list[tuple[int, Document, Document]] = [(NOON_MS, Document(), Document())]
    for n in range(CHANGES):
        driver.now_ms += rng.randrange(3) * 1000
        part = rng.choice(["desired", "desired", "reported"])
        driver.send(ChangeTwin(DEVICE_ID, by=str(n), **{part: random_patch(rng, n)}))
        twin = driver.device.twin
        way.append((driver.now_ms, twin.desired, twin.reported))
    await log.commit(driver.log)
    twins = Twins([pool])
    known = {time_ms: (desired, reported) for time_ms, desired, reported in way}
    for time_ms in rng.sample(sorted(known), 25):
        desired, reported = await twins.at(DEVICE_ID, time_ms)
        assert (desired.version, reported.version) == tuple(d.version for d in known[time_ms])
        assert (desired, reported) == known[time_ms]
    assert await twins.at(DEVICE_ID, NOON_MS - 1) == (Document(), Document())
    assert await twins.at("nobody", NOON_MS) == (Document(), Document())
    found, after = [], None
    while True:
        page = await twins.changes(DEVICE_ID, after=after, limit=50)
        found += [(change.document, change.version) for change in page.items]
        if (after := page.next) is None:
            break
    assert len(found) == len(set(found)) == CHANGES
    only = await twins.changes(DEVICE_ID, "reported", limit=1000)
    assert [c.version for c in only.items] == list(range(way[-1][2].version, 0, -1))
    # As retention does it: the older half is dropped.
    middle_ms = way[CHANGES // 2][0]
    async with acquired(pool) as connection:
        await connection.execute("DELETE FROM events WHERE time <= $1", middle_ms)
    assert await twins.at(DEVICE_ID, middle_ms) == known[middle_ms]
    with pytest.raises(NoHistory):
        await twins.at(DEVICE_ID, way[10][0])
