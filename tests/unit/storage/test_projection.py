"""Projections: nothing is left out or taken twice, whatever dies when; what cannot be taken stops nothing."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from storage_rows import NOON_MS, event, reading, registration, set_of

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage, LogUnavailable
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Connection, Pool, acquired
from sensorium.storage.dead_letters import DeadLetters
from sensorium.storage.projection import LogEntry, ProjectionSettings
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup import LEVELS
from sensorium.storage.rollup_sink import RollupSink

pytestmark = pytest.mark.database
DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.storage.projection_runner.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("sensorium.storage.projection_runner.LONGEST_RETRY_S", 0.2)
    monkeypatch.setattr("sensorium.storage.projection_runner.LOCK_RETRY_S", 0.05)


class ListSink:
    """Keeps what it is given; outside of the database, so at least once. Fails on demand."""

    def __init__(self) -> None:
        self.durable: list[LogEntry] = []
        self._taken: list[LogEntry] = []
        self.failures = 0
        self.refuses: Callable[[LogEntry], bool] = lambda entry: False

    async def open(self, connection: Connection) -> None:
        self._taken = []

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        if any(map(self.refuses, entries)):
            raise InvalidMessage("not this one")
        self._taken += entries
        return False

    async def flush(self, transaction: Connection) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise LogUnavailable("the sink is away")
        self.durable += self._taken
        self._taken = []

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        self.durable = []

    async def close(self) -> None:
        self._taken = []


def told(sink: ListSink) -> list[tuple[int, int]]:
    return [(entry.shard, entry.offset) for entry in sink.durable]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


def runner(dsn: str, sink: Any, name: str = "test", page: int = 50) -> ProjectionRunner:
    return ProjectionRunner(dsn, ProjectionSettings(name, page, poll_s=0.02), sink)


async def kill(running: ProjectionRunner) -> None:
    """As if its process had died: nothing is flushed or given back."""
    assert running._task is not None
    running._task.cancel()
    await asyncio.gather(running._task, return_exceptions=True)


async def test_readings_and_events_come_in_order_of_their_shard(dsn: str, log: PgLog) -> None:
    await log.commit(
        Commit(readings=[reading("d", n, key=n) for n in range(1, 120)], events=[event("d", 120)])
    )
    sink = ListSink()
    running = runner(dsn, sink)
    await running.start()
    await until(lambda: len(sink.durable) == 120)
    await log.commit(Commit(readings=[reading("e", 1), reading("d", 121)]))
    await until(lambda: len(sink.durable) == 122)
    await running.stop()
    assert [offset for shard, offset in told(sink) if shard == shard_of("d")] == list(range(1, 122))
    first, last = sink.durable[0], sink.durable[119]
    assert (first.numbers, first.kind, last.kind) == ([20.5], None, "registered")
    assert running.statistics()["lag_entries"] == 0


async def test_what_becomes_visible_late_is_not_left_out(
    dsn: str, log: PgLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that began before others and commits after them, in a shard that says nothing more."""
    monkeypatch.setattr("sensorium.storage.projection_reader.SLACK_MS", 0)
    other = await asyncpg.connect(dsn, server_settings={"application_name": "sensorium-host-99"})
    slow = other.transaction()
    await slow.start()
    row = reading("late", 1)
    await other.execute(
        "INSERT INTO readings (shard, log_offset, device, time, key, flags, metric_set, numbers)"
        " VALUES ($1, 1, $2, now(), 1, 0, $3, '{1}')",
        *(row.shard, row.device, row.metric_set.id),
    )
    sink = ListSink()
    running = runner(dsn, sink)
    await running.start()
    await log.commit(Commit(readings=[reading("d", 1)]))
    await until(lambda: len(sink.durable) == 1)
    await log.commit(Commit(readings=[reading("d", 2)]))
    await until(lambda: len(sink.durable) == 2)
    await slow.commit()
    await other.close()
    await until(lambda: (row.shard, 1) in told(sink))
    await running.stop()


