"""How fast history is answered and rollups are made, beside plain SQL over the readings, in one run.

`make bench-history` or `python bench/history.py [--json] [--devices 1000]`. Writes through the log, lets the
projection read it, leaves the newest readings unprojected, and asks each question both ways. The plain SQL is
what one would write by hand for that question, over the same table of readings.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import history_load
import psutil

from sensorium.actors.messages import Quality
from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow, Registration
from sensorium.storage import (
    EmbeddedPostgres,
    History,
    PgLog,
    PgMembershipFactory,
    close_pool,
    migrate,
    open_pool,
)
from sensorium.storage.database import Pool, acquired
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup_sink import SETTINGS, RollupSink

METRICS = metric_set(("temperature", "humidity", "pressure"), "nnn")
DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z."""
BATCH = 5_000
ROUNDS = 20

PLAIN_DEVICE = """
SELECT date_bin(make_interval(secs => $4), time, 'epoch') AS bucket, avg(numbers[1]), avg(numbers[2]),
       avg(numbers[3])
FROM readings
WHERE device = $1 AND time >= $2 AND time < $3
    AND committed_at >= $2 AND committed_at < $5
GROUP BY 1 ORDER BY 1
"""
"""By somebody who knows that these readings were committed at once."""
PLAIN_TYPE = """
SELECT date_bin(make_interval(secs => $4), time, 'epoch') AS bucket, avg(numbers[1]), count(DISTINCT device)
FROM readings
WHERE device IN (SELECT device FROM devices WHERE device_type = $1) AND time >= $2 AND time < $3
    AND committed_at >= $2 AND committed_at < $5
GROUP BY 1 ORDER BY 1
"""


class Writer:
    """Commits readings as a host does."""

    def __init__(self, log: PgLog) -> None:
        self._log = log
        self._heads: dict[int, int] = defaultdict(int)
        self._rows: list[ReadingRow] = []
        self._random = random.Random(1)
        self.count = 0

    async def add(self, device_id: str, time_ms: int) -> None:
        shard = shard_of(device_id)
        self._heads[shard] += 1
        gauss = self._random.gauss
        values: list[Any] = [gauss(20, 1), gauss(50, 2), gauss(1013, 5)]
        key = self._random.getrandbits(63)
        self._rows.append(
            ReadingRow(shard, self._heads[shard], device_key(device_id), time_ms, key, 0, METRICS, values)
        )
        self.count += 1
        if len(self._rows) >= BATCH:
            await self.flush()

    async def flush(self) -> None:
        if self._rows:
            await self._log.commit(Commit(readings=self._rows))
        self._rows = []


async def stored_day() -> dict[str, float]:
    """Bytes a reading of a device at 1 Hz takes after a day: as a row, compacted, and in all rollups."""
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory,
        EmbeddedPostgres(Path(directory) / "pg") as server,
    ):
        await migrate(server.dsn)
        members = await PgMembershipFactory(server.dsn)()
        log = PgLog(server.dsn, await members.join("bench"))
        pool = await open_pool(server.dsn)
        writer, before = Writer(log), await history_load.sizes(pool)
        for second in range(86_400):
            await writer.add("day", START_MS + second * 1000)
        await writer.flush()
        rows = await history_load.sizes(pool)
        runner = ProjectionRunner(server.dsn, SETTINGS, RollupSink())
        await runner.start()
        while runner.statistics()["entries"] < writer.count:
            await runner.ping()
            await asyncio.sleep(0.05)
        await runner.stop()
        async with acquired(pool) as connection:
            today = await connection.fetchval("SELECT to_char(now(), 'YYYYMMDD')")
        await history_load.dated_back(pool)
        async with acquired(pool) as connection:
            await connection.execute(f"TRUNCATE readings_{today}")
        await history_load.compacted(server.dsn)
        after = await history_load.sizes(pool)
        await close_pool(pool)
        await log.close()
        await members.close()
    return {
        "rows": (rows["log"] - before["log"]) / writer.count,
        "log": (after["log"] - before["log"]) / writer.count,
        "rollups": (after["rollups"] - before["rollups"]) / writer.count,
    }


