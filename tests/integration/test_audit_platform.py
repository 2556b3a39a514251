"""The audit log of a running platform: who is named through the proxy, from a notebook and by the CLI."""

import asyncio
from typing import Any

import httpx
import pytest
import ray
from platform_process import PlatformProcess, run_sensorium

from sensorium.actors.fleet import Fleet

pytestmark = pytest.mark.ray


async def listed(api: httpx.AsyncClient, count: int, **filters: str) -> list[dict[str, Any]]:
    """The entries, once there are so many."""
    async with asyncio.timeout(20):
        while True:
            found: list[dict[str, Any]] = (await api.get("/api/audit", params=filters)).json()["items"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_changes_are_found_by_who_made_them(
    platform: PlatformProcess, api: httpx.AsyncClient, fleet: Fleet
) -> None:
    device = {"device_id": "audit-1", "device_type": "audited"}
    made = await api.post("/api/devices", json=device, headers={"X-Sensorium-By": "ada"})
    assert made.headers["X-Request-ID"]
    ray.get(fleet.device("audit-1").patch.remote(metadata={"floor": 3}))
    # An entry joins the chain within a second of its commit.
    entries = await listed(api, 2, thing="audit-1")
    assert [(entry["what"], entry["way"]) for entry in entries] == [
        ("device.change", "notebook"),
        ("device.register", "rest"),
    ]
    assert (entries[1]["by"], entries[1]["client"]) == ("ada", "127.0.0.1")
    assert entries[1]["request_id"] == made.headers["X-Request-ID"]
    assert (entries[0]["before"]["metadata"], entries[0]["after"]["metadata"]) == ({}, {"floor": 3})
    head = (await api.get("/api/audit/head")).json()
    done = run_sensorium("audit", "verify", "--data-dir", platform.data_dir, "--since-hash", head["hash"])
    assert "all as they were written" in done.stdout


async def test_a_device_is_deleted_to_the_end(platform: PlatformProcess, api: httpx.AsyncClient) -> None:
    await api.post("/api/devices", json={"device_id": "erased-1", "device_type": "audited"})
    for number in range(3):
        sent = await api.post(
            "/api/devices/erased-1/data", json={"t": number, "timestamp": 1_700_000_000_000 + number}
        )
        assert sent.status_code == 201, sent.text
    asked = await api.delete("/api/devices/erased-1", params={"purge": "true"})
    assert asked.status_code == 202, asked.text
    async with asyncio.timeout(120):
        # A second and more between two flushes of the rollups, which have to come so far.
        while (job := (await api.get(asked.headers["Location"])).json())["state"] != "DONE":
            await asyncio.sleep(0.5)
    assert (job["counts"]["readings"], job["counts"]["registrations"]) == (3, 1)
    assert (await api.get("/api/devices/erased-1")).status_code == 404
    told = await listed(api, 1, thing="erased-1", what="device.erased")
    assert told[0]["note"]["counts"]["readings"] == 3