async def test_a_gap_is_filled_from_anywhere_or_passed_over_when_it_is_gone(
    dsn: str, pool: Pool, log: PgLog
) -> None:
    await log.commit(Commit(readings=[reading("d", n, key=n) for n in range(1, 6)]))
    async with acquired(pool) as connection:
        await connection.execute("UPDATE readings SET committed_at = committed_at - interval '0.5 s'")
        # As if these had been in a partition that was dropped.
        await connection.execute("DELETE FROM readings WHERE log_offset IN (1, 4)")
    sink = ListSink()
    running = runner(dsn, sink)
    await running.start()
    await until(lambda: len(sink.durable) == 3)
    await running.stop()
    assert [offset for _, offset in told(sink)] == [2, 3, 5]
    assert running.statistics()["lost"] == 2


async def test_poison_is_put_aside_and_the_rest_goes_on(dsn: str, pool: Pool, log: PgLog) -> None:
    await log.commit(
        Commit(readings=[reading("d", n, key=n) for n in range(1, 101)], registrations=[registration("d")])
    )
    sink = ListSink()
    sink.refuses = lambda entry: entry.offset in (3, 77)
    running = runner(dsn, sink)
    await running.start()
    await until(lambda: len(sink.durable) == 98)
    await running.stop()
    assert [offset for _, offset in told(sink)] == [n for n in range(1, 101) if n not in (3, 77)]
    page = await DeadLetters(pool).page(reason="projection:test")
    assert {(d.device_id, d.address) for d in page.items} == {
        ("d", f"shard {shard_of('d')} offset {n}") for n in (3, 77)
    }


async def test_a_failing_sink_delays_itself_only(dsn: str, log: PgLog) -> None:
    await log.commit(Commit(readings=[reading("d", n, key=n) for n in range(1, 21)]))
    away, well = ListSink(), ListSink()
    away.failures = 2
    failing, other = runner(dsn, away, "failing"), runner(dsn, well, "well")
    await failing.start()
    await other.start()
    await until(lambda: len(well.durable) == 20)
    await until(lambda: failing.statistics()["state"] == "failing" or len(away.durable) == 20)
    await until(lambda: len(away.durable) == 20)
    await failing.stop()
    await other.stop()


async def test_one_of_two_runners_feeds(dsn: str, log: PgLog) -> None:
    first, second = ListSink(), ListSink()
    one, two = runner(dsn, first), runner(dsn, second)
    await one.start()
    await until(lambda: one.statistics()["state"] == "running")
    await two.start()
    await until(lambda: two.statistics()["state"] == "waiting")
    await log.commit(Commit(readings=[reading("d", 1)]))
    # The sink has it before the cursor is stored; killed in between, the other would rightly be told again.
    await until(lambda: one.statistics()["flushes"] == 1)
    await kill(one)
    await log.commit(Commit(readings=[reading("d", 2)]))
    await until(lambda: told(second) == [(shard_of("d"), 2)])
    await two.stop()
    assert len(first.durable) == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", range(2))
