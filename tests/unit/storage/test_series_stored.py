"""Points for a chart of more readings than are looked at one by one, from the database."""

import math
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from storage_rows import NOON_MS, reading, registration

from sensorium.actors.records import Commit
from sensorium.serve import series
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.registry import PgRegistry

pytestmark = pytest.mark.database

COUNT = 4_000


@pytest.fixture
async def asked(dsn: str, pool: Pool) -> Any:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    values = [math.sin(n / 300) for n in range(COUNT)]
    values[1234] = 9.0
    rows = [reading("d", n + 1, NOON_MS + n * 1000, n, t=value, mode="eco") for n, value in enumerate(values)]
    await log.commit(Commit(readings=rows, registrations=[registration("d")]))
    await log.close()
    app = FastAPI()
    services: Any = SimpleNamespace(history=History(pool), registry=PgRegistry(pool))
    app.include_router(series.routes(services))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as client:
        yield client


async def test_no_peak_is_lost_whichever_way(
    asked: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, width_ms in ((COUNT, 0), (COUNT - 1, 15_000)):
        monkeypatch.setattr(series, "MAX_RAW", most)
        answered = (await asked.get("/api/devices/d/series", params={"points": 100})).json()
        (line,) = answered["items"]
        points = line["points"]
        assert (line["metric"], len(points)) == ("t", 100)
        assert points == sorted(points)
        (at_ms,) = (at for at, value in points if value == 9.0)
        assert abs(at_ms - (NOON_MS + 1_234_000)) <= width_ms
        assert points[0][0] <= NOON_MS + width_ms
        assert all(abs(value) <= 1.0 or value == 9.0 for _, value in points)
    some = {"metrics": "mode", "points": 100, "start": NOON_MS, "end": NOON_MS + 1000}
    assert (await asked.get("/api/devices/d/series", params=some)).json()["items"] == []
    none = {"start": NOON_MS - 1000, "end": NOON_MS}
    assert (await asked.get("/api/devices/d/series", params=none)).json()["items"] == []
