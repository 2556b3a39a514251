"""What history costs while it is made: bytes a reading, commits with rollups beside them, how far these lag.

Not run by itself: `history.py` prints it with the rest.
"""

import asyncio
import statistics
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sensorium.storage.compaction import CompactionSettings, compact, drop_emptied, due
from sensorium.storage.database import Pool, connect
from sensorium.storage.partitions import attached, create
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup_sink import SETTINGS, RollupSink

RATE: Final = 10_000
"""Readings a second, for the lag."""
SECONDS: Final = 20
STEP_S: Final = 0.05
COPIED: Final = 200_000
_POLL_S: Final = 0.005
_BACK = """
INSERT INTO readings (shard, log_offset, device, time, key, flags, metric_set, numbers, texts, committed_at)
SELECT shard, log_offset, device, time, key, flags, metric_set, numbers, texts,
       time + interval '50 ms' + random() * interval '100 ms'
FROM readings WHERE committed_at >= current_date AND log_offset <= ($1::bigint[])[shard + 1] ORDER BY time
"""
_MOVED = "DELETE FROM readings WHERE committed_at >= current_date AND log_offset <= ($1::bigint[])[shard + 1]"
"""What the rollups have read."""

_BYTES = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname ~ $1
"""
_READINGS: Final = "^reading(s|_chunks)_[0-9]"
_ROLLUPS: Final = "^rollups_"


class Writes(Protocol):
    """Commits readings as a host does."""

    count: int

    async def add(self, device_id: str, time_ms: int) -> None: ...
    async def flush(self) -> None: ...


async def sizes(pool: Pool) -> dict[str, int]:
    """Bytes of the readings, rows and chunks, and of the rollups, with indexes and empty partitions."""
    return {
        "log": await pool.fetchval(_BYTES, _READINGS),
        "rollups": await pool.fetchval(_BYTES, _ROLLUPS),
    }


async def dated_back(pool: Pool) -> None:
    """Have what was committed today, and is in the rollups, be committed just after its event time.

    As a device at work has it: a commit for each of its readings, on the day of their events.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        cursors = await connection.fetchval("SELECT cursors FROM projections WHERE name = 'rollups'")
        days = await connection.fetch("SELECT DISTINCT (time AT TIME ZONE 'UTC')::date AS day FROM readings")
        have = {day for day, _ in await attached(connection, "readings")}
        for row in days:
            if row["day"] not in have:
                await create(connection, "readings", row["day"])
        await connection.execute(_BACK, cursors, timeout=600)
        await connection.execute(_MOVED, cursors, timeout=600)


async def vacuumed(dsn: str) -> None:
    """As autovacuum leaves it."""
    connection = await connect(dsn, "sensorium-bench")
    try:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute("VACUUM ANALYZE", timeout=600)
    finally:
        await connection.close()


async def compacted(dsn: str) -> dict[str, float]:
    """Compact all days that are over: readings, seconds without pauses, and of these in the server."""
    connection = await connect(dsn, "sensorium-bench")
    try:
        now = datetime.now(UTC)
        days = await due(connection, CompactionSettings(), (), now)
        before = await connection.fetchval("SELECT coalesce(sum(count), 0) FROM reading_chunks")
        began_s = time.perf_counter()
        for day in days:
            await compact(connection, day, (), _at_once)
        await drop_emptied(connection)
        seconds = time.perf_counter() - began_s
        after = await connection.fetchval("SELECT coalesce(sum(count), 0) FROM reading_chunks")
    finally:
        await connection.close()
    return {"readings": after - before, "days": len(days), "seconds": seconds}


async def _at_once(_: float) -> None:
    pass


async def copied(writer: Writes, dsn: str, begin_ms: int, rollups: bool) -> float:
    """Readings committed a second, as fast as it goes, with the projection running or not."""
    runner = ProjectionRunner(dsn, SETTINGS, RollupSink())
    if rollups:
        await runner.start()
    began_s = time.perf_counter()
    for n in range(COPIED):
        await writer.add(f"copied-{n % 1000}", begin_ms + n)
    await writer.flush()
    rate = COPIED / (time.perf_counter() - began_s)
    if rollups:
        await runner.stop()
    return rate


async def lag(writer: Writes, dsn: str, begin_ms: int) -> dict[str, float]:
    """Milliseconds from a commit until the projection has counted it, at `RATE` readings a second."""
    runner = ProjectionRunner(dsn, SETTINGS, RollupSink())
    await runner.start()
    # What an earlier part left behind is no lag of this one.
    while runner.statistics()["state"] != "running" or runner.statistics()["lag_entries"]:
        await runner.ping()
        await asyncio.sleep(0.1)
    before, done = runner.statistics()["entries"], writer.count
    committed: deque[tuple[int, float]] = deque()
    took: list[float] = []
    finished = False

    async def watch() -> None:
        while not finished or committed:
            counted = runner.statistics()["entries"] - before
            while committed and committed[0][0] <= counted:
                took.append((time.perf_counter() - committed.popleft()[1]) * 1000)
            await asyncio.sleep(_POLL_S)

    watching = asyncio.create_task(watch())
    size = round(RATE * STEP_S)
    due_s = began_s = time.perf_counter()
    for step in range(round(SECONDS / STEP_S)):
        for n in range(size):
            await writer.add(f"lagging-{n}", begin_ms + step)
        await writer.flush()
        committed.append((writer.count - done, time.perf_counter()))
        due_s += STEP_S
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    rate = (writer.count - done) / (time.perf_counter() - began_s)
    finished = True
    async with asyncio.timeout(120):
        await watching
    await runner.stop()
    cut = statistics.quantiles(took, n=100)
    return {"readings_a_second": rate, "p50_ms": cut[49], "p99_ms": cut[98]}


async def measured(writer: Writes, dsn: str, begin_ms: int) -> dict[str, Any]:
    """All but the sizes, one after the other."""
    return {
        "copied_a_second": await copied(writer, dsn, begin_ms, rollups=False),
        "copied_a_second_with_rollups": await copied(writer, dsn, begin_ms + COPIED, rollups=True),
        "lag": await lag(writer, dsn, begin_ms + 2 * COPIED),
    }
