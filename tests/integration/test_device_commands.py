"""Commands to devices over a real broker: answers, order, silence, absence, and processes that are killed."""

import asyncio
import os
import random
import signal
import time
from typing import Any

import httpx
import pytest
import ray
from commanded import Commanded, commanded, stay_silent, succeed
from conftest import Eventually
from real_mosquitto import RealMosquitto

from sensorium.actors.fleet import Fleet
from sensorium.actors.runtime import NAMESPACE
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

ENDS = {"SUCCEEDED", "FAILED", "TIMED_OUT", "EXPIRED", "CANCELLED"}


async def register(api: httpx.AsyncClient, *device_ids: str) -> None:
    for device_id in device_ids:
        response = await api.post("/api/devices", json={"device_id": device_id, "device_type": "commanded"})
        assert response.status_code == 201, response.text


async def send(api: httpx.AsyncClient, device_id: str, command: str, **more: Any) -> httpx.Response:
    response = await api.post(f"/api/devices/{device_id}/commands", json={"command": command, **more})
    assert response.status_code in (200, 202), response.text
    return response


async def look(api: httpx.AsyncClient, device_id: str, command_id: str) -> dict[str, Any]:
    response = await api.get(f"/api/devices/{device_id}/commands/{command_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def states(command: dict[str, Any]) -> list[str]:
    return [step["state"] for step in command["steps"]]


async def test_a_caller_that_waits_gets_the_answer(api: httpx.AsyncClient, broker: BrokerAddress) -> None:
    await register(api, "told-1")
    async with commanded(broker, "told-1", "told-1") as devices:
        response = await send(api, "told-1", "echo", parameters={"a": [1, None]}, wait_s=20)
        assert response.status_code == 200
        command = response.json()
        assert (command["state"], command["result"]) == ("SUCCEEDED", {"a": [1, None]})
        assert states(command) == ["QUEUED", "SENT", "SUCCEEDED"]
        assert devices.told[0]["attempt"] == 1
        again = await send(api, "told-1", "echo", idempotency_key="k", wait_s=20)
        same = await send(api, "told-1", "echo", idempotency_key="k", wait_s=20)
        assert same.json() == again.json()
        assert len(devices.told) == 2
    page = (await api.get("/api/devices/told-1/commands", params={"state": "SUCCEEDED", "limit": 1})).json()
    assert [c["command_id"] for c in page["items"]] == [again.json()["command_id"]]
    rest = (
        await api.get("/api/devices/told-1/commands", params={"state": "SUCCEEDED", "cursor": page["next"]})
    ).json()
    assert [c["command_id"] for c in rest["items"]] == [command["command_id"]]


async def test_bad_and_slow_answers_do_not_block_the_next(
    api: httpx.AsyncClient, broker: BrokerAddress, eventually: Eventually
) -> None:
    await register(api, "told-2")
    answers: dict[str, Any] = {
        "bad": b'{"status": "perha',
        "long": {"status": "accepted"},
        "fail": {"status": "failed", "reason": "no paper"},
        "ok": {"status": "succeeded"},
    }
    async with commanded(broker, "told-2", "told-2") as devices:
        devices.answers = lambda told: answers[told["command"]]
        sent = [(await send(api, "told-2", name)).json()["command_id"] for name in answers]
        bad, long, fail, ok = sent

        async def all_of_them() -> list[dict[str, Any]]:
            return [await look(api, "told-2", command_id) for command_id in sent]

        found = await eventually(all_of_them, lambda c: [x["state"] for x in c][3] in ENDS)
        assert [c["state"] for c in found] == ["FAILED", "DELIVERED", "FAILED", "SUCCEEDED"]
        assert found[0]["reason"].startswith("bad reply: malformed_json")
        assert found[2]["reason"] == "no paper"
        assert devices.ids() == [bad, long, fail, ok]
        cancelled = await api.delete(f"/api/devices/told-2/commands/{long}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "CANCELLED")
        assert (await api.delete(f"/api/devices/told-2/commands/{long}")).status_code == 409


async def test_silence_times_out_and_only_retries_tell_again(
    api: httpx.AsyncClient, broker: BrokerAddress
) -> None:
    await register(api, "told-3")
    async with commanded(broker, "told-3", "told-3") as devices:
        devices.answers = stay_silent
        once = (await send(api, "told-3", "x", timeout_s=0.3, wait_s=20)).json()
        assert (once["state"], once["attempt"]) == ("TIMED_OUT", 1)
        thrice = (await send(api, "told-3", "y", timeout_s=0.3, retries=2, wait_s=20)).json()
        assert (thrice["state"], thrice["attempt"]) == ("TIMED_OUT", 3)
        assert states(thrice) == ["QUEUED", "SENT", "QUEUED", "SENT", "QUEUED", "SENT", "TIMED_OUT"]
        assert devices.ids() == [once["command_id"], *[thrice["command_id"]] * 3]
        assert [told["attempt"] for told in devices.told] == [1, 1, 2, 3]


async def test_who_is_away_is_told_on_return_unless_it_expired(
    api: httpx.AsyncClient,
    broker: BrokerAddress,
    device_client: MqttClient,
    mosquitto: RealMosquitto | None,
    eventually: Eventually,
) -> None:
    await register(api, "told-4", "told-5")
    await device_client.publish("devices/told-4/status", b"offline", retain=True)

    async def away() -> Any:
        return (await api.get("/api/devices/told-4")).json()["connectivity"]

    await eventually(away, lambda connectivity: connectivity == "offline")
    waiting = (await send(api, "told-4", "later")).json()["command_id"]
    expires_ms = time.time_ns() // 1_000_000 + 700
    gone = (await send(api, "told-4", "never", expires_at=expires_ms, wait_s=20)).json()
    assert (gone["state"], states(gone)) == ("EXPIRED", ["QUEUED", "EXPIRED"])
    async with commanded(broker, "told-4", "told-4") as devices:
        assert (await look(api, "told-4", waiting))["state"] == "QUEUED"
        await device_client.publish("devices/told-4/status", b'{"status": "online"}', retain=True)
        await eventually(lambda: look(api, "told-4", waiting), lambda c: c["state"] == "SUCCEEDED")
        assert devices.ids() == [waiting]
    if mosquitto is None:
        return  # the embedded broker does not say that nobody listens
    asleep = (await send(api, "told-5", "later")).json()["command_id"]
    await eventually(lambda: look(api, "told-5", asleep), lambda c: states(c)[-2:] == ["SENT", "QUEUED"])
    async with commanded(broker, "told-5", "told-5") as devices:
        await device_client.publish("devices/told-5/telemetry", b'{"awake": true}')
        await eventually(lambda: look(api, "told-5", asleep), lambda c: c["state"] == "SUCCEEDED")
        assert [told["attempt"] for told in devices.told] == [1]


def process_of(name: str) -> int:
    """The process of the living actor whose name starts so, once there is one: it may be on its way back."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(name):
                return int(ray.get(ray.get_actor(actor["name"], NAMESPACE).pid.remote(), timeout=20))
        time.sleep(0.1)
    raise AssertionError(f"no actor {name}")


async def test_kills_lose_no_command_and_repeat_none(
    api: httpx.AsyncClient, broker: BrokerAddress, fleet: Fleet, eventually: Eventually
) -> None:
    """Hosts and the dispatcher are killed while commands are under way."""
    device_ids = [f"killed-{n:02}" for n in range(20)]
    await register(api, *device_ids)
    random.seed(4711)
    sent: list[tuple[str, str]] = []
    stop = asyncio.Event()

    async def keep_sending() -> None:
        while not stop.is_set():
            device_id = random.choice(device_ids)
            response = await api.post(
                f"/api/devices/{device_id}/commands", json={"command": "echo", "timeout_s": 8}
            )
            if response.status_code in (200, 202):
                sent.append((device_id, response.json()["command_id"]))
            await asyncio.sleep(0.02)

    async with commanded(broker, "killed", *device_ids) as devices:
        sending = asyncio.create_task(keep_sending())
        try:
            for name in ("commands-0.", "host-0.", "commands-0."):
                before = len(devices.told)
                await eventually(_count(devices), lambda n, b=before: n >= b + 20, 60.0)
                os.kill(await asyncio.to_thread(process_of, name), signal.SIGKILL)
        finally:
            before = len(devices.told)
            await eventually(_count(devices), lambda n: n >= before + 20, 60.0)
            stop.set()
            await sending

        async def unfinished() -> list[Any]:
            found = []
            for state in ("QUEUED", "SENT", "DELIVERED"):
                page = (await api.get("/api/commands", params={"state": state, "limit": 1000})).json()
                found += [c for c in page["items"] if c["device_id"].startswith("killed-")]
            return found

        await eventually(unfinished, lambda c: not c, 60.0)
        told = devices.ids()
        assert len(told) == len(set(told)), "told twice under one id"
    ended = {command_id: await look(api, device_id, command_id) for device_id, command_id in sent}
    assert all(c["state"] in ("SUCCEEDED", "TIMED_OUT") for c in ended.values())
    for command in ended.values():
        assert sum(step["state"] in ENDS for step in command["steps"]) == 1
    lost = [c for c in ended.values() if c["state"] == "TIMED_OUT"]
    # What was between its claim and the broker when the dispatcher died may end without having been told, and
    # one that has just come back claims what has waited for it.
    assert len(lost) <= len(ended) // 5, [c["steps"] for c in lost]
    for device_id in device_ids:
        ours = [told["command_id"] for told in devices.told if told["device_id"] == device_id]
        numbers = [ended[c]["number"] for c in ours if c in ended]
        assert numbers == sorted(numbers), "out of order"


def _count(devices: Commanded) -> Any:
    async def count() -> int:
        return len(devices.told)

    return count


async def test_a_notebook_commands_a_device(
    api: httpx.AsyncClient, broker: BrokerAddress, fleet: Fleet
) -> None:
    await register(api, "told-6")
    async with commanded(broker, "told-6", "told-6") as devices:
        devices.answers = succeed
        ref = fleet.device("told-6").command.remote("echo", {"n": 1}, wait_s=20)
        command = await asyncio.to_thread(ray.get, ref, timeout=30)
        assert (command.state, command.result) == ("SUCCEEDED", {"n": 1})
        assert len(devices.told) == 1
