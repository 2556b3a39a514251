"""Who is there, as the database sees it."""

import asyncio

import pytest

from sensorium.storage.attendance import DOWNLINK, attend, attended
from sensorium.storage.database import Pool

pytestmark = [pytest.mark.database, pytest.mark.slow]

CUT = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1"


async def test_it_is_known_at_once_who_comes_and_goes(dsn: str, pool: Pool) -> None:
    async with asyncio.timeout(10):
        seen = attended(dsn, DOWNLINK)
        assert not await anext(seen)
        service = asyncio.create_task(attend(dsn, DOWNLINK))
        while not await anext(seen):
            pass
        other = attended(dsn, DOWNLINK)
        assert await anext(other), "those who ask do not see each other"
        assert await pool.fetchval(CUT, "sensorium-attends") == 1
        assert not await anext(seen)
        while not await anext(seen):
            pass  # it has connected again
        service.cancel()
        assert not await anext(seen)
        assert await anext(other) is False
        await seen.aclose()
        await other.aclose()


async def test_without_a_database_nobody_is_there() -> None:
    seen = attended("postgresql://postgres@127.0.0.1:1/none", DOWNLINK)
    async with asyncio.timeout(10):
        assert not await anext(seen)
        assert not await anext(seen)