async def write(writer: Writer, log: PgLog, devices: int) -> None:
    """A day of one device at 1 Hz, a year of one every 15 minutes, a week of many every 30 minutes."""
    for second in range(86_400):
        await writer.add("day", START_MS + second * 1000)
    ids = [f"many-{n}" for n in range(devices)]
    await log.commit(
        Commit(registrations=[Registration(i, "many", "active", None, {}, START_MS, START_MS) for i in ids])
    )
    for n in range(366 * 96):
        await writer.add("year", START_MS + n * 900_000)
    for n in range(7 * 48):
        for device_id in ids:
            await writer.add(device_id, START_MS + n * 1_800_000)
    await writer.flush()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def project(dsn: str, count: int, server: psutil.Process) -> dict[str, float]:
    """Run the projection over all of it; seconds, readings a second, CPU time a reading."""
    mine = psutil.Process()
    began_s, mine_s = time.perf_counter(), cpu_s(mine)
    before = {p.pid: cpu_s(p) for p in server.children()}
    runner = ProjectionRunner(dsn, SETTINGS, RollupSink())
    await runner.start()
    while runner.statistics()["entries"] < count:
        await runner.ping()
        await asyncio.sleep(0.05)
    # Its connection is the server's busiest new process; it is gone once the runner has stopped.
    served_s = sum(cpu_s(p) - before.get(p.pid, 0.0) for p in server.children())
    await runner.stop()
    seconds = time.perf_counter() - began_s
    return {
        "seconds": seconds,
        "readings_a_second": count / seconds,
        "python_us_a_reading": (cpu_s(mine) - mine_s) / count * 1e6,
        "server_us_a_reading_but_for_the_last_flush": served_s / count * 1e6,
    }


async def median_ms(call: Callable[[], Awaitable[Any]]) -> float:
    took = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began_s) * 1000)
        if sum(took) > 5_000:
            break
    return statistics.median(took)


async def again(pool: Pool, asked: dict[str, Callable[[], Awaitable[Any]]]) -> dict[str, float]:
    """Medians of questions in milliseconds."""
    return {name: await median_ms(call) for name, call in asked.items()}