async def test_rollups_count_everything_once_although_everything_dies(dsn: str, pool: Pool, run: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    heads: dict[int, int] = defaultdict(int)
    written: list[ReadingRow] = []
    metric_values = {"d1": ("t",), "d2": ("t", "door"), "d3": ("t", "mode")}
    running = runner(dsn, RollupSink(), "rollups", page=37)
    await running.start()
    for _ in range(40):
        rows = []
        for _ in range(rng.randrange(1, 40)):
            device = rng.choice(list(metric_values))
            heads[shard_of(device)] += 1
            values: dict[str, Any] = {"t": rng.uniform(-50, 50)}
            if "door" in metric_values[device]:
                values["door"] = rng.random() < 0.5
            if "mode" in metric_values[device]:
                values["mode"] = rng.choice(["eco", "boost"])
            # Out of order, over two days: late data corrects the bucket it belongs to.
            time_ms = NOON_MS + rng.randrange(2 * 86_400) // 300 * 300_000 + rng.randrange(3) * 1000
            rows.append(reading(device, heads[shard_of(device)], time_ms, rng.randrange(2**60), **values))
        await log.commit(Commit(readings=rows))
        written += rows
        match rng.randrange(4):
            case 0:
                await kill(running)
                running = runner(dsn, RollupSink(), "rollups", page=rng.choice([1, 37, 500]))
                await running.start()
            case 1:
                async with acquired(pool) as connection:
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'sensorium-projection-rollups'"
                        " AND datname = current_database()"
                    )
            case _:
                await asyncio.sleep(rng.uniform(0, 0.03))

    async def counted() -> int:
        async with acquired(pool) as connection:
            total: int | None = await connection.fetchval(
                "SELECT sum(n) FROM rollups_1d JOIN rollup_metrics m ON m.id = metric WHERE m.name = 't'"
            )
        return total or 0

    async with asyncio.timeout(DEADLINE_S):
        while await counted() < len(written):
            await asyncio.sleep(0.05)
    await running.stop()
    await log.close()
    for level in LEVELS:
        async with acquired(pool) as connection:
            rows_found = await connection.fetch(
                f"SELECT r.*, m.name, m.kind::text AS kind FROM {level.table} r"
                " JOIN rollup_metrics m ON m.id = r.metric"
            )
        assert {(r["device"], r["name"], r["bucket"]): figures(dict(r)) for r in rows_found} == expected(
            written, level.width_ms
        )


def figures(row: dict[str, Any]) -> dict[str, Any]:
    shown = {k: row[k] for k in ("n", "first_at", "last_at", "first", "last", "first_text", "last_text")}
    for name in ("total", "squares", "least", "most"):
        shown[name] = None if row[name] is None else pytest.approx(row[name])
    shown["sketch"] = sketch.decode(row["sketch"] or b"")
    return shown


def expected(written: list[ReadingRow], width_ms: int) -> dict[tuple[int, str, int], dict[str, Any]]:
    """Computed anew from all that was committed."""
    by_key: dict[tuple[int, str, int], list[tuple[int, int, Any]]] = defaultdict(list)
    for row in written:
        for name, value in zip(row.metric_set.names, row.values, strict=True):
            key = (row.device, name, row.time_ms // width_ms * width_ms)
            by_key[key].append((row.time_ms, row.offset, value))
    found = {}
    for key, items in by_key.items():
        items.sort()
        values = [value for _, _, value in items]
        shown = {"n": len(items), "first_at": items[0][0], "last_at": items[-1][0]}
        if isinstance(values[0], str):
            nothing = dict.fromkeys(("total", "squares", "least", "most", "first", "last"))
            shown |= nothing | {"first_text": values[0], "last_text": values[-1], "sketch": {}}
        else:
            numbers = [float(value) for value in values]
            shown |= {"total": sum(numbers), "squares": sum(v * v for v in numbers)}
            shown |= {"least": min(numbers), "most": max(numbers), "first": numbers[0], "last": numbers[-1]}
            shown |= {"first_text": None, "last_text": None, "sketch": sketch.bins_of(numbers)}
        found[key] = shown
    return found


async def test_a_set_of_absent_values_and_texts_is_folded(dsn: str, pool: Pool, log: PgLog) -> None:
    metrics = set_of(t=1.0, mode="eco", u=2.0)
    key, shard = device_key("d"), shard_of("d")
    await log.commit(
        Commit(
            readings=[
                ReadingRow(shard, 1, key, NOON_MS, 1, 0, metrics, [None, "eco", 3.0]),
                ReadingRow(shard, 2, key, NOON_MS, 2, 1, metrics, [5.0, None, None]),
            ]
        )
    )
    running = runner(dsn, RollupSink(), "rollups")
    await running.start()
    await until(lambda: running.statistics()["flushes"] > 0)
    await running.stop()
    async with acquired(pool) as connection:
        rows = await connection.fetch(
            "SELECT m.name, n, total, first_text FROM rollups_1m JOIN rollup_metrics m ON m.id = metric"
        )
    assert {tuple(row) for row in rows} == {
        ("t", 1, 5.0, None),
        ("mode", 1, None, "eco"),
        ("u", 1, 3.0, None),
    }
