"""Bulk jobs: made over the API, given out once each at their pace, resumed, cancelled, and followed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from sensorium.actors.commands import MAX_OPEN
from sensorium.actors.messages import CancelCommand, ClaimCommand, CommandReply, SendCommand
from sensorium.serve import spreader as spreader_module
from sensorium.serve.spreader import Spreader, command_id_of
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, World, world

COMMANDS, TWINS = "/api/commands/bulk", "/api/twins/bulk"
IDS = [f"d-{n:02}" for n in range(20)]
ALL: dict[str, Any] = {"command": "open", "select": {"metadata": {"site": "a"}}, "per_second": 10_000}


@pytest.fixture
async def platform() -> AsyncIterator[World]:
    async with world() as running:
        for device_id in IDS:
            await running.registered(device_id, metadata={"site": "a"})
        await running.registered("other", metadata={"site": "b"})
        yield running


@asynccontextmanager
async def spreading(platform: World, clock_ms: Callable[[], int] = lambda: NOW_MS) -> AsyncIterator[Spreader]:
    spreader = Spreader(platform.router, platform.jobs, platform.commands, clock_ms)
    task = asyncio.create_task(spreader.run())
    try:
        async with asyncio.timeout(20):
            yield spreader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def made(platform: World, path: str, **body: Any) -> str:
    response = await platform.http.post(path, json=body)
    assert response.status_code == 202, response.text
    status = response.json()
    assert response.headers["Location"] == f"{path}/{status['job_id']}"
    job_id: str = status["job_id"]
    return job_id


async def status(platform: World, job_id: str, path: str = COMMANDS) -> dict[str, Any]:
    found: dict[str, Any] = (await platform.http.get(f"{path}/{job_id}")).json()
    return found


async def until(platform: World, job_id: str, path: str = COMMANDS, **wanted: Any) -> dict[str, Any]:
    while True:
        found = await status(platform, job_id, path)
        if all(found[name] == value for name, value in wanted.items()):
            return found
        await asyncio.sleep(0.01)


async def end(platform: World, job_id: str, device_id: str, result: str) -> None:
    command_id = command_id_of(job_id, device_id)
    await platform.router.ask(ClaimCommand(device_id, command_id, 1))
    await platform.router.ask(CommandReply(device_id, command_id, result, NOW_MS, None, "stuck"))


async def test_each_chosen_device_is_given_it_and_failures_are_listed(platform: World) -> None:
    job_id = await made(platform, COMMANDS, **ALL, parameters={"n": 1})
    assert (await status(platform, job_id))["pending"] == len(IDS)
    await platform.http.delete(f"/api/devices/{IDS[3]}")
    async with spreading(platform):
        found = await until(platform, job_id, state="DONE")
    assert (found["given"], found["refused"], found["finished"]) == (19, 1, False)
    assert {c.device_id for c in platform.store.commands.values()} == set(IDS) - {IDS[3]}
    for n, device_id in enumerate(set(IDS) - {IDS[3]}):
        await end(platform, job_id, device_id, "failed" if n == 0 else "succeeded")
    found = await status(platform, job_id)
    assert (found["finished"], found["commands"]) == (True, {"FAILED": 1, "SUCCEEDED": 18})
    reasons = {f["device_id"]: (f["state"], f["reason"].split(":")[0]) for f in found["failures"]}
    assert reasons[IDS[3]] == ("refused", "conflict")
    assert sorted(reasons.values()) == [("FAILED", "stuck"), ("refused", "conflict")]
    path = f"{COMMANDS}/{job_id}/devices"
    first = (await platform.http.get(path, params={"limit": 15})).json()
    rest = (await platform.http.get(path, params={"limit": 15, "cursor": first["next"]})).json()
    items = first["items"] + rest["items"]
    assert [item["device_id"] for item in items] == IDS
    assert items[3]["command_state"] is None
    assert items[4]["command_id"] == command_id_of(job_id, IDS[4])
    refused = (await platform.http.get(path, params={"state": "refused"})).json()["items"]
    assert [item["device_id"] for item in refused] == [IDS[3]]
    of_job = (await platform.http.get("/api/commands", params={"job_id": job_id, "state": "FAILED"})).json()
    assert [c["job_id"] for c in of_job["items"]] == [job_id]
    assert (await platform.http.get("/api/commands", params={"job_id": "0"})).json()["items"] == []
    listed = (await platform.http.get(COMMANDS)).json()["items"]
    assert [job["job_id"] for job in listed] == [job_id]


async def test_who_goes_on_after_a_crash_gives_nothing_twice(platform: World) -> None:
    """It crashes after a batch was given and before that was noted."""
    job_id = await made(platform, COMMANDS, **ALL)
    platform.jobs.crashing = True
    async with spreading(platform):
        while len(platform.store.commands) < len(IDS):
            await asyncio.sleep(0.005)
    platform.jobs.crashing = False
    assert (await status(platform, job_id))["pending"] == len(IDS)
    for device_id in IDS:
        await end(platform, job_id, device_id, "succeeded")
    before = dict(platform.store.commands)
    async with spreading(platform) as spreader:
        await until(platform, job_id, state="DONE", given=len(IDS))
        assert spreader.statistics()["given"] == 0, "the store knew them all"
    assert platform.store.commands == before


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreader_module, "FULL_RETRY_S", 0.05)
    monkeypatch.setattr(spreader_module, "LOOK_EVERY_S", 0.01)


async def filled(platform: World, device_id: str) -> None:
    """It has as many open commands as a device may have."""
    for n in range(MAX_OPEN):
        far_ms = NOW_MS + 10**9
        await platform.router.ask(SendCommand(device_id, f"full-{n}", "wait", {}, 1_000, far_ms, 0, None))


@pytest.mark.usefixtures("hasty")
async def test_who_has_too_many_open_commands_is_tried_again(platform: World) -> None:
    await filled(platform, IDS[5])
    job_id = await made(platform, COMMANDS, **ALL)
    async with spreading(platform, lambda: NOW_MS) as spreader:
        found = await until(platform, job_id, given=19, pending=1)
        while not spreader.statistics()["resting"]:
            await asyncio.sleep(0.005)
        # It keeps nobody else from being given theirs.
        await until(
            platform, await made(platform, COMMANDS, **{**ALL, "select": {"device_ids": ["other"]}}), given=1
        )
        assert (found["state"], found["refused"]) == ("RUNNING", 0)
        await platform.router.ask(CancelCommand(IDS[5], "full-7"))
        found = await until(platform, job_id, state="DONE")
    assert (found["given"], found["refused"]) == (20, 0)
    assert command_id_of(job_id, IDS[5]) in platform.store.commands


@pytest.mark.usefixtures("hasty")
async def test_it_is_refused_once_the_command_would_have_expired(platform: World) -> None:
    await filled(platform, IDS[5])
    now_ms = NOW_MS
    job_id = await made(platform, COMMANDS, **ALL)
    async with spreading(platform, lambda: now_ms) as spreader:
        while not spreader.statistics()["resting"]:
            await asyncio.sleep(0.005)
        now_ms += 2 * 86_400_000
        found = await until(platform, job_id, state="DONE")
    assert (found["given"], found["refused"]) == (19, 1)
    assert [f["reason"].split(":")[0] for f in found["failures"]] == ["overloaded"]


@pytest.mark.usefixtures("hasty")
async def test_who_is_waited_for_can_be_cancelled(platform: World) -> None:
    await filled(platform, IDS[5])
    job_id = await made(platform, COMMANDS, **ALL)
    async with spreading(platform, lambda: NOW_MS) as spreader:
        while not spreader.statistics()["resting"]:
            await asyncio.sleep(0.005)
        await platform.http.delete(f"{COMMANDS}/{job_id}")
        found = await until(platform, job_id, state="CANCELLED")
        assert (found["cancelled"], found["given"]) == (1, 19)
        while spreader.statistics()["resting"]:
            await asyncio.sleep(0.005)


async def test_it_keeps_its_pace(platform: World) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    job_id = await made(platform, COMMANDS, **{**ALL, "per_second": 40})
    async with spreading(platform):
        await until(platform, job_id, state="DONE")
    assert loop.time() - began_s >= (len(IDS) - 1) / 40


async def test_cancelling_stops_it_and_what_is_open(platform: World) -> None:
    job_id = await made(platform, COMMANDS, **{**ALL, "per_second": 10})
    async with spreading(platform):
        while not (await status(platform, job_id))["given"]:
            await asyncio.sleep(0.01)
        response = await platform.http.delete(f"{COMMANDS}/{job_id}")
        assert (response.status_code, response.json()["state"]) == (202, "CANCELLING")
        found = await until(platform, job_id, state="CANCELLED")
    assert found["cancelled"] + found["given"] == len(IDS)
    assert found["cancelled"] > 0
    assert found["commands"] == {"CANCELLED": found["given"]}
    assert found["finished"]


async def test_what_is_desired_of_many(platform: World) -> None:
    body = {"desired": {"a": {"b": 1}}, "select": {"device_ids": IDS[:3]}, "by": "alice"}
    job_id = await made(platform, TWINS, **body)
    async with spreading(platform):
        found = await until(platform, job_id, TWINS, state="DONE")
    assert (found["given"], found["finished"], found["commands"]) == (3, True, {})
    assert set(platform.store.twins) == set(IDS[:3])
    assert platform.store.twins[IDS[0]].desired.fields["/a/b"].by == "alice"
    assert_problem(await platform.http.get(f"{COMMANDS}/{job_id}"), 404, "not_found")
    assert (await platform.http.get(TWINS)).json()["items"][0]["job_id"] == job_id


async def test_the_same_key_is_the_same_job(platform: World) -> None:
    keyed = {**ALL, "idempotency_key": "k"}
    assert await made(platform, COMMANDS, **keyed) == await made(platform, COMMANDS, **keyed)
    other = await platform.http.post(COMMANDS, json={**keyed, "command": "close"})
    assert_problem(other, 409, "conflict")
    assert await made(platform, COMMANDS, **ALL) != await made(platform, COMMANDS, **ALL)


@pytest.mark.parametrize(
    "body",
    [
        {"command": "open"},
        {**ALL, "select": {"type": "x"}},
        {**ALL, "select": {"device_ids": []}},
        {**ALL, "select": {"device_type": "none of these"}},
        {**ALL, "per_second": 0},
        {**ALL, "expires_at": 5},
        {**ALL, "parameters": {"a": "\0"}},
    ],
)
async def test_what_is_no_job_is_refused(platform: World, body: dict[str, Any]) -> None:
    response: httpx.Response = await platform.http.post(COMMANDS, json=body)
    assert_problem(response, 422, "invalid")
    assert not platform.jobs.jobs
