"""A platform on the data folder that the oldest schema with data has left: it has everything and goes on."""

import asyncio
import signal
from pathlib import Path

import httpx
import pytest
from platform_process import PlatformProcess
from tests.old_schema import EXPECTED, fill

from sensorium.ingest.broker import free_port
from sensorium.storage.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def test_it_starts_and_goes_on(short_dir: Path) -> None:
    data_dir = short_dir / "old"
    with EmbeddedPostgres(data_dir / "postgres") as server:
        await fill(server.dsn)
    platform = PlatformProcess(data_dir, free_port(), free_port())
    try:
        await asyncio.to_thread(platform.start)
        async with httpx.AsyncClient(base_url=platform.state.http_url, timeout=30.0) as api:
            for device_id, expected in EXPECTED.items():
                latest = (await api.get(f"/api/devices/{device_id}/data/latest")).json()["metrics"]
                for metric, (value, time_ms) in expected["latest"].items():
                    assert (latest[metric]["value"], latest[metric]["time_ms"]) == (value, time_ms)
                readings = (await api.get(f"/api/devices/{device_id}/data", params={"limit": 1000})).json()
                assert len(readings["items"]) == expected["readings"]
            alarms = (await api.get("/api/alarms", params={"state": "ACTIVE"})).json()["items"]
            assert [alarm["device_id"] for alarm in alarms] == ["sensor-001"]
            # The rule watches still: below its limit the alarm ends.
            cool = {"temperature": 20.0, "open": True, "mode": "auto"}
            sent = await api.post("/api/devices/sensor-001/data", json=cool)
            assert sent.status_code == 201, sent.text
            assert (await api.get("/api/alarms", params={"state": "ACTIVE"})).json()["items"] == []
    finally:
        code = await asyncio.to_thread(platform.stop, signal.SIGTERM)
    assert code == 0, platform.errors
