"""The main job on recordings of a machine: replayed as the device would send them, the documented rule raises
alarms in the labelled failures and nowhere else."""

import asyncio
import csv
import json
import math
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Eventually
from platform_process import run_sensorium

from sensorium.ingest.mqtt_address import BrokerAddress

pytestmark = pytest.mark.ray

NAB = Path(__file__).parents[3] / "shared" / "data" / "nab"
NAB_FILE = "realKnownCause/machine_temperature_system_failure.csv"
BELOW_40 = {
    "name": "Machine below 40 °C",
    "severity": "critical",
    "scope": {"device_type": "machine"},
    "condition": {"type": "threshold", "metric": "temperature", "operator": "<", "value": 40},
}
"""As the README has it."""

Window = tuple[datetime, datetime]


@pytest.fixture(scope="module", autouse=True)
async def rule(api: httpx.AsyncClient) -> AsyncIterator[None]:
    """The documented rule, while these tests run."""
    created = await api.post("/api/analytics/rules", json=BELOW_40)
    assert created.status_code == 201, created.text
    yield
    await api.delete(f"/api/analytics/rules/{created.json()['rule_id']}")


def machine(path: Path) -> list[Window]:
    """Two weeks of a machine, every five minutes, with a planned shutdown and a failure: their windows."""
    rng = random.Random(7)
    start = datetime(2024, 3, 1, tzinfo=UTC)
    shutdown = (start + timedelta(days=5, hours=6), start + timedelta(days=5, hours=18))
    failure = (start + timedelta(days=11, hours=2), start + timedelta(days=12))
    drift = 0.0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "value"])
        for n in range(14 * 288):
            now = start + timedelta(minutes=5 * n)
            drift = 0.98 * drift + rng.gauss(0, 0.8)
            value = 82 + 6 * math.sin(2 * math.pi * n / 288) + drift
            if shutdown[0] <= now < shutdown[1]:
                into_h = (now - shutdown[0]).total_seconds() / 3600
                value = 21 + (value - 21) * math.exp(-2 * into_h) + rng.gauss(0, 0.3)
            if failure[0] <= now < failure[1]:
                # It fails, is started again, and fails.
                into_h = (now - failure[0]).total_seconds() / 3600
                value -= 75 * max(0.0, math.sin(into_h * math.pi / 4))
            writer.writerow([now.strftime("%Y-%m-%d %H:%M:%S"), f"{value:.6f}"])
    return [shutdown, failure]


async def alarm_starts(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually, file: Path, device_id: str
) -> list[datetime]:
    """When alarms began, after a replay of the file by the command."""
    with file.open() as rows:
        records = list(csv.DictReader(rows))
    command = ["replay", file, "--device", device_id, "--metric", "temperature", "--register", "machine"]
    where = ["--url", str(api.base_url), "--mqtt-url", f"mqtt://127.0.0.1:{broker.port}"]
    done = await asyncio.to_thread(run_sensorium, *command, *where, timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert f"{len(records):,} sent, {len(records):,} acknowledged" in done.stdout
    last = datetime.fromisoformat(records[-1]["timestamp"]).replace(tzinfo=UTC)

    async def newest_ms() -> int:
        page = (await api.get(f"/api/devices/{device_id}/data/latest")).json()
        return int(page["metrics"].get("temperature", {"time_ms": 0})["time_ms"])

    await eventually(newest_ms, lambda found: found == last.timestamp() * 1000, 60.0)
    span = {"start": records[0]["timestamp"], "end": (last + timedelta(minutes=1)).isoformat()}
    answer = await api.get(
        f"/api/devices/{device_id}/data", params={**span, "aggregation": "count", "metrics": "temperature"}
    )
    times = {record["timestamp"] for record in records}
    (bucket,) = answer.json()["items"]
    # A clock that was set back gives two values for one time: both are stored.
    assert len(times) <= bucket["values"]["temperature"] <= len(records)
    alarms: list[dict[str, Any]] = (
        await api.get("/api/alarms", params={"device_id": device_id, "limit": 1000})
    ).json()["items"]
    assert {alarm["severity"] for alarm in alarms} == {"critical"}
    return sorted(datetime.fromtimestamp(alarm["start_ms"] / 1000, UTC) for alarm in alarms)


def hits(windows: list[Window], starts: list[datetime]) -> tuple[list[int], list[datetime]]:
    """How many alarms began in each window, and those that began in none."""
    inside = [sum(a <= start < b for start in starts) for a, b in windows]
    return inside, [start for start in starts if not any(a <= start < b for a, b in windows)]


async def test_a_planned_shutdown_and_a_failure(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually, tmp_path: Path
) -> None:
    file = tmp_path / "machine.csv"
    windows = machine(file)
    starts = await alarm_starts(api, broker, eventually, file, "machine-synthetic")
    assert hits(windows, starts) == ([1, 3], [])


@pytest.mark.skipif(not (NAB / NAB_FILE).is_file(), reason=f"no recording at {NAB / NAB_FILE}")
async def test_the_machine_of_the_benchmark(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually
) -> None:
    labelled = json.loads((NAB / "windows.json").read_text())[NAB_FILE]
    windows = [
        (datetime.fromisoformat(a).replace(tzinfo=UTC), datetime.fromisoformat(b).replace(tzinfo=UTC))
        for a, b in labelled
    ]
    starts = await alarm_starts(api, broker, eventually, NAB / NAB_FILE, "machine-benchmark")
    inside, outside = hits(windows, starts)
    assert outside == []
    # The shutdown of 16 December and the failure of 8 February: what a fixed limit can see.
    assert inside == [0, 1, 0, 4]
