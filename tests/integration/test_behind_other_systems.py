"""A platform with Sparkplug, ChirpStack and CoAP on: devices of each are heard and told, over HTTP."""

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiocoap
import httpx
import pytest
from field import mqtt_client
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB, RealMosquitto

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_client import MqttClient
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import Metric, Payload, decode

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(MOSQUITTO is None or MOSQUITTO_PUB is None, reason="mosquitto is not installed"),
]
DOCS = Path(__file__).parents[2] / "docs"
CURL = "curl -s http://127.0.0.1:8000/api"
EUI = "a8404137b182428e"
OVEN = "plant:line1:oven"
CONFIG = """
sparkplug: {enabled: true, host_id: sensorium}
lorawan:
  chirpstack: true
  tts_secret: at least 16 characters
  codecs:
    default:
      cayenne: true
      commands: {twin: {f_port: 7, confirmed: false, layout: [{name: temperature_3, offset: 0, type: u8}]}}
profiles: {sleeper: {downlink: coap}}
"""


class World:
    def __init__(self, platform: PlatformProcess, broker: RealMosquitto, http: httpx.AsyncClient) -> None:
        self.platform = platform
        self.broker = broker
        self.http = http

    async def page(self, name: str, starts_with: str) -> str:
        """Run the page's one example that starts so; what it prints."""
        text = (DOCS / name).read_text()
        (script,) = re.findall(rf"```sh\n({re.escape(starts_with)}.*?)```", text, re.DOTALL)
        script = script.replace("-p 1883", f"-p {self.broker.address.port}")
        script = script.replace("http://127.0.0.1:8000", str(self.http.base_url).rstrip("/"))
        running = await asyncio.create_subprocess_exec("bash", "-ec", script, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(60):
                out, _ = await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()
        assert running.returncode == 0
        return out.decode()

    async def measured(self, device_id: str, metric: str, value: float) -> None:
        """Return once that is the device's latest value."""
        async with asyncio.timeout(20):
            while True:
                answer = await self.http.get(f"/api/devices/{device_id}/data/latest")
                metrics = answer.json()["metrics"] if answer.status_code == 200 else {}
                if metrics.get(metric, {}).get("value") == value:
                    return
                await asyncio.sleep(0.05)

    async def desire(self, device_id: str, **values: Any) -> None:
        kind = {"Content-Type": "application/merge-patch+json"}
        place = f"/api/devices/{device_id}/twin/desired"
        answer = await self.http.patch(place, content=json.dumps(values), headers=kind)
        assert answer.status_code == 200, answer.text

    async def left_to_do(self, device_id: str, delta: dict[str, Any]) -> None:
        """Return once that is what the device has yet to do."""
        while (await self.http.get(f"/api/devices/{device_id}/twin")).json()["delta"] != delta:
            await asyncio.sleep(0.05)

    async def command(self, device_id: str, command: str, **parameters: Any) -> dict[str, Any]:
        asked = {"command": command, "parameters": parameters, "wait_s": 20}
        answer = await self.http.post(f"/api/devices/{device_id}/commands", json=asked)
        assert answer.status_code == 200, answer.text
        ended: dict[str, Any] = answer.json()
        return ended


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMosquitto]:
    running = RealMosquitto(tmp_path_factory.mktemp("broker"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
async def world(broker: RealMosquitto, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    config = tmp_path_factory.mktemp("config") / "sensorium.yaml"
    config.write_text(CONFIG)
    data_dir = Path(os.environ.get("TMPDIR", "/tmp"), f"sens-behind-{os.getpid()}")
    environment = {"MQTT_BROKER_URL": broker.url}
    ports = (free_port(), free_port())
    running = PlatformProcess(data_dir, *ports, "--config", str(config), environment=environment)
    try:
        await asyncio.to_thread(running.start)
        async with httpx.AsyncClient(base_url=running.state.http_url, timeout=30.0) as http:
            types = {
                "plant:line1": "node",
                OVEN: "oven",
                EUI: "valve",
                "pump-1": "sleeper",
                "sensor-001": "climate",
            }
            for device_id, kind in types.items():
                said = {"device_id": device_id, "device_type": kind}
                assert (await http.post("/api/devices", json=said)).status_code == 201
            yield World(running, broker, http)
        assert await asyncio.to_thread(running.stop) == 0, running.errors
    finally:
        running.close()
        shutil.rmtree(data_dir, ignore_errors=True)


async def test_sparkplug(world: World) -> None:
    await world.page("sparkplug.md", "printf")
    await world.measured(OVEN, "Temperature", 21.5)
    info = (await world.http.get(f"/api/devices/{OVEN}")).json()
    assert info["connectivity"] == "online"
    assert info["metadata"]["sparkplug"]["units"] == {"Temperature": "Cel"}

    told: asyncio.Queue[Payload] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for _, payload, *_ in packets:
            told.put_nowait(decode(payload))

    topics = (("spBv1.0/plant/DCMD/line1/oven", 1),)
    async with MqttClient(world.broker.address, "oven", subscriptions=topics, on_packets=take) as oven:
        async with asyncio.timeout(30):
            await oven.connected()
            ending = asyncio.create_task(world.page("sparkplug.md", f"{CURL}/devices/{OVEN}/commands"))
            (metric,) = (await told.get()).metrics
            assert (metric.name, metric.raw) == ("Temperature", 180.0)
            report = encode(Payload(None, (Metric(alias=1, datatype=DataType.FLOAT, raw=180.0),), 3))
            await oven.publish("spBv1.0/plant/DDATA/line1/oven", report, 0)
            assert json.loads(await ending)["state"] == "SUCCEEDED"
            # Of its twin it is told the metrics that are desired, and reports by them.
            await world.desire(OVEN, Temperature=190, colour="red")
            (metric,) = (await told.get()).metrics
            assert (metric.name, metric.raw) == ("Temperature", 190.0)
            report = encode(Payload(None, (Metric(alias=1, datatype=DataType.FLOAT, raw=190.0),), 4))
            await oven.publish("spBv1.0/plant/DDATA/line1/oven", report, 0)
            await world.left_to_do(OVEN, {"colour": "red"})


async def test_lorawan(world: World) -> None:
    await world.page("lorawan.md", "mosquitto_pub")
    await world.measured(EUI, "temperature_3", 27.2)
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for _, payload, *_ in packets:
            queue.put_nowait(json.loads(payload))

    topics = ((f"application/1/device/{EUI}/command/down", 1),)
    async with MqttClient(world.broker.address, "chirp", subscriptions=topics, on_packets=take) as server:
        async with asyncio.timeout(30):
            await server.connected()
            told = json.loads(await world.page("lorawan.md", f"{CURL}/devices/{EUI}/commands"))
            item = await queue.get()
            assert item["data"] == "Af8="
            ack = {"deviceInfo": {"devEui": EUI}, "queueItemId": item["id"], "acknowledged": True}
            await server.publish(f"application/1/device/{EUI}/event/ack", json.dumps(ack).encode())
            place = f"/api/devices/{EUI}/commands/{told['command_id']}"
            while (await world.http.get(place)).json()["state"] != "SUCCEEDED":
                await asyncio.sleep(0.05)
            # Its twin is a frame, too: by the layout, or by the script of its profile.
            await world.desire(EUI, temperature_3=28)
            item = await queue.get()
            assert (item["data"], item["fPort"], item["confirmed"], "id" in item) == ("HA==", 7, False, False)
            uplink = {"deviceInfo": {"devEui": EUI, "applicationId": "1"}, "fCnt": 9, "fPort": 2}
            uplink["data"] = base64.b64encode(bytes.fromhex("03670118")).decode()  # 28.0 °C
            await server.publish(f"application/1/device/{EUI}/event/up", json.dumps(uplink).encode())
            await world.left_to_do(EUI, {})
    answer = await world.page("lorawan.md", "curl -i http://127.0.0.1:8000/api/lorawan/tts/app")
    assert " 204 " in answer.splitlines()[0]


async def test_a_device_that_observes_its_commands(world: World) -> None:
    client = await aiocoap.Context.create_client_context(transports=["udp6"])
    base = f"coap://127.0.0.1:{world.platform.coap_port}/devices/pump-1/commands"
    request = client.request(aiocoap.Message(code=aiocoap.GET, uri=base, observe=0))
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def listen() -> None:
        async for notification in request.observation:
            for command in json.loads(notification.payload):
                told.put_nowait(command)

    try:
        async with asyncio.timeout(30):
            assert (await request.response).payload == b"[]"
            listening = asyncio.create_task(listen())
            ending = asyncio.create_task(world.command("pump-1", "start"))
            command = await told.get()
            uri = f"{base}/{command['command_id']}/response"
            said = aiocoap.Message(
                code=aiocoap.POST, uri=uri, payload=b'{"status": "succeeded"}', content_format=50
            )
            assert (await client.request(said).response).code.dotted == "2.04"
            assert (await ending)["state"] == "SUCCEEDED"
    finally:
        request.observation.cancel()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await client.shutdown()


async def test_an_edge_node_hears_that_the_platform_is_there(world: World) -> None:
    states: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for _, payload, *_ in packets:
            states.put_nowait(json.loads(payload))

    topics = (("spBv1.0/STATE/sensorium", 1),)
    async with (
        asyncio.timeout(20),
        MqttClient(world.broker.address, "edge", subscriptions=topics, on_packets=take),
    ):
        assert (await states.get())["online"] is True


async def test_a_device_comes_and_goes_as_the_page_says(world: World) -> None:
    await world.page("commands.md", "(echo online")
    async with asyncio.timeout(15):
        while True:
            said = (await world.http.get("/api/devices/sensor-001/connections")).json()["items"]
            if len(said) == 2:
                break
            await asyncio.sleep(0.05)
    assert [connection["online"] for connection in said] == [False, True]
    assert (await world.http.get("/api/devices/sensor-001")).json()["connectivity"] == "offline"
    async with mqtt_client(world.broker.address, "presence") as device:
        await device.publish("devices/sensor-001/status", b"online", retain=True)
        async with asyncio.timeout(15):
            while (await world.http.get("/api/devices/sensor-001")).json()["connectivity"] != "online":
                await asyncio.sleep(0.05)
        # What is retained is taken away; that says nothing of the device.
        await device.publish("devices/sensor-001/status", b"", retain=True)