def raw_questions(history: History) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What only the readings answer."""
    noon_ms = START_MS + DAY_MS // 2
    return {
        "the newest 1,000 readings every 15 minutes": lambda: history.readings(
            "year", limit=1000, order="desc"
        ),
        "the newest 1,000 of one that is silent for a year": lambda: history.readings(
            "day", limit=1000, order="desc"
        ),
        "1,000 readings at 1 Hz from noon on": lambda: history.readings("day", noon_ms, limit=1000),
        "an hour at 1 Hz, of good quality": lambda: history.aggregate(
            "day", noon_ms, noon_ms + 3_600_000, None, "mean", quality=Quality.GOOD
        ),
        "a day at 1 Hz, of good quality": lambda: history.aggregate(
            "day", START_MS, START_MS + DAY_MS, None, "mean", 3_600.0, quality=Quality.GOOD
        ),
    }


def told(answer: Any) -> Any:
    """An answer without the last digits of figures, which the order of summing makes."""
    if not isinstance(answer, list):
        return answer
    return [
        [
            {k: round(v, 6) for k, v in part.items()} if isinstance(part, dict) else round(part, 6)
            for part in bucket
        ]
        for bucket in answer
    ]


async def questions(pool: Pool) -> tuple[dict[str, dict[str, Any]], dict[str, Callable[[], Awaitable[Any]]]]:
    """Medians of each question both ways, and whether the answers agree; and the questions."""
    history = History(pool)

    async def plain(statement: str, *arguments: Any) -> list[Any]:
        async with acquired(pool) as connection:
            return await connection.fetch(statement, *arguments)

    asked: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]], float]] = {}
    for name, device_id, days, every_s, target_ms in (
        ("a year of one device by day", "year", 366, 86_400.0, 10.0),
        ("a day at 1 Hz by hour", "day", 1, 3_600.0, 10.0),
    ):
        end_ms = START_MS + days * DAY_MS
        asked[name] = (
            lambda d=device_id, e=end_ms, s=every_s: history.aggregate(d, START_MS, e, None, "mean", s),  # type: ignore[misc]
            lambda d=device_id, e=end_ms, s=every_s: plain(
                PLAIN_DEVICE, device_key(d), START_MS, e, s, e + 3_600_000
            ),  # type: ignore[misc]
            target_ms,
        )
    week_ms = START_MS + 7 * DAY_MS
    asked["a week of a type by hour"] = (
        lambda: history.aggregate_type("many", "temperature", START_MS, week_ms, "mean", 3_600.0),
        lambda: plain(PLAIN_TYPE, "many", START_MS, week_ms, 3_600.0, week_ms + 3_600_000),
        200.0,
    )
    answers = {}
    for name, (ours, theirs, target_ms) in asked.items():
        answer, rows = await ours(), await theirs()
        if [bucket.start_ms for bucket in answer] != [row["bucket"] for row in rows]:
            raise SystemExit(f"bench: the two answers to {name!r} differ")
        answers[name] = {
            "ms": await median_ms(ours),
            "plain_sql_ms": await median_ms(theirs),
            "target_ms": target_ms,
            "source": answer.source,
        }
    return answers, {name: ours for name, (ours, _, _) in asked.items()}


async def run(devices: int) -> dict[str, Any]:
    stored = await stored_day()
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory:
        data = Path(directory) / "pg"
        with EmbeddedPostgres(data) as server:
            await migrate(server.dsn)
            members = await PgMembershipFactory(server.dsn)()
            log = PgLog(server.dsn, await members.join("bench"))
            writer = Writer(log)
            await write(writer, log, devices)
            process = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
            count = writer.count
            projected = await project(server.dsn, count, process)
            for n in range(1_000):
                await writer.add(f"many-{n % devices}", START_MS + 7 * DAY_MS + n)
            await writer.flush()
            pool = await open_pool(server.dsn)
            # Rows as a year of work leaves them, a partition for each day: as chunks are.
            await history_load.dated_back(pool)
            await history_load.vacuumed(server.dsn)
            answers, ours = await questions(pool)
            of_rows = await again(pool, raw_questions(History(pool)))
            all_of_them = (*ours.values(), *raw_questions(History(pool)).values())
            of_rows_said = [told(await call()) for call in all_of_them]
            compaction = await history_load.compacted(server.dsn)
            await history_load.vacuumed(server.dsn)
            if of_rows_said != [told(await call()) for call in all_of_them]:
                raise SystemExit("bench: an answer is another one from compacted days")
            for name, took_ms in (await again(pool, ours)).items():
                answers[name]["compacted_ms"] = took_ms
            of_chunks = await again(pool, raw_questions(History(pool)))
            raw = {name: {"ms": ms, "compacted_ms": of_chunks[name]} for name, ms in of_rows.items()}
            await close_pool(pool)
            loaded = await history_load.measured(writer, server.dsn, START_MS + 8 * DAY_MS)
            await log.close()
            await members.close()
    return {
        "readings": count,
        "bytes_a_reading": stored,
        "projection": projected,
        "questions": answers,
        "raw_questions": raw,
        "compaction": compaction,
        **loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--devices", type=int, default=1_000, help="of the type")
    options = parser.parse_args()
    result = asyncio.run(run(options.devices))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['readings']:,} readings of three metrics")
    stored = result["bytes_a_reading"]
    print(
        f"  a day at 1 Hz: {stored['log']:.0f} bytes a reading in the log, {stored['rollups']:.0f} in rollups"
        f" (target 120 in all), before it is compacted {stored['rows']:.0f}"
    )
    packed = result["compaction"]
    print(
        f"  compacted without pauses: {packed['readings'] / packed['seconds']:,.0f} readings/s,"
        f" {packed['days']} days"
    )
    projected = result["projection"]
    print(
        f"  projection into rollups: {projected['readings_a_second']:,.0f} readings/s; CPU time a reading:"
        f" Python {projected['python_us_a_reading']:.0f} us, server but for the last flush"
        f" {projected['server_us_a_reading_but_for_the_last_flush']:.0f} us"
    )
    for name, found in result["questions"].items():
        print(
            f"  {name}: {found['ms']:.1f} ms from {found['source']} (target {found['target_ms']:.0f}),"
            f" compacted {found['compacted_ms']:.1f}, plain SQL {found['plain_sql_ms']:.1f} ms"
        )
    for name, found in result["raw_questions"].items():
        print(f"  {name}: {found['ms']:.1f} ms, compacted {found['compacted_ms']:.1f} ms")
    alone, beside = result["copied_a_second"], result["copied_a_second_with_rollups"]
    print(f"  commits of 5,000: {alone:,.0f} readings/s, {beside:,.0f} with rollups being made")
    lag = result["lag"]
    print(
        f"  at {lag['readings_a_second']:,.0f} readings/s counted after p50 {lag['p50_ms']:.0f},"
        f" p99 {lag['p99_ms']:.0f} ms (target 1,000)"
    )


if __name__ == "__main__":
    main()
