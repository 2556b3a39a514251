"""History against a plain computation over the same readings."""

import random
from collections import defaultdict
from collections.abc import Callable

import pytest
from storage_rows import NOON_MS, registration

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Quality, Value, quality_of
from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage.database import Pool

pytestmark = pytest.mark.database

SMALL = metric_set(("temperature",), "n")
GROWN = metric_set(("temperature", "mode", "door", "load"), "ntbn")
MINUTE_MS = 60_000
Told = tuple[int, dict[str, Value]]


def told(metrics: tuple[str, ...], values: list[Value | None]) -> dict[str, Value]:
    return {n: v for n, v in zip(metrics, values, strict=False) if v is not None}


def made(device_id: str, seed: int) -> list[ReadingRow]:
    """Two hours of readings out of order, of a set that grows, some with absent values."""
    rng = random.Random(seed)
    rows = []
    for n in range(120):
        time_ms = NOON_MS + rng.randrange(120) * MINUTE_MS + rng.randrange(3) * 500
        metrics = SMALL if n < 40 else GROWN
        values: list[Value | None] = [rng.uniform(-5, 30)]
        if metrics is GROWN:
            values += [rng.choice(["eco", "boost", None]), rng.choice([True, False, None]), None]
            values[3] = rng.choice([None, float(n)])
            values[0] = rng.choice([values[0], None])
        rows.append(
            ReadingRow(
                shard_of(device_id),
                n + 1,
                device_key(device_id),
                time_ms,
                n,
                4 * (n % 3 == 0) + n % 2,
                metrics,
                values,
            )
        )
    return rows


@pytest.fixture(scope="module")
def written() -> dict[str, list[ReadingRow]]:
    return {device_id: made(device_id, seed) for seed, device_id in enumerate(["d1", "d2", "d3"])}


@pytest.fixture(scope="module")
async def history(module_pool: Pool, module_dsn: str, written: dict[str, list[ReadingRow]]) -> History:
    log = PgLog(module_dsn, await PgMembership(module_pool).join("a"))
    await log.commit(
        Commit(
            readings=[row for rows in written.values() for row in rows],
            registrations=[registration("d1"), registration("d2"), registration("d3", "valve")],
        )
    )
    await log.close()
    return History(module_pool)


def in_order(rows: list[ReadingRow]) -> list[ReadingRow]:
    return sorted(rows, key=lambda r: (r.time_ms, r.offset))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("metrics", [None, ["door"], ["load", "mode"], ["unknown"]])
async def test_readings_page_through_all(
    history: History, written: dict[str, list[ReadingRow]], order: str, metrics: list[str] | None
) -> None:
    start, end = NOON_MS + 10 * MINUTE_MS, NOON_MS + 100 * MINUTE_MS
    expected: list[Told] = []
    for row in in_order(written["d1"])[:: 1 if order == "asc" else -1]:
        values = told(row.metric_set.names, list(row.values))
        if metrics is not None:
            values = {n: v for n, v in values.items() if n in metrics}
        if start <= row.time_ms < end and (values or metrics is None):
            expected.append((row.time_ms, values))
    found: list[Told] = []
    after = None
    while True:
        page = await history.readings("d1", start, end, metrics, 7, order, after)
        assert len(page.items) <= 7
        found += [(point.time_ms, point.values) for point in page.items]
        if (after := page.next) is None:
            break
    assert found == expected
    assert expected or metrics == ["unknown"]


AGGREGATIONS: dict[str, Callable[[list[Value]], Value]] = {
    "mean": lambda v: sum(map(float, v)) / len(v),
    "min": lambda v: min(map(float, v)),
    "max": lambda v: max(map(float, v)),
    "sum": lambda v: sum(map(float, v)),
    "count": lambda v: float(len(v)),
    "first": lambda v: v[0],
    "last": lambda v: v[-1],
}


def by_bucket(
    rows: list[ReadingRow], interval_ms: int | None, start: int
) -> dict[int, dict[str, list[Value]]]:
    buckets: dict[int, dict[str, list[Value]]] = defaultdict(lambda: defaultdict(list))
    for row in in_order(rows):
        bucket = start if interval_ms is None else row.time_ms // interval_ms * interval_ms
        for name, value in told(row.metric_set.names, list(row.values)).items():
            buckets[bucket][name].append(value)
    return buckets


def applicable(aggregation: str, values: list[Value]) -> bool:
    return aggregation in ("count", "first", "last") or not isinstance(values[0], str)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("interval_s", [None, 420.0, 0.5])
