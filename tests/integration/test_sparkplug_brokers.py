"""Sparkplug over a real Mosquitto and the embedded broker: sessions, wills, rebirths, our restart."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from coap_world import OneHost
from field import mqtt_client
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB, RealMosquitto

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import GetDevice, GetLatest, Register
from sensorium.actors.placement import SHARDS
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, Will
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.ingestor import SparkplugIngestor, SparkplugSettings
from sensorium.ingest.sparkplug.payload import DataType, Metric, Payload, decode

NODE, OVEN = "plant:line1", "plant:line1:oven"


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(params=["mosquitto", "embedded"])
async def address(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BrokerAddress]:
    if request.param == "embedded":
        port = free_port()
        async with EmbeddedBroker(port, tmp_path):
            yield BrokerAddress(host="127.0.0.1", port=port)
        return
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    mosquitto = RealMosquitto(tmp_path)
    mosquitto.start()
    yield mosquitto.address
    mosquitto.stop()


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    store = MemoryStore(lambda: 0)
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: 0)
    await store.join("host-0")
    await host.start()
    async with Router("sparkplug-test", OneHost(host)) as routing:
        for device_id in (NODE, OVEN):
            await routing.ask(Register(device_id, "oven"))
        yield routing
    await host.stop()


@asynccontextmanager
async def platform(address: BrokerAddress, router: Router) -> AsyncIterator[SparkplugIngestor]:
    ingestor = SparkplugIngestor(SparkplugSettings(address=address, host_id="sensorium"), router)
    await ingestor.start()
    async with asyncio.timeout(10):
        await ingestor.connected()
    yield ingestor
    await ingestor.stop()
    ingestor.check()


class EdgeNode:
    """An edge node with one device, written from the specification."""

    def __init__(self, address: BrokerAddress, bd_seq: int) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.states: list[dict[str, Any]] = []
        self._bd_seq = Metric("bdSeq", datatype=DataType.INT64, raw=bd_seq)
        self._seq = 0
        self.client = MqttClient(
            address,
            f"edge-node-{bd_seq}",
            subscriptions=(("spBv1.0/plant/NCMD/line1", 1), ("spBv1.0/STATE/sensorium", 1)),
            on_packets=self._take,
            will=Will(
                topic="spBv1.0/plant/NDEATH/line1",
                payload=encode(Payload(None, (self._bd_seq,))),
                retain=False,
            ),
        )

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for topic, payload, *_ in packets:
            if b"STATE" in topic:
                self.states.append(json.loads(payload))
            else:
                self.asked.put_nowait(str(decode(payload).metrics[0].name))

    async def say(self, kind: str, *metrics: Metric) -> None:
        device = "/oven" if kind.startswith("D") else ""
        payload = encode(Payload(None, metrics, self._seq))
        self._seq = (self._seq + 1) % 256
        await self.client.publish(f"spBv1.0/plant/{kind}/line1{device}", payload, 0)

    async def birth(self) -> None:
        self._seq = 0
        rebirth = Metric("Node Control/Rebirth", datatype=DataType.BOOLEAN, raw=False)
        await self.say("NBIRTH", self._bd_seq, rebirth)
        await self.say("DBIRTH", Metric("Zone 1/Temperature", 5, DataType.FLOAT, raw=20.0))

    async def die(self) -> None:
        """Vanish, so that the broker publishes the will."""
        connection = self.client._connection
        assert connection is not None
        self.client._supervisor.cancel()  # type: ignore[union-attr]
        connection.abort("the edge node lost its power")


async def test_a_session_from_birth_to_death(address: BrokerAddress, router: Router) -> None:
    async def temperature() -> Any:
        return (await router.ask(GetLatest(OVEN)))["metrics"]["Zone 1/Temperature"]["value"]

    async def connectivity() -> list[str]:
        return [(await router.ask(GetDevice(device_id)))["connectivity"] for device_id in (NODE, OVEN)]

    node = EdgeNode(address, 1)
    async with platform(address, router) as ingestor, mqtt_client(address, "watcher"):
        async with node.client:
            async with asyncio.timeout(10):
                await node.client.connected()
            await until(lambda: node.states)
            assert node.states[-1]["online"] is True
            await node.birth()
            await node.say("DDATA", Metric(alias=5, raw=21.5))
            await until(lambda: ingestor.adapter.statistics().get("DDATA") == 1)
            assert await temperature() == 21.5
            assert await connectivity() == ["online", "online"]
            known = await router.ask(GetDevice(OVEN))
            assert known["metadata"]["sparkplug"] == {"group": "plant", "node": "line1", "device": "oven"}
            await node.die()
        await until(lambda: ingestor.adapter.statistics().get("NDEATH") == 1)
        assert await connectivity() == ["offline", "offline"]


async def test_after_our_restart_the_node_is_asked_for_its_birth(
    address: BrokerAddress, router: Router
) -> None:
    node = EdgeNode(address, 2)
    async with node.client:
        async with asyncio.timeout(10):
            await node.client.connected()
        async with platform(address, router) as first:
            await node.birth()
            await until(lambda: first.adapter.statistics().get("DBIRTH") == 1)
            assert node.asked.empty()
        await until(lambda: node.states and node.states[-1]["online"] is False)
        async with platform(address, router) as second:
            await node.say("DDATA", Metric(alias=5, raw=22.5))
            async with asyncio.timeout(10):
                assert await node.asked.get() == "Node Control/Rebirth"
            assert second.statistics()["dead_letters"] == {"unknown_metric": 1}
            await node.birth()
            await node.say("DDATA", Metric(alias=5, raw=23.5))
            await until(lambda: second.adapter.statistics().get("DDATA") == 1)
            latest = await router.ask(GetLatest(OVEN))
            assert latest["metrics"]["Zone 1/Temperature"]["value"] == 23.5
            assert node.asked.empty()


@pytest.mark.skipif(MOSQUITTO_PUB is None, reason="mosquitto_pub is not installed")
async def test_the_page_of_the_documentation_works(address: BrokerAddress, router: Router) -> None:
    page = Path(__file__).parents[2] / "docs" / "sparkplug.md"
    (commands,) = re.findall(r"```sh\n(printf.*?)```", page.read_text(), re.DOTALL)
    async with platform(address, router) as ingestor:
        script = commands.replace("-p 1883", f"-p {address.port}")
        running = await asyncio.create_subprocess_exec("bash", "-ec", script)
        async with asyncio.timeout(10):
            assert await running.wait() == 0
        await until(lambda: ingestor.adapter.statistics().get("DDATA") == 1)
        latest = await router.ask(GetLatest(OVEN))
        assert latest["metrics"]["Temperature"]["value"] == 21.5
        known = await router.ask(GetDevice(OVEN))
        assert known["metadata"]["sparkplug"]["units"] == {"Temperature": "Cel"}
