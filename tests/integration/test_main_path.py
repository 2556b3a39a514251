"""The main path as a new user walks it: register, publish, ask, be alarmed, correct, retire."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from conftest import Eventually
from field import mosquitto_pub
from prometheus_client.parser import text_string_to_metric_families
from real_mosquitto import MOSQUITTO_PUB

from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient

pytestmark = pytest.mark.ray

NOON_2024_MS = 1_704_110_400_000
README_PAYLOAD = b'{"temperature": 23.5, "humidity": 45.2, "timestamp": "2024-01-01T12:00:00Z"}'
METRICS = {
    "sensorium_readings_committed",
    "sensorium_readings_duplicate",
    "sensorium_dead_letters",
    "sensorium_alarms",
    "sensorium_ingest_to_commit_seconds",
    "sensorium_devices_active",
    "sensorium_activations",
    "sensorium_shards_owned",
    "sensorium_projection_lag",
}


async def register(api: httpx.AsyncClient, device_id: str, device_type: str = "temperature") -> None:
    """As a person does."""
    response = await api.post("/api/devices", json={"device_id": device_id, "device_type": device_type})
    assert response.status_code == 201, response.text


async def publish(client: MqttClient, device_id: str, body: Any, qos: int = 1) -> None:
    """As a device does; returns when the broker has it."""
    await client.publish(f"devices/{device_id}/telemetry", json.dumps(body).encode(), qos)


async def latest(api: httpx.AsyncClient, device_id: str) -> dict[str, Any]:
    """The newest values by metric."""
    response = await api.get(f"/api/devices/{device_id}/data/latest")
    assert response.status_code == 200, response.text
    return {name: newest["value"] for name, newest in response.json()["metrics"].items()}


@pytest.mark.skipif(MOSQUITTO_PUB is None, reason="mosquitto_pub is not installed")
async def test_the_tour_of_the_readme(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually
) -> None:
    response = await api.post(
        "/api/devices",
        json={
            "device_id": "sensor-001",
            "device_type": "temperature",
            "location": {"latitude": 52.52, "longitude": 13.405, "address": "Hall 3, Berlin"},
            "metadata": {"site": "a", "floor": 3},
        },
    )
    assert response.status_code == 201
    await asyncio.to_thread(
        mosquitto_pub, broker.port, "devices/sensor-001/telemetry", README_PAYLOAD, "-q", "1"
    )
    found = await eventually(lambda: latest(api, "sensor-001"))
    assert found == {"temperature": 23.5, "humidity": 45.2}
    # The same message again is recognised: it waits for the one after it, which shows that it was seen.
    for payload in (README_PAYLOAD, b'{"marker": 1, "timestamp": "2024-01-01T12:00:01Z"}'):
        await asyncio.to_thread(
            mosquitto_pub, broker.port, "devices/sensor-001/telemetry", payload, "-q", "1"
        )
    await eventually(lambda: latest(api, "sensor-001"), lambda values: "marker" in values)
    page = (await api.get("/api/devices/sensor-001/data", params={"order": "asc"})).json()
    assert [item["time_ms"] for item in page["items"]] == [NOON_2024_MS, NOON_2024_MS + 1000]


@pytest.mark.skipif(MOSQUITTO_PUB is None, reason="mosquitto_pub is not installed")
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_version_and_quality_of_service(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually, version: str, qos: int
) -> None:
    device_id = f"pub-{version}-{qos}"
    await register(api, device_id)
    for n in range(3):
        payload = json.dumps({"n": n, "timestamp": NOON_2024_MS + n}).encode()
        await asyncio.to_thread(
            mosquitto_pub,
            broker.port,
            f"devices/{device_id}/telemetry",
            payload,
            *("-q", str(qos), "-V", version),
        )
    await eventually(lambda: latest(api, device_id), lambda values: values.get("n") == 2)
    items = (await api.get(f"/api/devices/{device_id}/data", params={"order": "asc"})).json()["items"]
    assert [item["values"]["n"] for item in items] == [0, 1, 2]


async def test_history_pages_and_aggregates(api: httpx.AsyncClient) -> None:
    await register(api, "history-1", "history")
    await register(api, "history-2", "history")
    readings = [{"load": float(n), "timestamp": NOON_2024_MS + n * 1000} for n in range(250)]
    response = await api.post("/api/devices/history-1/data", json=readings)
    assert (response.status_code, response.json()["accepted"]) == (201, 250)
    again = await api.post("/api/devices/history-1/data", json=readings)
    assert (again.status_code, again.json()["duplicates"]) == (200, 250)
    await api.post("/api/devices/history-2/data", json={"load": 1000.0, "timestamp": NOON_2024_MS})

    seen: list[float] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = (
            await api.get("/api/devices/history-1/data", params={"limit": 100, "order": "asc", **cursor})
        ).json()
        seen += [item["values"]["load"] for item in page["items"]]
        pages += 1
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == [float(n) for n in range(250)]
    assert pages == 3

    expected = {
        "mean": [49.5, 149.5, 224.5],
        "min": [0.0, 100.0, 200.0],
        "max": [99.0, 199.0, 249.0],
        "sum": [4950.0, 14950.0, 11225.0],
        "count": [100, 100, 50],
        "first": [0.0, 100.0, 200.0],
        "last": [99.0, 199.0, 249.0],
    }
    for aggregation, values in expected.items():
        answer = await api.get(
            "/api/devices/history-1/data",
            params={
                "metrics": "load",
                "aggregation": aggregation,
                "interval": "100s",
                "start": "2024-01-01T12:00:00Z",
                "end": "2024-01-01T13:00:00Z",
            },
        )
        assert [item["values"]["load"] for item in answer.json()["items"]] == values, aggregation

    answer = await api.get(
        "/api/analytics/aggregated",
        params={
            "device_type": "history",
            "metric": "load",
            "aggregation": "max",
            "interval": "100s",
            "start": "2024-01-01T12:00:00Z",
            "end": "2024-01-01T13:00:00Z",
        },
    )
    items = answer.json()["items"]
    assert [(item["value"], item["devices"]) for item in items] == [(1000.0, 2), (199.0, 1), (249.0, 1)]


async def test_a_rule_raises_once_and_clears_once(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    await register(api, "oven-1", "oven")
    await publish(device_client, "oven-1", {"heat": 20.0})
    await eventually(lambda: latest(api, "oven-1"))
    spec = {
        "name": "Oven too hot",
        "severity": "major",
        "scope": {"device_type": "oven"},
        "condition": {"type": "threshold", "metric": "heat", "operator": ">", "value": 30},
    }
    rule = (await api.post("/api/analytics/rules", json=spec)).json()
    created_s = time.monotonic()

    async def alarms() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await api.get("/api/alarms", params={"device_id": "oven-1"})).json()[
            "items"
        ]
        return found

    async def hot() -> list[dict[str, Any]]:
        await publish(device_client, "oven-1", {"heat": 31.0})
        return await alarms()

    (alarm,) = await eventually(hot)
    assert time.monotonic() - created_s < 2.0, "a rule must reach the devices within 2 s"
    assert (alarm["state"], alarm["severity"], alarm["value"]) == ("ACTIVE", "major", 31.0)

    for heat in (35.0, 40.0):
        await publish(device_client, "oven-1", {"heat": heat})
    await publish(device_client, "oven-1", {"heat": 25.0})
    (cleared,) = await eventually(alarms, lambda found: found and found[0]["state"] == "CLEARED")
    assert (cleared["alarm_id"], cleared["end_value"]) == (alarm["alarm_id"], 25.0)
    assert cleared["end_reason"] == "condition_ended"

    # A replacement takes effect as fast, and a deleted rule leaves no active alarm behind.
    spec["condition"]["value"] = 22  # type: ignore[index]
    assert (await api.put(f"/api/analytics/rules/{rule['rule_id']}", json=spec)).json()["version"] == 2

    async def warm() -> list[dict[str, Any]]:
        await publish(device_client, "oven-1", {"heat": 24.0})
        return [a for a in await alarms() if a["state"] == "ACTIVE"]

    replaced_s = time.monotonic()
    (second,) = await eventually(warm)
    assert time.monotonic() - replaced_s < 2.0
    assert second["rule_version"] == 2
    listed = (await api.get("/api/alarms", params={"device_type": "oven", "state": "ACTIVE"})).json()
    assert [a["alarm_id"] for a in listed["items"]] == [second["alarm_id"]]
    assert (await api.delete(f"/api/analytics/rules/{rule['rule_id']}")).status_code == 204
    ended = await eventually(alarms, lambda found: all(a["state"] == "CLEARED" for a in found))
    assert {a["end_reason"] for a in ended} == {"condition_ended", "rule_removed"}


async def test_a_device_is_changed_retired_and_taken_back(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    await register(api, "meter-1", "meter")
    await api.post("/api/devices/meter-1/data", json={"kwh": 1.0, "timestamp": NOON_2024_MS})
    patched = await api.patch(
        "/api/devices/meter-1", json={"metadata": {"site": "b"}, "location": {"address": "Roof"}}
    )
    assert patched.status_code == 200
    assert (patched.json()["metadata"], patched.json()["location"]["address"]) == ({"site": "b"}, "Roof")
    listed = await api.get("/api/devices", params={"metadata": '{"site": "b"}', "type": "meter"})
    assert [item["device_id"] for item in listed.json()["items"]] == ["meter-1"]

    assert (await api.delete("/api/devices/meter-1")).status_code == 204
    refused = await api.post("/api/devices/meter-1/data", json={"kwh": 2.0})
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    await publish(device_client, "meter-1", {"kwh": 3.0})
    letters = await eventually(lambda: dead_letters(api, "meter-1"), lambda found: len(found) >= 2)
    assert {letter["reason"] for letter in letters} == {"decommissioned"}
    history = (await api.get("/api/devices/meter-1/data")).json()["items"]
    assert [item["values"]["kwh"] for item in history] == [1.0]

    await register(api, "meter-1", "meter")
    assert (await api.post("/api/devices/meter-1/data", json={"kwh": 4.0})).status_code == 201
    history = (await api.get("/api/devices/meter-1/data")).json()["items"]
    assert sorted(item["values"]["kwh"] for item in history) == [1.0, 4.0]


async def dead_letters(api: httpx.AsyncClient, device_id: str) -> list[dict[str, Any]]:
    """What could not be used of a device, newest first."""
    response = await api.get("/api/dead-letters", params={"device_id": device_id})
    found: list[dict[str, Any]] = response.json()["items"]
    return found


async def test_devices_are_listed_in_pages(api: httpx.AsyncClient) -> None:
    wanted = [f"page-{n:02}" for n in range(23)]
    await asyncio.gather(*(register(api, device_id, "paged") for device_id in wanted))
    seen: list[str] = []
    url = "/api/devices?type=paged&limit=10"
    for items in (10, 10, 3):
        response = await api.get(url)
        seen += [item["device_id"] for item in response.json()["items"]]
        assert len(seen) % 10 == items % 10
        url = response.links["next"]["url"] if "next" in response.links else ""
    assert url == ""
    assert seen == wanted


async def test_an_unregistered_device_is_a_dead_letter(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    await publish(device_client, "stranger-1", {"x": 1})
    (letter,) = await eventually(lambda: dead_letters(api, "stranger-1"))
    assert (letter["reason"], letter["source"]) == ("unregistered", "device")
    assert (await api.get("/api/devices/stranger-1")).status_code == 404


async def test_those_who_operate_it_are_served(api: httpx.AsyncClient) -> None:
    assert (await api.get("/healthz")).json() == {"status": "ok"}
    ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"database": "ok", "hosts": "ok"})
    families = {f.name: f for f in text_string_to_metric_families((await api.get("/metrics")).text)}
    assert families.keys() >= METRICS
    owned = sum(sample.value for sample in families["sensorium_shards_owned"].samples)
    assert owned == 1024
    described = (await api.get("/openapi.json")).json()
    assert "/api/devices/{device_id}/data" in described["paths"]
    assert (await api.get("/docs")).status_code == 200