async def test_aggregates_of_a_device(
    history: History, written: dict[str, list[ReadingRow]], aggregation: str, interval_s: float | None
) -> None:
    start = NOON_MS
    interval_ms = None if interval_s is None else round(interval_s * 1000)
    expected = {
        bucket: {
            name: AGGREGATIONS[aggregation](v) for name, v in metrics.items() if applicable(aggregation, v)
        }
        for bucket, metrics in by_bucket(written["d2"], interval_ms, start).items()
    }
    found = await history.aggregate("d2", start, None, None, aggregation, interval_s)
    assert [b.start_ms for b in found] == sorted(bucket for bucket, values in expected.items() if values)
    for bucket in found:
        assert bucket.values == {n: pytest.approx(v) for n, v in expected[bucket.start_ms].items()}
        assert all(type(v) is type(expected[bucket.start_ms][n]) for n, v in bucket.values.items())
    backwards = await history.aggregate("d2", start, None, ["door"], aggregation, interval_s, 2, "desc")
    forwards = await history.aggregate("d2", start, None, ["door"], aggregation, interval_s)
    assert backwards == forwards[::-1][:2]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("interval_s", [None, 900.0])
@pytest.mark.parametrize("metric", ["temperature", "door", "mode"])
async def test_aggregates_of_a_type(
    history: History,
    written: dict[str, list[ReadingRow]],
    aggregation: str,
    interval_s: float | None,
    metric: str,
) -> None:
    interval_ms = None if interval_s is None else round(interval_s * 1000)
    rows = [*written["d1"], *written["d2"]]
    found = await history.aggregate_type("pump", metric, NOON_MS, None, aggregation, interval_s)
    buckets = {
        bucket: metrics[metric]
        for bucket, metrics in by_bucket(rows, interval_ms, NOON_MS).items()
        if metric in metrics and applicable(aggregation, metrics[metric])
    }
    assert [b.start_ms for b in found] == sorted(buckets)
    counted: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        bucket_ms = NOON_MS if interval_ms is None else row.time_ms // interval_ms * interval_ms
        if told(row.metric_set.names, list(row.values)).get(metric) is not None:
            counted[bucket_ms].add(row.device)
    for bucket in found:
        assert bucket.devices == len(counted[bucket.start_ms])
        if aggregation not in ("first", "last"):
            assert bucket.value == pytest.approx(AGGREGATIONS[aggregation](buckets[bucket.start_ms]))
        else:
            assert bucket.value in buckets[bucket.start_ms]


async def test_without_a_start_the_whole_range_starts_at_the_first_reading(
    history: History, written: dict[str, list[ReadingRow]]
) -> None:
    [bucket] = await history.aggregate("d1", aggregation="count")
    assert bucket.start_ms == min(row.time_ms for row in written["d1"])
    assert await history.aggregate("nobody") == []
    assert (await history.readings("nobody")).items == []
    assert await history.aggregate_type("nothing", "temperature") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregation": "median"},
        {"interval_s": 0.0},
        {"interval_s": float("nan")},
        {"interval_s": 1e12},
        {"limit": 0},
        {"order": "sideways"},
    ],
    ids=str,
)
async def test_what_is_out_of_range_is_refused(history: History, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidMessage):
        await history.aggregate("d1", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", ["x", [1], [1, "x"], [2**80, 1]])
async def test_a_forged_cursor_is_refused(history: History, after: object) -> None:
    with pytest.raises(InvalidMessage):
        await history.readings("d1", after=after)


async def test_too_many_intervals_of_a_type_are_refused(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.history.MAX_BUCKETS", 3)
    with pytest.raises(InvalidMessage, match="intervals"):
        await history.aggregate_type("pump", "temperature", NOON_MS, None, "mean", 60.0)


async def test_the_kinds_that_occur(history: History) -> None:
    everything = [("door", "b"), ("load", "n"), ("mode", "t"), ("temperature", "n")]
    assert await history.kinds(["d1", "d2", "unknown"]) == everything
    assert await history.kinds(["d1"], NOON_MS + 3 * 3_600_000, None) == []
    assert await history.kinds([]) == []
    assert await history.newest_kinds(["d1", "d2", "unknown"]) == everything
    assert await history.newest_kinds([]) == []


@pytest.mark.parametrize("quality", list(Quality))
async def test_readings_and_aggregates_of_one_quality(
    quality: Quality, history: History, written: dict[str, list[ReadingRow]]
) -> None:
    rows = [row for row in in_order(written["d1"]) if quality_of(row.flags) is quality]
    page = await history.readings("d1", limit=1000, quality=quality)
    assert [point.time_ms for point in page.items] == [row.time_ms for row in rows]
    assert {quality_of(point.flags) for point in page.items} == {quality}
    (bucket,) = await history.aggregate("d1", metrics=["temperature"], aggregation="count", quality=quality)
    assert bucket.values["temperature"] == sum(row.values[0] is not None for row in rows)
