"""Days of a time zone, and aggregates over chosen devices, against a plain computation."""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import fmean
from zoneinfo import ZoneInfo

import pytest
from rolled_up import rolled_up
from storage_rows import registration

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.spread_history import SpreadHistory

pytestmark = pytest.mark.database

# Clocks in Berlin went forward on the 31st, those of Lord Howe back, by half an hour, on the 7th of April.
FROM = datetime(2024, 3, 28, tzinfo=UTC)
DAYS = 14
DAY_S = 86_400.0
ONE = metric_set(("t",), "n")
Readings = dict[str, list[tuple[int, float]]]


def readings() -> Readings:
    rng = random.Random(11)
    start_ms = int(FROM.timestamp() * 1000)
    return {
        device: [(start_ms + rng.randrange(DAYS * 86_400_000), rng.uniform(-5, 40)) for _ in range(400)]
        for device in ("d1", "d2", "d3")
    }


@pytest.fixture(scope="module")
def written() -> Readings:
    return readings()


@pytest.fixture(scope="module")
async def history(module_pool: Pool, module_dsn: str, written: Readings) -> History:
    """With rollups that count all but the last readings."""
    log = PgLog(module_dsn, await PgMembership(module_pool).join("a"))
    rows = {
        device: [
            ReadingRow(shard_of(device), n + 1, device_key(device), time_ms, n, 0, ONE, [value])
            for n, (time_ms, value) in enumerate(pairs)
        ]
        for device, pairs in written.items()
    }
    await log.commit(
        Commit(
            registrations=[registration("d1"), registration("d2"), registration("d3", "valve")],
            readings=[row for each in rows.values() for row in each[:350]],
        )
    )
    return await finished(module_dsn, module_pool, log, [row for each in rows.values() for row in each[350:]])


async def finished(dsn: str, pool: Pool, log: PgLog, last: list[ReadingRow]) -> History:

    await rolled_up(dsn, 1050)
    await log.commit(Commit(readings=last))
    await log.close()
    return History(pool)


def by_day(pairs: list[tuple[int, float]], zone: str, days: int = 1) -> dict[int, list[float]]:
    """Values by the start of their day there, in milliseconds."""
    there, found = ZoneInfo(zone), defaultdict(list)
    for time_ms, value in pairs:
        local = datetime.fromtimestamp(time_ms / 1000, there).date()
        # Monday, 1 January 2001.
        first = local - timedelta(days=(local.toordinal() - 730_486) % days)
        midnight = datetime(first.year, first.month, first.day, tzinfo=there)
        found[int(midnight.timestamp() * 1000)].append(value)
    return dict(sorted(found.items()))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kolkata"])
@pytest.mark.parametrize("days", [1, 7])
async def test_days_begin_at_midnight_there(
    history: History, written: Readings, zone: str, days: int
) -> None:
    buckets = await history.aggregate("d1", None, None, ["t"], "sum", days * DAY_S, zone=zone)
    wanted = by_day(written["d1"], zone, days)
    assert {b.start_ms: b.values["t"] for b in buckets} == {
        start: pytest.approx(sum(values)) for start, values in wanted.items()
    }
    # From hours, or minutes where an offset is no whole hour; and from readings that are newer.
    assert buckets.source == "mixed"
    counted = await history.aggregate_type("pump", "t", None, None, "count", days * DAY_S, zone)
    both = by_day(written["d1"] + written["d2"], zone, days)
    assert {b.start_ms: b.value for b in counted} == {start: len(values) for start, values in both.items()}


async def test_a_day_has_as_many_hours_as_it_has_there(history: History) -> None:
    days = await history.aggregate("d1", None, None, ["t"], "count", DAY_S, zone="Europe/Berlin")
    lengths = {b.start_ms - a.start_ms for a, b in pairwise(days)}
    assert lengths == {24 * 3_600_000, 23 * 3_600_000}


@pytest.mark.parametrize(
    ("interval_s", "zone", "said"),
    [
        (3600.0, "Europe/Berlin", "whole days"),
        (None, "Europe/Berlin", "whole days"),
        (DAY_S, "Europe/Atlantis", "is no time zone"),
        (DAY_S, "../etc/passwd", "is no time zone"),
    ],
)
async def test_what_is_no_zones_day_is_refused(
    history: History, interval_s: float | None, zone: str, said: str
) -> None:
    with pytest.raises(InvalidMessage, match=said):
        await history.aggregate("d1", None, None, None, "mean", interval_s, zone=zone)


@pytest.mark.parametrize("aggregation", ["mean", "p95", "count", "last"])
async def test_over_chosen_devices(
    history: History, written: Readings, module_pool: Pool, aggregation: str
) -> None:
    of_type = await history.aggregate_type("pump", "t", None, None, aggregation, 3600.0)
    assert len(of_type) > 100
    for side in (history, SpreadHistory([module_pool])):
        chosen = await side.aggregate_type(
            "", "t", None, None, aggregation, 3600.0, device_ids=["d1", "d2", "nobody"]
        )
        assert [(b.start_ms, pytest.approx(b.value), b.devices) for b in chosen] == list(map(tuple, of_type))
        assert await side.aggregate_type("", "t", None, None, aggregation, 3600.0, device_ids=[]) == []
    (alone,) = await history.aggregate_type("", "t", None, None, "mean", None, device_ids=["d3"])
    assert alone.value == pytest.approx(fmean(value for _, value in written["d3"]))
