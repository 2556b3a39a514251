"""Two platforms pointed at one database: the second is refused, until the first has ended in whatever way."""

import asyncio
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import pytest
from platform_process import READY_TIMEOUT_S, PlatformProcess, wait_until

from sensorium.actors.errors import LogUnavailable
from sensorium.ingest.broker import free_port
from sensorium.storage import Claim, DatabaseClaimed, EmbeddedPostgres
from sensorium.storage.claim import Role
from sensorium.storage.database import connect

_HELD = """
SELECT count(*) FROM platform_claims c JOIN pg_locks l ON l.pid = c.backend_pid AND l.locktype = 'advisory'
WHERE c.role = 'platform' AND c.pid = $1
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture
def database() -> Iterator[EmbeddedPostgres]:
    """A server of nobody's."""
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-test-") as directory,
        EmbeddedPostgres(f"{directory}/pg", {"shared_buffers": "64MB"}) as running,
    ):
        yield running


@pytest.fixture
def platforms(short_dir: Path, database: EmbeddedPostgres) -> Iterator[list[PlatformProcess]]:
    """Two that are to use that server."""
    two = [
        PlatformProcess(
            short_dir / f"claim-{n}",
            free_port(),
            free_port(),
            environment={"DEVICE_DB_URL": database.dsn},
        )
        for n in range(2)
    ]
    yield two
    for each in two:
        each.close()


def refused(platform: PlatformProcess, holder: PlatformProcess) -> None:
    """It ends at once, with one line that names the other, and starts nothing."""
    began_s = time.monotonic()
    platform.spawn()
    assert platform.wait(READY_TIMEOUT_S) == 1
    (line,) = [line for line in platform.errors.splitlines() if line.startswith("sensorium: ")]
    named = re.escape(f"is in use by the platform on {socket.gethostname()} (pid {holder.pid}) since 20")
    assert re.search(named, line), line
    assert "Traceback" not in platform.errors
    assert platform.left(within_s=5) == []
    assert time.monotonic() - began_s < 30


async def held_by(dsn: str, pid: int, within_s: float) -> None:
    """Return once the platform of this process has the claim, without trying to take it."""
    async with asyncio.timeout(within_s):
        while True:
            with suppress(LogUnavailable, asyncpg.PostgresError):
                connection = await connect(dsn, "test")
                try:
                    if await connection.fetchval(_HELD, pid):
                        return
                finally:
                    await connection.close()
            await asyncio.sleep(0.05)


async def claimable(dsn: str, within_s: float) -> None:
    """Return once nobody claims the database."""
    async with asyncio.timeout(within_s):
        while True:
            claim = Claim(dsn, Role.PLATFORM)
            try:
                await claim.hold()
            except DatabaseClaimed:
                await asyncio.sleep(0.05)
            else:
                return await claim.close()


def test_the_second_is_refused_until_the_first_is_gone(
    platforms: list[PlatformProcess], database: EmbeddedPostgres
) -> None:
    first, second = platforms
    first.start()
    refused(second, first)

    # The claim does not hang on one connection: it is made anew when the server comes back.
    database.kill9()
    database.start()
    ready = f"http://127.0.0.1:{first.http_port}/readyz"
    wait_until(lambda: httpx.get(ready, timeout=10).status_code == 200, 60, "the first to serve again")
    asyncio.run(held_by(database.dsn, first.pid, within_s=15))
    refused(second, first)

    # One that hangs has it still; one that is killed has not, and nobody waits for a heartbeat to be missed.
    os.kill(first.pid, signal.SIGSTOP)
    refused(second, first)
    first.kill()
    asyncio.run(claimable(database.dsn, within_s=2))
    second.start()
    assert second.stop(signal.SIGTERM) == 0, second.errors
