"""The database is killed at random moments: what was acknowledged is there, once and in order."""

import asyncio
import random
from pathlib import Path

import pytest
from storage_rows import NOON_MS, reading

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Commit
from sensorium.storage import EmbeddedPostgres, PgLog, PgMembershipFactory, migrate

pytestmark = [pytest.mark.database, pytest.mark.slow]
CRASHES = 4


async def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(open_directory: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # Crashing the server leaves its memory to the kernel, so this needs no fsync.
    server = EmbeddedPostgres(open_directory / "pg", {"shared_buffers": "32MB", "fsync": "off"})
    with server:
        await migrate(server.dsn)
        members = await PgMembershipFactory(server.dsn)()
        log = PgLog(server.dsn, await members.join("a"))
        shard = shard_of("d")
        acked = 0
        stop = asyncio.Event()

        async def write() -> None:
            """As a host does: after a failure it forgets, reads what is there, and goes on behind it."""
            nonlocal acked
            head: int | None = 0
            while not stop.is_set():
                try:
                    if head is None:
                        head = (await log.open([shard]))[shard]
                        [found] = await log.load(["d"])
                        assert [t.offset for t in found.tail] == list(range(1, head + 1))
                        assert head >= acked, "an acknowledged commit is lost"
                    size = rng.randrange(1, 50)
                    rows = [reading("d", head + n, NOON_MS + head + n, head + n) for n in range(1, size + 1)]
                    await log.commit(Commit(readings=rows))
                    head += size
                    acked = head
                except LogUnavailable:
                    head = None
                    await asyncio.sleep(0.01)

        writer = asyncio.create_task(write())
        for _ in range(CRASHES):
            goal = acked + rng.randrange(200, 2000)
            async with asyncio.timeout(30):
                while acked < goal:
                    await asyncio.sleep(rng.uniform(0.001, 0.01))
                    assert not writer.done(), writer.exception()
            server.kill9()
            await asyncio.to_thread(server.start)
        stop.set()
        await writer
        [found] = await log.load(["d"])
        offsets = [t.offset for t in found.tail]
        assert offsets == list(range(1, len(offsets) + 1))
        assert len(offsets) >= acked
        assert [t.key for t in found.tail] == offsets
        await log.close()
        await members.close()
