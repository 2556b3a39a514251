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
from sensorium.actors.messages import GetDevice, GetLatest, Register, SendCommand
from sensorium.actors.placement import SHARDS
from sensorium.actors.records import OPEN_STATES, Command
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.dispatch import ReadyCommands
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, Will
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.ingestor import SparkplugIngestor, SparkplugSettings
from sensorium.ingest.sparkplug.payload import Metric, Payload, decode

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


class Queued:
    """Commands that are ready, as the test says."""

    def __init__(self) -> None:
        self.ready: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[list[tuple[str, str, int]]]:
        while True:
            yield [await self.ready.get()]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(lambda: 0)


@pytest.fixture
async def router(store: MemoryStore) -> AsyncIterator[Router]:
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: 0)
    await store.join("host-0")
    await host.start()
    async with Router("sparkplug-test", OneHost(host)) as routing:
        for device_id in (NODE, OVEN):
            await routing.ask(Register(device_id, "oven"))
        yield routing
    await host.stop()


@asynccontextmanager
async def platform(
    address: BrokerAddress, router: Router, *sources: ReadyCommands
) -> AsyncIterator[SparkplugIngestor]:
    settings = SparkplugSettings(address=address, host_id="sensorium")
    ingestor = SparkplugIngestor(settings, router, sources)
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
        self.told: asyncio.Queue[Metric] = asyncio.Queue()
        self.states: list[dict[str, Any]] = []
        self._bd_seq = Metric("bdSeq", datatype=DataType.INT64, raw=bd_seq)
        self._seq = 0
        self.client = MqttClient(
            address,
            f"edge-node-{bd_seq}",
            subscriptions=(
                ("spBv1.0/plant/NCMD/line1", 1),
                ("spBv1.0/plant/DCMD/line1/+", 1),
                ("spBv1.0/STATE/sensorium", 1),
            ),
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
            elif b"DCMD" in topic:
                self.told.put_nowait(decode(payload).metrics[0])
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


async def test_commands_are_written_and_reported_back(
    address: BrokerAddress, router: Router, store: MemoryStore
) -> None:
    async def ended(command_id: str) -> Command:
        async with asyncio.timeout(10):
            while store.commands[command_id].state in OPEN_STATES:
                await asyncio.sleep(0.01)
        return store.commands[command_id]

    async def command(command_id: str, name: str, parameters: dict[str, Any]) -> None:
        asked = await router.ask(SendCommand(OVEN, command_id, name, parameters, 30_000, 10**15))
        assert asked["downlink"] == "sparkplug"
        queued.ready.put_nowait((OVEN, command_id, 1))

    node, queued = EdgeNode(address, 3), Queued()
    async with platform(address, router, queued) as ingestor, node.client:
        async with asyncio.timeout(10):
            await node.client.connected()
        await node.birth()
        await until(lambda: ingestor.adapter.statistics().get("DBIRTH") == 1)
        await command("c1", "write", {"Zone 1/Temperature": 180.1})
        async with asyncio.timeout(10):
            told = await node.told.get()
        assert (told.name, told.datatype) == ("Zone 1/Temperature", DataType.FLOAT)
        assert store.commands["c1"].state == "SENT"
        await node.say("DDATA", Metric(alias=5, raw=25.0))
        await node.say("DDATA", Metric(alias=5, datatype=DataType.FLOAT, raw=180.1))
        assert (await ended("c1")).state == "SUCCEEDED"
        await command("c2", "write", {"Zone 1/Temperature": "hot"})
        assert "not a number" in str((await ended("c2")).reason)
        await command("c3", "open", {})
        assert (await ended("c3")).state == "FAILED"
        await command("c4", "rebirth", {})
        async with asyncio.timeout(10):
            assert await node.asked.get() == "Node Control/Rebirth"
        await node.birth()
        assert (await ended("c4")).state == "SUCCEEDED"


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
