"""Twins on the shared platform: told over a real broker, reported, and the examples of docs/twin.md."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from conftest import Eventually
from platform_process import PlatformProcess
from real_mosquitto import RealMosquitto
from test_device_commands import process_of

from sensorium.actors.errors import PreconditionFailed
from sensorium.actors.fleet import Fleet
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "docs" / "twin.md"


COAP_CLIENT = shutil.which("coap-client") or shutil.which("coap-client-openssl")


class Told:
    """What devices were told of their twins, by device, in order."""

    def __init__(self) -> None:
        self.by_device: dict[str, list[dict[str, Any]]] = {}

    def take(self, connection: Connection, packets: list[Packet]) -> None:
        for topic, payload, _, _, _ in packets:
            device_id = topic.decode().split("/")[1]
            self.by_device.setdefault(device_id, []).append(json.loads(payload))
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])

    async def last(self, device_id: str) -> dict[str, Any] | None:
        return self.by_device.get(device_id, [None])[-1]


@asynccontextmanager
async def listening(broker: BrokerAddress, name: str, *device_ids: str) -> AsyncIterator[Told]:
    told = Told()
    topics = tuple((f"devices/{device_id}/twin/desired", 1) for device_id in device_ids)
    options = MqttOptions(session_expiry_s=0, retry_min_s=0.05, retry_max_s=0.2)
    client = MqttClient(broker, name, subscriptions=topics, on_packets=told.take, options=options)
    async with client, asyncio.timeout(120):
        await client.connected()
        yield told


async def register(api: httpx.AsyncClient, *device_ids: str) -> None:
    for device_id in device_ids:
        response = await api.post("/api/devices", json={"device_id": device_id, "device_type": "twinned"})
        assert response.status_code == 201, response.text


async def desire(api: httpx.AsyncClient, device_id: str, **values: Any) -> int:
    response = await api.patch(f"/api/devices/{device_id}/twin/desired", json=values)
    assert response.status_code == 200, response.text
    version: int = response.json()["version"]
    return version


async def test_a_change_is_told_and_a_report_ends_it(
    api: httpx.AsyncClient, broker: BrokerAddress, device_client: MqttClient, eventually: Eventually
) -> None:
    await register(api, "twin-1")

    async def twin() -> dict[str, Any]:
        found: dict[str, Any] = (await api.get("/api/devices/twin-1/twin")).json()
        return found

    async with listening(broker, "twin-1", "twin-1") as told:
        await desire(api, "twin-1", interval_s=10, led=True)
        first = await eventually(lambda: told.last("twin-1"))
        assert (first["version"], first["delta"]) == (1, {"interval_s": 10, "led": True})
        await eventually(twin, lambda t: t["told_version"] == 1)
        await device_client.publish("devices/twin-1/twin/reported", b'{"led": true, "fw": 2}')
        await eventually(twin, lambda t: t["delta"] == {"interval_s": 10})
        await desire(api, "twin-1", interval_s=20)
        second = await eventually(lambda: told.last("twin-1"), lambda t: t["version"] == 2)
        assert second["delta"] == {"interval_s": 20}
        await device_client.publish("devices/twin-1/twin/reported", b'{"interval_s": 20}')
        done = await eventually(twin, lambda t: not t["delta"])
        assert done["reported"]["fields"]["/fw"]["by"] == "mqtt"
        await device_client.publish("devices/twin-1/twin/reported", b"[1]")
        letters = "/api/dead-letters?device_id=twin-1"

        async def reasons() -> list[str]:
            return [letter["reason"] for letter in (await api.get(letters)).json()["items"]]

        assert await eventually(reasons) == ["not_an_object"]
        assert len(told.by_device["twin-1"]) == 2


async def test_who_returns_is_told_the_newest_only(
    api: httpx.AsyncClient,
    broker: BrokerAddress,
    device_client: MqttClient,
    mosquitto: RealMosquitto | None,
    eventually: Eventually,
) -> None:
    await register(api, "twin-2", "twin-3")
    await device_client.publish("devices/twin-2/status", b"offline", retain=True)

    async def away() -> Any:
        return (await api.get("/api/devices/twin-2")).json()["connectivity"]

    await eventually(away, lambda connectivity: connectivity == "offline")
    for n in range(5):
        version = await desire(api, "twin-2", a=n)
    async with listening(broker, "twin-2", "twin-2") as told:
        await device_client.publish("devices/twin-2/status", b"online", retain=True)
        await eventually(lambda: told.last("twin-2"))
        assert [(t["version"], t["delta"]) for t in told.by_device["twin-2"]] == [(version, {"a": 4})]
    if mosquitto is None:
        return  # the embedded broker does not say that nobody listens
    await desire(api, "twin-3", b=1)
    async with listening(broker, "twin-3", "twin-3") as told:
        await device_client.publish("devices/twin-3/twin/reported", b"")
        assert (await eventually(lambda: told.last("twin-3")))["delta"] == {"b": 1}


async def test_kills_lose_no_wish(
    api: httpx.AsyncClient, broker: BrokerAddress, fleet: Fleet, eventually: Eventually
) -> None:
    """Hosts and the dispatcher are killed while wishes are under way: each device ends with the newest."""
    device_ids = [f"twin-killed-{n}" for n in range(10)]
    await register(api, *device_ids)
    newest: dict[str, int] = {}
    async with listening(broker, "twin-killed", *device_ids) as told:
        for round_, name in enumerate(("commands-0.", "host-0.", "commands-0.")):
            killed = False
            for n in range(3):
                for device_id in device_ids:
                    response = await api.patch(
                        f"/api/devices/{device_id}/twin/desired", json={"n": 10 * round_ + n}
                    )
                    if response.status_code == 200:
                        newest[device_id] = response.json()["version"]
                    if not killed and n == 1:
                        killed = True
                        os.kill(await asyncio.to_thread(process_of, name), signal.SIGKILL)

        async def missing() -> list[Any]:
            found = []
            for device_id in device_ids:
                twin = (await api.get(f"/api/devices/{device_id}/twin")).json()
                last = await told.last(device_id)
                version, delta = twin["desired"]["version"], twin["delta"]
                if last is None or (last["version"], last["delta"]) != (version, delta):
                    found.append((device_id, version, last))
                assert version >= newest[device_id]
            return found

        await eventually(missing, lambda m: not m, 60.0)


async def test_a_notebook_sees_and_desires(api: httpx.AsyncClient, fleet: Fleet) -> None:
    await register(api, "twin-4")
    device = fleet.device("twin-4")
    changed = await asyncio.to_thread(ray.get, device.desire.remote({"a": 1}, version=0))
    assert (changed.desired.version, changed.desired.fields["/a"].by) == (1, "notebook")
    with pytest.raises(PreconditionFailed):
        await asyncio.to_thread(ray.get, device.desire.remote({"a": 2}, version=0))
    assert (await asyncio.to_thread(ray.get, device.twin.remote())).desired == changed.desired
    seen = await asyncio.to_thread(fleet.select(ids=["twin-4"]).map, lambda view: view.twin.delta)
    assert seen == {"twin-4": {"a": 1}}


@pytest.mark.skipif(not shutil.which("mosquitto_sub"), reason="mosquitto-clients is not installed")
async def test_the_examples_do_what_the_page_says(
    platform: PlatformProcess, api: httpx.AsyncClient, broker: BrokerAddress, tmp_path: Path
) -> None:
    await register(api, "twin-001")
    examples = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    expected = iter(EXAMPLES)
    for example in examples:
        if "coap-client" in example and COAP_CLIENT is None:
            next(expected)
            continue
        script = example.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{platform.http_port}")
        script = script.replace("-p 1883", f"-p {broker.port}").replace("sensor-001", "twin-001")
        script = script.replace("coap-client", COAP_CLIENT or "")
        script = script.replace("coap://127.0.0.1/", f"coap://127.0.0.1:{platform.coap_port}/")
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (script, done.stderr)
        assert next(expected) in done.stdout, (script, done.stdout)
    assert next(expected, None) is None


EXAMPLES = [
    # what is desired, of one and of many
    '"values":{"interval_s":10,"display":{"on":true}}',
    '"told_version":',
    '"kind":"twin","state":"RUNNING"',
    '"delta":{"interval_s":10,"display":{"on":true}}',
    '"delta":{"display":{"on":true}}',
    '"version":2,"values":{"interval_s":20,',
    '"values":{"interval_s":20,',
]
"""Something of what each example of the page prints."""
