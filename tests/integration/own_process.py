"""What the API says of devices that have a process of their own."""

import time
from urllib.parse import quote

import httpx
from conftest import Eventually


async def process_of(api: httpx.AsyncClient, device_id: str) -> str | None:
    """The process that the device says it is in, if it is its own."""
    response = await api.get(f"/api/devices/{quote(device_id, safe='')}")
    assert response.status_code == 200, response.text
    found: str | None = response.json()["process"]
    return found


async def isolated(api: httpx.AsyncClient, device_id: str, yes: bool, eventually: Eventually) -> float:
    """Return once it is, or is not, in a process of its own: after how many seconds."""
    began_s = time.monotonic()
    await eventually(
        lambda: process_of(api, device_id),
        lambda process: process == (f"device:{device_id}" if yes else None),
        30.0,
    )
    return time.monotonic() - began_s


async def shown(api: httpx.AsyncClient) -> tuple[dict[str, str], dict[str, int]]:
    """What `/api/hosts` says of each isolated device, and how many shards its process has."""
    told = (await api.get("/api/hosts")).json()
    states = {one["device_id"]: one["state"] for one in told["isolated"]}
    return states, {host["device"]: host["shards"] for host in told["items"] if host["device"]}
