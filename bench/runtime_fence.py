"""What the check of ownership costs a commit: the same commits with it and with an empty function instead.

Both are run turn by turn over two databases of one server, so that whatever the machine does meets both.
"""

import statistics
import time
from typing import Any

import asyncpg

from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import EmbeddedPostgres, PgLog, PgMembershipFactory, migrate

METRICS = metric_set(("temperature", "humidity", "pressure"), "nnn")
ROUNDS = 150
SIZES = (100, 1_000)
"""Readings a commit, as hosts make them under little and under much load."""
UNCHECKED = """
CREATE OR REPLACE FUNCTION sensorium_check_fence(of_incarnation bigint) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN END $$
"""


async def logs(server: EmbeddedPostgres) -> list[PgLog]:
    """A log that checks and one that does not."""
    made = []
    for name in ("checked", "unchecked"):
        admin = await asyncpg.connect(server.dsn)
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        dsn = server.dsn.replace("/postgres?", f"/{name}?")
        await migrate(dsn)
        members = await PgMembershipFactory(dsn)()
        made.append(PgLog(dsn, await members.join("bench")))
        await members.close()
        if name == "unchecked":
            connection = await asyncpg.connect(dsn)
            await connection.execute(UNCHECKED)
            await connection.close()
    return made


async def cost(server: EmbeddedPostgres) -> dict[str, Any]:
    """Medians of a commit both ways, and their ratio, by readings a commit."""
    both = await logs(server)
    found: dict[str, Any] = {}
    head = 0
    for size in SIZES:
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(ROUNDS + 10):
            now_ms = time.time_ns() // 1_000_000
            rows = [
                ReadingRow(
                    shard_of("d"),
                    head + n + 1,
                    device_key("d"),
                    now_ms + n,
                    head + n,
                    0,
                    METRICS,
                    [1.0, 2.0, 3.0],
                )
                for n in range(size)
            ]
            head += size
            for which in (0, 1) if number % 2 else (1, 0):
                began_s = time.perf_counter()
                await both[which].commit(Commit(readings=rows))
                if number >= 10:
                    took[which].append(time.perf_counter() - began_s)
        checked, unchecked = map(statistics.median, took)
        found[str(size)] = {
            "checked_ms": round(checked * 1000, 3),
            "unchecked_ms": round(unchecked * 1000, 3),
            "ratio": round(checked / unchecked, 3),
        }
    for log in both:
        await log.close()
    return found
