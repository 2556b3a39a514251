"""Commands to LoRaWAN devices: ChirpStack's queue over a real Mosquitto, The Things Stack's over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coap_world import OneHost
from field import mqtt_client
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Register, SendCommand
from sensorium.actors.placement import SHARDS
from sensorium.actors.records import OPEN_STATES, Command
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.broker import free_port
from sensorium.ingest.lorawan.adapter import CayenneCodec, LorawanAdapter, LorawanSettings
from sensorium.ingest.lorawan.carriers import TtsSettings
from sensorium.ingest.lorawan.downlinks import LorawanDownlinks, LorawanDownlinkSettings
from sensorium.ingest.lorawan.tts_mqtt import TtsMqtt, TtsMqttSettings
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
from sensorium.ingest.mqtt311 import Mqtt311Options
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet
from sensorium.ingest.pipeline import Pipeline

EUI = "a8404137b182428e"
SETTINGS = LorawanSettings(codecs={"default": CayenneCodec()}, chirpstack=True)
NOWHERE = BrokerAddress(host="127.0.0.1", port=1)


def id_of(number: int) -> str:
    return f"019a{number:028x}"


class Queued:
    """Commands that are ready, as the test says."""

    def __init__(self) -> None:
        self.ready: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[list[tuple[str, str, int]]]:
        while True:
            yield [await self.ready.get()]


class World:
    """A host with the device, and commands for it."""

    def __init__(self, store: MemoryStore, router: Router) -> None:
        self.store = store
        self.router = router
        self.queued = Queued()

    async def command(self, number: int, **parameters: Any) -> None:
        said = SendCommand(EUI, id_of(number), "downlink", parameters, 30_000, 10**15)
        asked = await self.router.ask(said)
        assert asked["ready"], asked
        self.queued.ready.put_nowait((EUI, id_of(number), 1))

    async def until(self, number: int, *states: str) -> Command:
        async with asyncio.timeout(10):
            while (command := self.store.commands[id_of(number)]).state not in states:
                await asyncio.sleep(0.01)
        return command


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = MemoryStore(lambda: 0)
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: 0)
    await store.join("host-0")
    await host.start()
    async with Router("lorawan-test", OneHost(host)) as router:
        await router.ask(Register(EUI, "valve"))
        yield World(store, router)
    await host.stop()


class ChirpStack:
    """What ChirpStack does at its broker, as far as downlinks go."""

    def __init__(self, address: BrokerAddress) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.client = MqttClient(
            address,
            "chirpstack",
            subscriptions=(("application/+/device/+/command/+", 1),),
            on_packets=self._take,
        )

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for topic, payload, *_ in packets:
            assert topic == f"application/app-1/device/{EUI}/command/down".encode()
            self.queue.put_nowait(json.loads(payload))

    async def say(self, kind: str, **event: Any) -> None:
        info = {"devEui": EUI, "applicationId": "app-1", "deviceProfileName": "valve"}
        payload = json.dumps({"deviceInfo": info, **event}).encode()
        await self.client.publish(f"application/app-1/device/{EUI}/event/{kind}", payload)


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_chirpstack_queues_and_acknowledges(world: World, tmp_path: Path) -> None:
    broker = RealMosquitto(tmp_path)
    broker.start()
    server = ChirpStack(broker.address)
    ingestor = MqttIngestor(
        MqttSettings(address=broker.address, client_id="lorawan-0", lorawan=SETTINGS), world.router
    )
    settings = LorawanDownlinkSettings(address=broker.address, lorawan=SETTINGS)
    downlinks = LorawanDownlinks(settings, world.router, {"chirpstack": [world.queued]})
    await ingestor.start()
    await downlinks.start()
    try:
        async with asyncio.timeout(40):
            await ingestor.connected()
            # Where the device is found is known from what it sent.
            async with mqtt_client(broker.address, "early") as early:
                event = {"deviceInfo": {"devEui": EUI, "applicationId": "app-1"}, "data": "A2cBEA=="}
                topic = f"application/app-1/device/{EUI}/event/up"
                await early.publish(topic, json.dumps(event).encode())
            while not world.store.registrations[EUI].metadata:
                await asyncio.sleep(0.01)
            await world.command(1, f_port=2, hex="01ff")
            told = await world.until(1, "QUEUED", "FAILED")
            while not told.reason:
                told = await world.until(1, "QUEUED")
                await asyncio.sleep(0.01)
            assert "no ChirpStack has subscribed" in told.reason
            async with server.client:
                await server.client.connected()
                await server.say("up", fCnt=1, data="A2cBEA==")
                while not world.store.commands[id_of(1)].ready:
                    await asyncio.sleep(0.01)
                world.queued.ready.put_nowait((EUI, id_of(1), 1))
                item = await server.queue.get()
                assert (item["devEui"], item["fPort"], item["data"], item["confirmed"]) == (
                    EUI,
                    2,
                    "Af8=",
                    True,
                )
                await server.say("txack", queueItemId=item["id"], gatewayId="0016c001")
                await world.until(1, "DELIVERED")
                await server.say("ack", queueItemId=item["id"], acknowledged=True, fCntDown=3)
                await world.until(1, "SUCCEEDED")

                await world.command(2, f_port=2, hex="02", confirmed=False)
                item = await server.queue.get()
                # Somebody else's downlink says nothing of ours, and is nothing remarkable.
                await server.say("txack", queueItemId="6a1ee0a8-8a52-4aee-8c9c-3f3d7d4a3f1c")
                await server.say("txack", queueItemId=item["id"])
                assert "does not confirm" in str((await world.until(2, "SUCCEEDED")).reason)

                await world.command(3, f_port=2, hex="03")
                item = await server.queue.get()
                await server.say("ack", queueItemId=item["id"])
                assert (await world.until(3, "FAILED")).reason == "not acknowledged"

                await world.command(4, f_port=2, hex="04")
                item = await server.queue.get()
                context = {"queue_item_id": item["id"]}
                await server.say("log", level="ERROR", code="EXPIRED", description="late", context=context)
                assert (await world.until(4, "FAILED")).reason == "EXPIRED: late"
        assert world.store.dead_letters == []
    finally:
        await downlinks.stop()
        await ingestor.stop()
        downlinks.check()
        broker.stop()


class TheThingsStack:
    """The part of its application server that takes downlinks."""

    def __init__(self) -> None:
        self.port = free_port()
        self.asked: asyncio.Queue[tuple[str, str, dict[str, Any]]] = asyncio.Queue()
        self.status = 200

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.asked.put_nowait((head.split()[1], headers["authorization"], body))
        writer.write(
            f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
        )
        await writer.drain()
        writer.close()


async def test_the_things_stack_queues_and_acknowledges(world: World) -> None:
    cluster = TheThingsStack()
    settings = LorawanDownlinkSettings(
        address=NOWHERE,
        tts=TtsSettings(url=f"http://127.0.0.1:{cluster.port}", api_key="Key", webhook="hook"),
    )
    downlinks = LorawanDownlinks(settings, world.router, {"tts": [world.queued]})
    adapter = LorawanAdapter(Pipeline(world.router, source="lorawan"), world.router, SETTINGS)
    ids = {"device_id": "valve-1", "dev_eui": EUI.upper(), "application_ids": {"application_id": "app"}}

    async def webhook(**message: Any) -> None:
        payload = json.dumps({"end_device_ids": ids, **message}).encode()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await adapter.tts("app", payload, 0, lambda _, __: done.set_result(None), None)
        await done

    await downlinks.start()
    try:
        async with asyncio.timeout(30):
            await webhook(uplink_message={"f_cnt": 1, "frm_payload": "A2cBEA==", "session_key_id": "k"})
            while not world.store.registrations[EUI].metadata:
                await asyncio.sleep(0.01)
            await world.command(1, f_port=2, hex="01ff")
            reason = None
            while not reason:
                reason = (await world.until(1, "QUEUED")).reason
                await asyncio.sleep(0.01)
            assert "is away" in reason
            server = await asyncio.start_server(cluster.answer, "127.0.0.1", cluster.port)
            async with server:
                await webhook(uplink_message={"f_cnt": 2, "frm_payload": "A2cBEA==", "session_key_id": "k"})
                world.queued.ready.put_nowait((EUI, id_of(1), 1))
                path, key, body = await cluster.asked.get()
                assert path == "/api/v3/as/applications/app/webhooks/hook/devices/valve-1/down/push"
                assert key == "bearer key"
                (pushed,) = body["downlinks"]
                assert (pushed["f_port"], pushed["frm_payload"], pushed["confirmed"]) == (2, "Af8=", True)
                await world.until(1, "SENT")
                await webhook(downlink_sent=pushed)
                await world.until(1, "DELIVERED")
                await webhook(downlink_ack=pushed)
                await world.until(1, "SUCCEEDED")

                cluster.status = 404
                await world.command(2, f_port=2, hex="02")
                assert "answered 404" in str((await world.until(2, "FAILED")).reason)
                cluster.status = 429
                await world.command(3, f_port=2, hex="03")
                async with asyncio.timeout(5):
                    while "429" not in str(world.store.commands[id_of(3)].reason):
                        await asyncio.sleep(0.01)
                assert world.store.commands[id_of(3)].state in OPEN_STATES
        assert world.store.dead_letters == []
    finally:
        await downlinks.stop()
        await adapter.close()
        downlinks.check()


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_the_things_stack_by_mqtt(world: World, tmp_path: Path) -> None:
    broker = RealMosquitto(tmp_path)
    broker.start()
    address = msgspec.structs.replace(broker.address, username="app@ttn", password="Key")
    quick = Mqtt311Options(retry_min_s=0.05, retry_max_s=0.2)
    settings = TtsMqttSettings(address=address, commands=True, lorawan=SETTINGS, options=quick)
    reader = TtsMqtt(settings, world.router, [world.queued])
    ids = {"device_id": "valve-1", "dev_eui": EUI.upper(), "application_ids": {"application_id": "app"}}
    pushed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for _, payload, *_ in packets:
            pushed.put_nowait(json.loads(payload)["downlinks"][0])

    topics = (("v3/app@ttn/devices/valve-1/down/push", 0),)
    server = MqttClient(broker.address, "tts", subscriptions=topics, on_packets=take)

    async def say(kind: str, **message: Any) -> None:
        payload = json.dumps({"end_device_ids": ids, **message}).encode()
        await server.publish(f"v3/app@ttn/devices/valve-1/{kind}", payload, 0)

    await reader.start()
    try:
        async with asyncio.timeout(40), server:
            await server.connected()
            await reader.connected()
            up = {"f_cnt": 1, "f_port": 2, "frm_payload": "A2cBEA==", "session_key_id": "k"}
            await say("up", uplink_message=up)
            while not world.store.registrations[EUI].metadata:
                await asyncio.sleep(0.01)
            [reading] = world.store.readings
            assert dict(zip(reading.metric_set.names, reading.values, strict=True))["temperature_3"] == 27.2
            await world.command(1, f_port=2, hex="01ff")
            downlink = await pushed.get()
            assert (downlink["f_port"], downlink["frm_payload"]) == (2, "Af8=")
            await say("down/queued", downlink_queued=downlink)
            await say("down/sent", downlink_sent=downlink)
            await world.until(1, "DELIVERED")
            await say("down/nack", downlink_nack=downlink)
            assert (await world.until(1, "FAILED")).reason == "not acknowledged"
            # The broker goes and comes back: it is found again.
            broker.stop()
            while reader.statistics()["client"]["connected"]:
                await asyncio.sleep(0.01)
            broker.start()
            await reader.connected()
            await server.connected()
            await say("up", uplink_message={**up, "f_cnt": 2})
            while len(world.store.readings) < 2:
                await asyncio.sleep(0.01)
        assert world.store.dead_letters == []
    finally:
        await reader.stop()
        reader.check()
        broker.stop()
