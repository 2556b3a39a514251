"""Answers from rollups are those from readings, at any range and interval, however far the rollups are."""

import random

import pytest
from rolled_up import rolled_up
from storage_rows import NOON_MS, reading, registration

from sensorium.actors import sketch
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Commit
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage._history_plan import ALWAYS_MS, NEVER_MS, Segment, segments
from sensorium.storage._history_sql import AGGREGATIONS
from sensorium.storage.database import Pool, acquired
from sensorium.storage.rollup import LEVELS

MINUTE, HOUR, DAY = (level for level in LEVELS)
H, D = HOUR.width_ms, DAY.width_ms
MIDNIGHT_MS = NOON_MS - 12 * H


def test_edges_are_read_from_finer_levels() -> None:
    start, end = MIDNIGHT_MS - H - 90_000, MIDNIGHT_MS + 2 * D + H + 60_000
    assert segments(start, end, None, {}) == [
        Segment(None, start, start + 30_000),
        Segment(MINUTE, start + 30_000, MIDNIGHT_MS - H),
        Segment(HOUR, MIDNIGHT_MS - H, MIDNIGHT_MS),
        Segment(DAY, MIDNIGHT_MS, MIDNIGHT_MS + 2 * D),
        Segment(HOUR, MIDNIGHT_MS + 2 * D, MIDNIGHT_MS + 2 * D + H),
        Segment(MINUTE, MIDNIGHT_MS + 2 * D + H, end),
    ]


def test_an_interval_that_is_no_multiple_is_read_from_what_is() -> None:
    assert segments(0, D, 90_000, {}) == [Segment(None, 0, D)]
    assert segments(0, D, 7 * 60_000, {}) == [Segment(MINUTE, 0, D)]
    assert segments(None, None, D, {}) == [
        Segment(DAY, NEVER_MS, ALWAYS_MS // D * D),
        *segments(ALWAYS_MS // D * D, ALWAYS_MS, D, {}),
    ]


def test_what_retention_removed_is_read_from_elsewhere() -> None:
    assert segments(0, 4 * D, 60_000, {"rollups_1m": 2 * D}) == [
        Segment(None, 0, 2 * D),
        Segment(MINUTE, 2 * D, 4 * D),
    ]
    assert segments(0, 4 * D, D, {"rollups_1m": 2 * D}) == [Segment(DAY, 0, 4 * D)]


@pytest.mark.parametrize("seed", range(50))
def test_segments_cover_the_range_once(seed: int) -> None:
    rng = random.Random(seed)
    start, end = sorted(rng.randrange(20 * D) for _ in range(2))
    kept = {level.table: rng.randrange(10) * D for level in LEVELS if rng.random() < 0.5}
    found = segments(start, end, rng.choice([None, 1000, 60_000, H, D, 90_000]), kept)
    assert [found[0].start_ms, *(s.end_ms for s in found)] == [*(s.start_ms for s in found), end]
    assert found[0].start_ms == start
    for level, from_ms, to_ms in found:
        if level is not None:
            assert from_ms % level.width_ms == to_ms % level.width_ms == 0
            assert from_ms >= kept.get(level.table, 0)


@pytest.fixture(scope="module")
async def history(module_dsn: str, module_pool: Pool) -> History:
    """Over a log that the rollups know in part."""
    rng = random.Random(7)
    log = PgLog(module_dsn, await PgMembership(module_pool).join("a"))
    heads = {"d1": 0, "d2": 0}
    shards = {shard_of(device) for device in heads}
    assert len(shards) == 2

    async def write(count: int) -> None:
        rows = []
        for _ in range(count):
            device = rng.choice(["d1", "d2"])
            heads[device] += 1
            # Several at one time, on the edges of buckets too.
            time_ms = MIDNIGHT_MS + rng.randrange(3 * D) // 1_800_000 * 1_800_000 + rng.randrange(2) * 7_000
            values = {"t": rng.uniform(-5, 30), "door": rng.random() < 0.5, "mode": rng.choice("ab")}
            rows.append(reading(device, heads[device], time_ms, rng.randrange(2**60), **values))
        await log.commit(Commit(readings=rows, registrations=[registration("d1"), registration("d2")]))

    await write(400)
    await rolled_up(module_dsn, 400)
    await write(60)
    await log.close()
    return History(module_pool)


RANGES = [
    (None, None),
    (MIDNIGHT_MS, MIDNIGHT_MS + 3 * D),
    (MIDNIGHT_MS - H // 2, MIDNIGHT_MS + D + 1_805_000),
    (MIDNIGHT_MS + 5 * H + 1, MIDNIGHT_MS + 2 * D),
]


@pytest.mark.database
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("interval_s", [None, 3600.0, 86_400.0, 420.0, 0.5])
async def test_the_same_as_from_readings(
    history: History,
    module_pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    aggregation: str,
    interval_s: float | None,
) -> None:
    rolled = [
        (
            await history.aggregate("d1", start, end, None, aggregation, interval_s),
            await history.aggregate_type("pump", "t", start, end, aggregation, interval_s),
        )
        for start, end in RANGES
    ]
    monkeypatch.setattr("sensorium.storage._history_sql.PROJECTED", "SELECT 1 WHERE false")
    for (start, end), (of_device, of_type) in zip(RANGES, rolled, strict=True):
        raw = await history.aggregate("d1", start, end, None, aggregation, interval_s)
        assert raw.source == "raw"
        assert [b.start_ms for b in of_device] == [b.start_ms for b in raw]
        for found, wanted in zip(of_device, raw, strict=True):
            assert found.values == {n: about(v) for n, v in wanted.values.items()}
        raw_type = await history.aggregate_type("pump", "t", start, end, aggregation, interval_s)
        assert [(b.start_ms, about(b.value), b.devices) for b in raw_type] == list(map(tuple, of_type))
    if interval_s in (3600.0, 86_400.0):
        assert rolled[1][0].source in ("mixed", {3600.0: "1h", 86_400.0: "1d"}[interval_s])


def about(value: object) -> object:
    return pytest.approx(value) if type(value) is float else value


@pytest.mark.database
async def test_a_percentile_is_near_the_value_of_its_rank(history: History, module_pool: Pool) -> None:
    [bucket] = await history.aggregate("d1", MIDNIGHT_MS, MIDNIGHT_MS + 3 * D, ["t"], "p95")
    async with acquired(module_pool) as connection:
        exact = await connection.fetchval(
            "SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY numbers[1]) FROM readings r"
            " WHERE shard = $1",
            shard_of("d1"),
        )
    assert bucket.values["t"] == pytest.approx(exact, rel=3 * sketch.RELATIVE_ERROR)
    assert (await history.aggregate("d1", aggregation="p99")).approximate
