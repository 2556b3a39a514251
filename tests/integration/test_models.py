"""A model's life: trained on what is stored, set to work, finding a fault, taken from work."""

import asyncio
import random
import time
from typing import Any

import httpx
import pytest
from platform_process import PlatformProcess, run_sensorium

pytestmark = pytest.mark.ray

TYPE = "modelled"
IDS = ["modelled-0", "modelled-1"]
READINGS = 400
NAME = "modelled-pumps"
END_MS = time.time_ns() // 1_000_000 - 3_600_000


async def send(api: httpx.AsyncClient, device_id: str, start_ms: int, shift: float, count: int = 20) -> None:
    rng = random.Random(start_ms)
    readings = [
        {
            "flow": rng.gauss(30, 0.5),
            "power": rng.gauss(12, 0.3) + shift,
            "mode": "eco",
            "timestamp": start_ms + n * 1000,
        }
        for n in range(count)
    ]
    response = await api.post(f"/api/devices/{device_id}/data", json=readings)
    assert response.status_code in (200, 201), response.text


@pytest.fixture(scope="module")
async def history(api: httpx.AsyncClient) -> None:
    """Both devices sound for some minutes."""
    for device_id in IDS:
        response = await api.post("/api/devices", json={"device_id": device_id, "device_type": TYPE})
        assert response.status_code == 201
        await send(api, device_id, END_MS - READINGS * 1000, 0.0, READINGS)


async def cli(*arguments: Any) -> Any:
    return await asyncio.to_thread(run_sensorium, *arguments, timeout_s=110.0)


@pytest.mark.timeout(400)
async def test_a_models_life(
    api: httpx.AsyncClient, history: None, platform: PlatformProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--data-dir", platform.data_dir)
    none = await cli("train", "outliers", NAME, "--type", "nothing", *where)
    assert none.returncode == 1
    assert none.stderr.splitlines()[-1] == "sensorium: no device of type 'nothing' matches"
    missing = await cli("train", "outliers", NAME, "--type", TYPE, "--metric", "speed", *where)
    assert missing.returncode == 1
    assert "none of 2 devices has enough to learn from" in missing.stderr

    trained = await cli("train", "outliers", NAME, "--type", TYPE, "--since", "1d", "--activate", *where)
    assert trained.returncode == 0, trained.stderr
    assert f"{NAME}@1: 2 metrics of 2 devices, {2 * READINGS} rows" in trained.stdout
    items = (await api.get("/api/analytics/models")).json()["items"]
    (item,) = [item for item in items if item["model"]["name"] == NAME]
    assert item["active"]
    assert item["model"]["metrics"] == ["flow", "power"]
    assert set(item["model"]["libraries"]) == {"sensorium", "numpy", "scikit-learn", "skops"}

    # Hosts hear of the model within a moment; until then readings are not judged.
    anomalies: list[dict[str, Any]] = []
    path = f"/api/analytics/devices/{IDS[0]}/anomalies"
    async with asyncio.timeout(60):
        start_ms = END_MS
        while not anomalies:
            await send(api, IDS[0], start_ms, 6.0)
            await send(api, IDS[1], start_ms, 0.0)
            start_ms += 20_000
            anomalies = (await api.get(path, params={"detector": f"model:{NAME}@1"})).json()["items"]
    (anomaly,) = anomalies
    assert (anomaly["metric"], anomaly["end_ms"]) == ("power", None)
    assert anomaly["explanation"][0]["metric"] == "power"
    assert anomaly["explanation"][0]["share"] > 0.9
    assert anomaly["expected"] == pytest.approx(12, abs=0.5)
    sound = (await api.get(f"/api/analytics/devices/{IDS[1]}/anomalies")).json()["items"]
    assert [a for a in sound if a["detector"].startswith("model:")] == []
    events = (await api.get(f"/api/devices/{IDS[0]}/events", params={"kinds": "anomaly"})).json()["items"]
    assert f"model:{NAME}@1" in [event["body"]["detector"] for event in events]

    # A file that somebody changed is not set to work.
    again = await cli("train", "outliers", NAME, "--type", TYPE, "--since", "1d", *where)
    assert again.returncode == 0, again.stderr
    file = platform.data_dir / "models" / NAME / "2" / "model.skops"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    refused = await cli("models", "activate", NAME, "--version", "2", *where)
    assert refused.returncode == 1
    assert "its checksum differs" in refused.stderr
    kept = await cli("models", "delete", NAME, "--version", "1", *where)
    assert "is at work" in kept.stderr

    gone = await cli("models", "deactivate", NAME, *where)
    assert gone.returncode == 0, gone.stderr
    async with asyncio.timeout(60):
        while anomaly["end_ms"] is None:
            await send(api, IDS[0], start_ms, 0.0, 2)
            start_ms += 2_000
            (anomaly,) = (await api.get(path, params={"detector": f"model:{NAME}@1"})).json()["items"]
    assert anomaly["end_reason"] in ("detector_removed", "quiet")
    assert (await cli("models", "delete", NAME, "--version", "1", *where)).returncode == 0
    listed = await cli("models", "list", "--json", *where)
    assert '"version":2' in listed.stdout
    assert '"version":1' not in listed.stdout
