"""Figures over a fleet from PostgreSQL: arrivals, activation, alarms and energy."""

from collections.abc import AsyncIterator

import pytest
from rolled_up import rolled_up
from storage_rows import NOON_MS, alarm, reading, registration

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import ReadingFlag
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.fleet_figures import FleetFigures

pytestmark = pytest.mark.database
DAY_MS = 86_400_000
MIDNIGHT_MS = NOON_MS - DAY_MS // 2


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


async def test_arrivals_count_late_and_suspect_readings_and_their_delays(log: PgLog, pool: Pool) -> None:
    flags = (0, ReadingFlag.LATE, ReadingFlag.SUSPECT, ReadingFlag.LATE | ReadingFlag.SUSPECT)
    rows = [
        reading("a1", n + 1, NOON_MS + n, n, t=1.0)._replace(flags=int(flag)) for n, flag in enumerate(flags)
    ]
    await log.commit(Commit(readings=rows, registrations=[registration("a1")]))
    figures = FleetFigures([pool])
    found = await figures.arrivals("a1", NOON_MS, NOON_MS + 4)
    assert (found.readings, found.late, found.suspect) == (4, 2, 2)
    assert found.median_delay_s is not None
    nothing = await figures.arrivals("a1", NOON_MS + 4, NOON_MS + 5)
    assert (nothing.readings, nothing.median_delay_s) == (0, None)


async def test_activation_and_energy_come_from_the_rollups_of_days(log: PgLog, pool: Pool, dsn: str) -> None:
    figures = FleetFigures([pool])
    with pytest.raises(InvalidMessage, match="rollups"):
        await figures.activation(None, MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS)
    hour_ms = DAY_MS // 24
    rows = []
    # A meter that is reset on the second day, and a power of 2 over four hours.
    for n, (day, kwh) in enumerate(((0, 10.0), (0, 14.0), (1, 3.0), (1, 5.0))):
        rows.append(reading("a1", n + 1, MIDNIGHT_MS + day * DAY_MS + n * hour_ms, n, kwh=kwh))
    for n in range(5):
        rows.append(reading("a2", n + 1, MIDNIGHT_MS + n * hour_ms, n, kw=2.0))
    await log.commit(
        Commit(readings=rows, registrations=[registration("a1"), registration("a2"), registration("a3")])
    )
    await rolled_up(dsn, len(rows))
    whole = (MIDNIGHT_MS, MIDNIGHT_MS + 2 * DAY_MS)
    assert await figures.energy("kwh", True, None, *whole) == (4.0 + 5.0, 2, 1)
    assert await figures.energy("kw", False, "pump", *whole) == (8.0, 1, 1)
    assert await figures.energy("kw", False, "valve", *whole) == (0.0, 0, 0)
    registered_ms = registration("a1").registered_ms
    found = await figures.activation("pump", registered_ms, registered_ms + 1)
    assert (found.registered, found.activated, found.fresh, found.fresh_activated) == (3, 2, 3, 2)
    late = await figures.activation(None, *whole)
    assert (late.registered, late.activated, late.recent) == (3, 2, 2)
    assert (await figures.activation("valve", *whole)).registered == 0


async def test_alarms_tell_how_long_until_people_and_conditions_answered(log: PgLog, pool: Pool) -> None:
    acked = {"acknowledged": True, "acknowledged_ms": NOON_MS + 90_000, "acknowledged_by": "ann"}
    rows = [
        alarm("x", "a1", start_ms=NOON_MS, **acked),
        alarm("y", "a1", "CLEARED", start_ms=NOON_MS + 1, end_ms=NOON_MS + 60_001),
        alarm("z", "a1", start_ms=NOON_MS + DAY_MS),
    ]
    await log.commit(Commit(alarms=rows))
    figures = FleetFigures([pool])
    newest, oldest = await figures.alarms(None, NOON_MS, NOON_MS + DAY_MS)
    assert (oldest.acknowledged, oldest.to_ack_s, oldest.to_end_s) == (True, 90.0, None)
    assert (newest.acknowledged, newest.to_ack_s, newest.to_end_s) == (False, None, 60.0)
    assert await figures.alarms("no such type", NOON_MS, NOON_MS + DAY_MS) == []
