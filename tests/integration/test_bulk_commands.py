"""Commands to many devices on a real platform, and every process killed while they are given out."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from commanded import commanded
from conftest import Eventually
from faults import (
    Fault,
    Target,
    kill_api,
    kill_coordinator,
    kill_database,
    kill_dispatcher,
    kill_host,
    restart_broker,
)
from platform_process import PlatformProcess
from real_mosquitto import RealMosquitto

from sensorium.actors.fleet import Fleet
from sensorium.ingest.mqtt_address import BrokerAddress

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
DEVICES = 60
ENDS = {"SUCCEEDED", "FAILED", "TIMED_OUT", "EXPIRED", "CANCELLED"}


async def registered(api: httpx.AsyncClient, name: str) -> list[str]:
    ids = [f"{name}-{n:02}" for n in range(DEVICES)]
    for device_id in ids:
        body = {"device_id": device_id, "device_type": name}
        assert (await api.post("/api/devices", json=body)).status_code == 201
    return ids


async def given(api: httpx.AsyncClient, device_type: str, **more: Any) -> str:
    body = {"command": "echo", "select": {"device_type": device_type}, **more}
    response = await api.post("/api/commands/bulk", json=body)
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def status(api: httpx.AsyncClient, job_id: str) -> Callable[[], Awaitable[dict[str, Any]]]:
    """How far it is; nothing while nobody answers."""

    async def look() -> dict[str, Any]:
        try:
            response = await api.get(f"/api/commands/bulk/{job_id}")
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = response.json() if response.status_code == 200 else {}
        return found

    return look


async def told_once(api: httpx.AsyncClient, job_id: str, ids: list[str], told: list[str]) -> dict[str, int]:
    """Check that each device has one command, which ended once, and was told at most once; the states."""
    assert len(told) == len(set(told)), "told twice under one id"
    page = (await api.get(f"/api/commands/bulk/{job_id}/devices", params={"limit": 1000})).json()
    assert [(item["device_id"], item["state"]) for item in page["items"]] == [(i, "given") for i in ids]
    for item in page["items"]:
        path = f"/api/devices/{item['device_id']}/commands"
        [command] = (await api.get(path)).json()["items"]
        assert command["command_id"] == item["command_id"]
        assert sum(step["state"] in ENDS for step in command["steps"]) == 1, command["steps"]
        assert (item["command_id"] in told) or command["state"] == "TIMED_OUT", command["steps"]
    counts: dict[str, int] = (await api.get(f"/api/commands/bulk/{job_id}")).json()["commands"]
    return counts


async def test_all_of_a_type_do_it(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually
) -> None:
    ids = await registered(api, "bulk-all")
    async with commanded(broker, "bulk-all", *ids) as devices:
        job_id = await given(api, "bulk-all", parameters={"n": 1}, per_second=200)
        await eventually(status(api, job_id), lambda s: s.get("finished"), 30.0)
        assert sorted(told["device_id"] for told in devices.told) == ids
        assert await told_once(api, job_id, ids, devices.ids()) == {"SUCCEEDED": DEVICES}


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("bulk-control", [kill_dispatcher, kill_api, kill_coordinator]),
        ("bulk-data", [kill_database, kill_host, restart_broker]),
    ],
)
async def test_whoever_is_killed_each_device_is_told_once(
    platform: PlatformProcess,
    api: httpx.AsyncClient,
    broker: BrokerAddress,
    mosquitto: RealMosquitto | None,
    fleet: Fleet,
    eventually: Eventually,
    name: str,
    kills: list[Fault],
) -> None:
    ids = await registered(api, name)
    async with commanded(broker, name, *ids) as devices:
        job_id = await given(api, name, timeout_s=20, per_second=8)
        for n, do in enumerate(kills):
            enough = DEVICES * (n + 1) // (len(kills) + 2)
            await eventually(_count(devices), lambda count, e=enough: count >= e, 60.0)
            if do is not restart_broker or mosquitto is not None:
                await do(Target(platform, mosquitto))
        await eventually(status(api, job_id), lambda s: s.get("finished"), 90.0)
        counts = await told_once(api, job_id, ids, devices.ids())
    # What was between its claim and the broker, or had no way to answer, ends by its timeout.
    assert counts.get("SUCCEEDED", 0) + counts.get("TIMED_OUT", 0) == DEVICES, counts
    assert counts.get("TIMED_OUT", 0) <= DEVICES // 5, counts

    async def down() -> Any:
        return (await asyncio.to_thread(fleet.statistics))["down"]

    await eventually(down, lambda names: not names, 60.0)


def _count(devices: Any) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return len(devices.told)

    return count


async def test_cancelling(api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually) -> None:
    ids = await registered(api, "bulk-cancel")
    async with commanded(broker, "bulk-cancel", *ids) as devices:
        devices.answers = lambda _: {"status": "accepted"}
        job_id = await given(api, "bulk-cancel", per_second=20)
        await eventually(_count(devices), lambda n: n >= 10)
        assert (await api.delete(f"/api/commands/bulk/{job_id}")).status_code == 202
        found = await eventually(status(api, job_id), lambda s: s.get("finished"), 30.0)
        assert found["state"] == "CANCELLED"
        assert found["commands"] == {"CANCELLED": found["given"]}
        assert found["cancelled"] == DEVICES - found["given"] > 0


async def test_the_examples_do_what_the_page_says(
    platform: PlatformProcess, api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually
) -> None:
    for n in range(3):
        body = {"device_id": f"bulk-doc-{n}", "device_type": "bulk-doc", "metadata": {"site": "a"}}
        assert (await api.post("/api/devices", json=body)).status_code == 201
    section = PAGE.read_text().split("\n## To many devices\n")[1].split("\n## ")[0]
    over_http, shell = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    url = f"http://127.0.0.1:{platform.http_port}"
    async with commanded(broker, "bulk-doc", *[f"bulk-doc-{n}" for n in range(3)]):
        script = over_http.replace("http://127.0.0.1:8000", url).replace('"climate"', '"bulk-doc"')
        done = await run(script)
        assert '"total":3' in done.stdout, done.stdout
        assert '"CANCELLING"' in done.stdout, done.stdout

        async def cancelled() -> Any:
            return (await api.get("/api/commands/bulk", params={"limit": 1})).json()["items"][0]["state"]

        await eventually(cancelled, lambda state: state == "CANCELLED")
        script = shell.replace("type=climate", f"type=bulk-doc --url {url}").replace(" || true", "")
        done = await run(f"PATH={Path(sys.executable).parent}:$PATH; {script}")
        found = (await api.get(f"/api/commands/bulk/{done.stdout.strip()}")).json()
        assert found["commands"] == {"SUCCEEDED": 3}


async def run(script: str) -> "subprocess.CompletedProcess[str]":
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (script, done.stderr)
    return done
