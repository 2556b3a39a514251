"""Callers that send commands and wishes while every process is killed: none is lost, none is told twice."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from commanded import commanded
from conftest import Eventually
from faults import (
    Target,
    kill_api,
    kill_coordinator,
    kill_database,
    kill_dispatcher,
    restart_broker,
)
from platform_process import PlatformProcess
from real_mosquitto import RealMosquitto

from sensorium.actors.fleet import Fleet
from sensorium.ingest.mqtt_address import BrokerAddress

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

DEVICES = 12
OPEN = ("QUEUED", "SENT", "DELIVERED")
SENDERS = 3
PAUSE_S = 0.05
BETWEEN_KILLS_COMMANDS = 25


class Sender:
    """Sends commands with keys of their own, each until it is accepted: it must not lose one."""

    def __init__(self, url: str, name: str, ids: list[str], seed: int) -> None:
        self._url = url
        self._name = name
        self._ids = ids
        self._chance = random.Random(seed)
        self.accepted: dict[str, tuple[str, str]] = {}
        """By key: the device and the command's id."""

    async def run(self, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=15) as api:
            n = 0
            while not stop.is_set():
                n += 1
                await self._send(api, f"{self._name}-{n}", self._chance.choice(self._ids))
                await asyncio.sleep(PAUSE_S)

    async def _send(self, api: httpx.AsyncClient, key: str, device_id: str) -> None:
        body = {"command": "echo", "parameters": {"key": key}, "timeout_s": 15, "idempotency_key": key}
        while True:
            try:
                response = await api.post(f"/api/devices/{device_id}/commands", json=body)
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code in (200, 202):
                self.accepted[key] = (device_id, response.json()["command_id"])
                return
            assert response is None or response.status_code in (429, 500, 502, 503, 504), response.text
            await asyncio.sleep(0.2)


async def test_kills_while_callers_send(
    platform: PlatformProcess,
    api: httpx.AsyncClient,
    broker: BrokerAddress,
    mosquitto: RealMosquitto | None,
    fleet: Fleet,
    eventually: Eventually,
) -> None:
    ids = [f"sent-{n:02}" for n in range(DEVICES)]
    for device_id in ids:
        body = {"device_id": device_id, "device_type": "sent"}
        assert (await api.post("/api/devices", json=body)).status_code == 201
    stop = asyncio.Event()
    senders = [Sender(platform.state.http_url, f"s{n}", ids, n) for n in range(SENDERS)]
    target = Target(platform, mosquitto)
    async with commanded(broker, "sent", *ids) as devices:

        async def told() -> int:
            return len(devices.told)

        sending = [asyncio.create_task(sender.run(stop)) for sender in senders]
        try:
            for do in (kill_api, kill_database, kill_coordinator, restart_broker, kill_dispatcher):
                before = len(devices.told)
                await eventually(told, _at_least(before + BETWEEN_KILLS_COMMANDS), 90.0)
                if do is not restart_broker or mosquitto is not None:
                    await do(target)
            before = len(devices.told)
            await eventually(told, _at_least(before + BETWEEN_KILLS_COMMANDS), 90.0)
        finally:
            stop.set()
            await asyncio.gather(*sending)

        async def still_open() -> list[Any]:
            found = []
            for state in OPEN:
                page = (await api.get("/api/commands", params={"state": state, "limit": 1000})).json()
                found += [c["command_id"] for c in page["items"] if c["device_id"] in ids]
            return found

        await eventually(still_open, lambda found: not found, 60.0)
        ids_told = devices.ids()
    assert len(ids_told) == len(set(ids_told)), "told twice under one id"
    accepted = {key: place for sender in senders for key, place in sender.accepted.items()}
    states = []
    for key, (device_id, command_id) in accepted.items():
        command = (await api.get(f"/api/devices/{device_id}/commands/{command_id}")).json()
        assert command["parameters"] == {"key": key}
        assert sum(step["state"] not in OPEN for step in command["steps"]) == 1, command["steps"]
        assert command_id in ids_told or command["state"] == "TIMED_OUT", command["steps"]
        states.append(command["state"])
    told_keys = [told["parameters"]["key"] for told in devices.told]
    assert len(told_keys) == len(set(told_keys)), "one key became two commands"
    assert set(told_keys) <= set(accepted), "told of a command that nobody was promised"
    assert set(states) <= {"SUCCEEDED", "TIMED_OUT"}
    # What was between its claim and the broker, or had no way to answer, ends by its timeout.
    assert states.count("TIMED_OUT") <= len(states) // 5, states

    async def down() -> Any:
        return (await asyncio.to_thread(fleet.statistics))["down"]

    await eventually(down, lambda names: not names, 60.0)


def _at_least(wanted: int) -> Callable[[int], bool]:
    return lambda count: count >= wanted
