"""How fast a draft rule is tried on the past: a month of readings in PostgreSQL, relived by Ray tasks.

`sensorium bench backtest [--json] [--devices 100] [--days 30] [--interval 60] [--cpus 2]`. Writes through the
log first, then tries rules that look at the value alone and rules that look at its window, each beside one
that it would replace. Starts a Ray of its own.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from typing import Any

import ray
from surroundings import cpu_s

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.backtesting import Asked, backtest
from sensorium.actors.metrics import metric_set
from sensorium.actors.past import Past
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Commit, ReadingRow, Registration
from sensorium.actors.rules import Condition, Operator, Rule, RuleSpec, Threshold, ZScore
from sensorium.storage import EmbeddedPostgres, PgLog, PgMembershipFactory, PgRules, migrate, open_pool
from sensorium.storage.database import acquired, close_pool
from sensorium.storage.stored_past import PgStoredPastFactory

METRICS = metric_set(("temperature", "humidity", "pressure"), "nnn")
START_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z."""
DAY_MS = 86_400_000
BATCH = 10_000
NOISE = 65_536

DRAFTS: tuple[tuple[str, Condition, Condition], ...] = (
    (
        "threshold",
        Threshold("temperature", Operator.GT, 23.5),
        Threshold("temperature", Operator.GT, 24.0),
    ),
    ("z-score over 15 minutes", ZScore("temperature", 3.2, 900.0, 10), ZScore("temperature", 3.5, 900.0, 10)),
)
"""Each: what it is called, the draft, and the rule that it would replace."""


class OnlyPast:
    """As much of a fleet as a backtest asks for."""

    def __init__(self, past: Past) -> None:
        self._past = past

    def past(self) -> Past:
        return self._past


async def write(dsn: str, devices: int, days: float, interval_s: int) -> int:
    """The devices' readings, in the order a fleet sends them; returns how many."""
    members = await PgMembershipFactory(dsn)()
    log = PgLog(dsn, await members.join("bench"))
    ids = [f"past-{n:03}" for n in range(devices)]
    await log.commit(
        Commit(registrations=[Registration(i, "past", "active", None, {}, START_MS, START_MS) for i in ids])
    )
    rng = random.Random(1)
    noise = [rng.gauss(20.0, 1.0) for _ in range(NOISE)]
    heads: dict[int, int] = {}
    whose = [(n, shard_of(i), device_key(i)) for n, i in enumerate(ids)]
    rows: list[ReadingRow] = []
    written = 0
    for second in range(0, int(days * 86_400), interval_s):
        time_ms = START_MS + second * 1000
        for n, shard, key in whose:
            heads[shard] = offset = heads.get(shard, 0) + 1
            at = (written * 7 + n) % NOISE
            values: list[Any] = [noise[at], noise[at - 1] + 30.0, 1013.0]
            rows.append(ReadingRow(shard, offset, key, time_ms, written, 0, METRICS, values))
            written += 1
        if len(rows) >= BATCH:
            await log.commit(Commit(readings=rows))
            rows = []
    await log.commit(Commit(readings=rows))
    await log.close()
    await members.close()
    pool = await open_pool(dsn)
    async with acquired(pool) as connection:
        await connection.execute("ANALYZE readings")
    await close_pool(pool)
    return written


async def create(dsn: str, condition: Condition) -> Rule:
    pool = await open_pool(dsn)
    rule = await PgRules(pool).create(RuleSpec(name="present", condition=condition))
    await close_pool(pool)
    return rule


def attempt(past: Past, asked: Asked) -> tuple[float, float, BacktestResult]:
    """Seconds, CPU seconds of the tasks, and the result."""
    began_s, before_s = time.perf_counter(), cpu_s("ray::")
    (*_, result) = backtest(OnlyPast(past), asked)  # type: ignore[arg-type]
    assert isinstance(result, BacktestResult)
    return time.perf_counter() - began_s, cpu_s("ray::") - before_s, result


def run(devices: int, days: float, interval_s: int, cpus: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory,
        EmbeddedPostgres(f"{directory}/pg") as server,
    ):
        asyncio.run(migrate(server.dsn))
        began_s = time.perf_counter()
        count = asyncio.run(write(server.dsn, devices, days, interval_s))
        wrote_s = time.perf_counter() - began_s
        past = Past(PgStoredPastFactory(server.dsn), Profiles())
        end_ms = START_MS + round(days * DAY_MS)
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        tried = {}
        try:
            for name, draft, present in DRAFTS:
                rule = asyncio.run(create(server.dsn, present))
                spec = RuleSpec(name="draft", condition=draft)
                asked = Asked(spec, START_MS, end_ms, rule.rule_id, Filter("past"))
                seconds, tasks_s, result = attempt(past, asked)
                if result.readings != count:
                    raise SystemExit(f"bench: {result.readings} readings were relived, {count} were written")
                tried[name] = {
                    "seconds": seconds,
                    "readings_a_second": count / seconds,
                    "task_cpu_us_a_reading": tasks_s / count * 1e6,
                    "new": result.new,
                    "gone": result.gone,
                    "stays": result.stays,
                }
        finally:
            ray.shutdown()
    return {"devices": devices, "days": days, "readings": count, "written_in_s": wrote_s, "tried": tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--interval", type=int, default=60, help="seconds between readings of a device")
    parser.add_argument("--cpus", type=int, default=2, help="tasks at a time")
    options = parser.parse_args()
    result = run(options.devices, options.days, options.interval, options.cpus)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{result['readings']:,} readings of three metrics: {result['devices']} devices,"
        f" {result['days']:g} days (written in {result['written_in_s']:.0f} s)"
    )
    for name, found in result["tried"].items():
        print(
            f"  {name}: {found['seconds']:.1f} s, {found['readings_a_second']:,.0f} readings/s,"
            f" {found['task_cpu_us_a_reading']:.1f} CPU-µs each in the tasks;"
            f" {found['new']} new, {found['gone']} gone, {found['stays']} stay"
        )


if __name__ == "__main__":
    main()
