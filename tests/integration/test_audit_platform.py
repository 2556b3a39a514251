"""The audit log of a running platform: who is named through the proxy, from a notebook and by the CLI."""

import httpx
import pytest
import ray
from platform_process import PlatformProcess, run_sensorium

from sensorium.actors.fleet import Fleet

pytestmark = pytest.mark.ray


async def test_changes_are_found_by_who_made_them(
    platform: PlatformProcess, api: httpx.AsyncClient, fleet: Fleet
) -> None:
    device = {"device_id": "audit-1", "device_type": "audited"}
    made = await api.post("/api/devices", json=device, headers={"X-Sensorium-By": "ada"})
    assert made.headers["X-Request-ID"]
    ray.get(fleet.device("audit-1").patch.remote(metadata={"floor": 3}))
    entries = (await api.get("/api/audit", params={"thing": "audit-1"})).json()["items"]
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
