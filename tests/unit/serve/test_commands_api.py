"""The pages of commands, over a real device."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sensorium.actors.command_waiters import encoder
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import ClaimCommand, CommandReply, Telling
from sensorium.actors.records import Commit
from sensorium.actors.testing import MemoryLog
from sensorium.ingest.dispatch import Dispatcher
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, CommandSide, OneHost, World, world

PATH = "/api/devices/sensor-001/commands"


@pytest.fixture
async def platform() -> AsyncIterator[World]:
    async with world() as running:
        await running.registered()
        yield running


async def send(platform: World, **body: Any) -> httpx.Response:
    return await platform.http.post(PATH, json={"command": "open", **body})


async def answered(platform: World, command_id: str) -> None:
    """The device is told and succeeds."""
    await platform.router.ask(ClaimCommand("sensor-001", command_id, 1))
    await platform.router.ask(CommandReply("sensor-001", command_id, "succeeded", NOW_MS, {"a": 1}))


async def test_a_command_is_somewhere_to_be_looked_at(platform: World) -> None:
    response = await send(platform, parameters={"n": 1}, retries=2)
    assert response.status_code == 202
    command = response.json()
    assert (command["state"], command["ready"], command["retries"]) == ("QUEUED", True, 2)
    assert (await platform.http.get(response.headers["Location"])).json() == command
    await answered(platform, command["command_id"])
    assert (await platform.http.get(response.headers["Location"])).json()["result"] == {"a": 1}


class Direct:
    """Tells devices by one protocol."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Telling]] = []
        self.protocol = "mqtt"

    def over(self, platform: World) -> Dispatcher:
        self.dispatcher = Dispatcher(platform.router, (), self)
        return self.dispatcher

    async def claim(self, device_id: str, command_id: str) -> None:
        await self.dispatcher.claim((device_id, command_id, 1), self.protocol)

    async def ready(self) -> None:
        raise AssertionError("what is sent is told at once or by others")

    async def tell(self, device_id: str, telling: Telling) -> None:
        self.told.append((device_id, telling))


@pytest.mark.slow
async def test_who_sends_tells_with_the_same_commit() -> None:
    direct = Direct()
    async with world(direct=direct) as platform, asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        await direct.over(platform).run(tasks)
        await platform.registered()
        before = platform.host.statistics()["commits"]
        first = (await send(platform)).json()
        while not direct.told:
            await asyncio.sleep(0)
        assert platform.host.statistics()["commits"] == before + 1
        [(device_id, telling)] = direct.told
        assert (device_id, telling.command_id, telling.attempt) == ("sensor-001", first["command_id"], 1)
        assert [step.state for step in platform.store.commands[telling.command_id].steps] == [
            "QUEUED",
            "SENT",
        ]
        # One of a device is on its way at a time; the next stays queued until somebody finds it ready.
        second = (await send(platform)).json()
        assert platform.store.commands[second["command_id"]].state == "QUEUED"
        assert not platform.store.commands[second["command_id"]].ready
        direct.protocol = "coap"
        await platform.registered("other")
        third = (await platform.http.post("/api/devices/other/commands", json={"command": "open"})).json()
        assert platform.store.commands[third["command_id"]].ready
        assert len(direct.told) == 1


async def test_who_waits_gets_the_end_or_the_way_there(platform: World) -> None:
    waiting = asyncio.create_task(send(platform, idempotency_key="k", wait_s=10))
    async with asyncio.timeout(5):
        while not platform.store.commands:
            await asyncio.sleep(0.005)
    [command_id] = platform.store.commands
    await answered(platform, command_id)
    response = await waiting
    assert (response.status_code, response.json()["state"]) == (200, "SUCCEEDED")
    again = await send(platform, idempotency_key="k")
    assert (again.status_code, again.json()) == (200, response.json())
    assert len(platform.store.commands) == 1
    late = await send(platform, wait_s=0.05)
    assert late.status_code == 202
    assert_problem(await send(platform, idempotency_key="k", parameters={"b": 2}), 409, "conflict")


@pytest.mark.parametrize("by_host", [True, False])
async def test_who_waits_is_told_by_the_host_or_by_the_database(
    by_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        return None

    async def silent(_: CommandSide) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    if by_host:
        monkeypatch.setattr(CommandSide, "watch", silent)
    else:
        monkeypatch.setattr(OneHost, "wait", nothing)
    told = []
    commit = MemoryLog.commit
    async with world() as platform, asyncio.timeout(5):
        await platform.registered()

        async def noted(log: MemoryLog, made: Commit) -> None:
            told.append([*made.told])
            await commit(log, made)

        monkeypatch.setattr(MemoryLog, "commit", noted)
        waiting = asyncio.create_task(send(platform, wait_s=10))
        while not platform.store.commands:
            await asyncio.sleep(0)
        [command_id] = platform.store.commands
        await answered(platform, command_id)
        assert (await waiting).json()["state"] == "SUCCEEDED"
        assert told[-1] == ([command_id] if by_host else [])


async def test_a_host_says_when_nothing_has_ended(platform: World) -> None:
    assert await platform.host.ended(encoder.encode(("nothing", 0.01))) == b""
    with pytest.raises(InvalidMessage):
        await platform.host.ended(b"\xc1")
    assert await platform.router.ended("sensor-001", "nothing", 0.01) is None


async def test_cancelling(platform: World) -> None:
    place = (await send(platform)).headers["Location"]
    assert (await platform.http.delete(place)).json()["state"] == "CANCELLED"
    assert_problem(await platform.http.delete(place), 409, "conflict")
    assert_problem(await platform.http.delete(f"{PATH}/nothing"), 404, "not_found")
    assert_problem(await platform.http.get(f"{PATH}/nothing"), 404, "not_found")


async def test_lists(platform: World) -> None:
    for name in ("open", "close", "open"):
        await platform.http.post(PATH, json={"command": name})
    assert len((await platform.http.get(PATH, params={"command": "open"})).json()["items"]) == 2
    first = (await platform.http.get("/api/commands", params={"state": "QUEUED", "limit": 2})).json()
    rest = (
        await platform.http.get(
            "/api/commands", params={"state": "QUEUED", "limit": 2, "cursor": first["next"]}
        )
    ).json()
    assert len({c["command_id"] for c in (*first["items"], *rest["items"])}) == 3
    assert rest["next"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"command": ""},
        {"command": "a\nb"},
        {"command": 3},
        {"timeout_s": 0},
        {"retries": 11},
        {"wait_s": 61},
        {"expires_at": "yesterday"},
        {"expires_at": NOW_MS},
        {"parameters": {"a": "\0"}},
        {"parameters": {"a": 2**70}},
        {"parameters": {"a": "x" * 40_000}},
        {"unknown": 1},
    ],
)
async def test_what_cannot_be_sent(platform: World, body: dict[str, Any]) -> None:
    assert_problem(await send(platform, **body), 422, "invalid")
    assert not platform.store.commands


async def test_a_full_or_unknown_or_retired_device_refuses(platform: World) -> None:
    for _ in range(100):
        assert (await send(platform)).status_code == 202
    full = await send(platform)
    assert_problem(full, 429, "overloaded")
    assert full.headers["Retry-After"]
    unknown = await platform.http.post("/api/devices/nobody/commands", json={"command": "open"})
    assert_problem(unknown, 404, "not_found")
    await platform.http.delete("/api/devices/sensor-001")
    assert_problem(await send(platform), 409, "conflict")
