"""Each way in, between a sender of its protocol and a router that the test commits."""

import asyncio
import json
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace
from typing import Any

import aiocoap
import httpx
import msgspec
from aiokafka import AIOKafkaProducer
from fastapi import FastAPI
from tests.recording_router import RecordingRouter
from tests.unit.storage.tansu import Tansu

from sensorium.actors.messages import Content
from sensorium.ingest.broker import free_port
from sensorium.ingest.coap import CoapServer, CoapSettings
from sensorium.ingest.decode import Bounds
from sensorium.ingest.kafka import KafkaIngestor
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.ingest.lorawan.adapter import CayenneCodec, LorawanAdapter, LorawanSettings
from sensorium.ingest.lorawan.tts_mqtt import TtsMqtt, TtsMqttSettings
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.ingestor import SparkplugIngestor, SparkplugSettings
from sensorium.ingest.sparkplug.payload import Metric, Payload
from sensorium.serve import lorawan, telemetry
from sensorium.serve.problems import install_handlers
from sensorium.storage.kafka_settings import KafkaSettings

MAX_PENDING = 2
EUI = "a8404137b182428e"
CODECS = LorawanSettings(codecs={"default": CayenneCodec()})
FRAME = "A2cBEA=="
_names = count()


class Rig(ABC):
    """`async with` it.

    Attributes:
        source: what stands in its dead letters.
        content: what they say that it holds.
        garbage: what no decoder takes.
        tells: whether a sender hears what became of its message; else it is only taken off the broker.
    """

    source: str
    content = Content.JSON
    garbage: bytes = b"{no telemetry"
    tells = False

    def __init__(self) -> None:
        self.router = RecordingRouter()
        self._stack = AsyncExitStack()
        self._stopped = False
        self._numbers = count(1)

    async def __aenter__(self) -> "Rig":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.router.commits = True
        self.router.commit()
        if not self._stopped:
            await self.stop()
        await self._stack.aclose()

    def good(self) -> bytes:
        """A payload of one reading, another each time."""
        return json.dumps({"t": next(self._numbers)}).encode()

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def send(self, payload: bytes) -> None:
        """Hand it to the protocol; not to wait until it is committed."""

    @abstractmethod
    def answers(self) -> list[str]:
        """What senders, or the broker, were told: "accepted", "refused", "later"."""

    @abstractmethod
    def pushed_back(self) -> bool:
        """Whether the protocol's own signal says that it is too much."""

    @abstractmethod
    async def stop(self) -> None:
        """End the adapter; returns when it has."""


class BrokerRig(Rig):
    """What reads from a broker of MQTT."""

    def __init__(self, broker: BrokerAddress) -> None:
        super().__init__()
        self._broker = broker
        self._name = f"rig-{next(_names)}"
        self._before = 0
        self._adapter: Any = None

    async def start(self) -> None:
        self._adapter = self.make()
        await self._adapter.start()
        self._sender = await self._stack.enter_async_context(MqttClient(self._broker, f"{self._name}-sender"))
        async with asyncio.timeout(10):
            await self._adapter.connected()
            await self._sender.connected()

    @abstractmethod
    def make(self) -> Any: ...

    @abstractmethod
    def topic(self) -> str: ...

    async def send(self, payload: bytes) -> None:
        await self._sender.publish(self.topic(), payload, 1)

    def answers(self) -> list[str]:
        return ["accepted"] * (self._adapter.statistics()["acked"] - self._before)

    def pushed_back(self) -> bool:
        return bool(self._adapter.statistics()["paused"])

    async def stop(self) -> None:
        self._stopped = True
        await self._adapter.stop()


class MqttRig(BrokerRig):
    source = "mqtt"

    def make(self) -> MqttIngestor:
        return MqttIngestor(
            MqttSettings(
                address=self._broker, client_id=self._name, share=self._name, max_pending=MAX_PENDING
            ),
            self.router,
        )

    def topic(self) -> str:
        return f"devices/{self._name}/telemetry"


class ChirpstackRig(BrokerRig):
    content = Content.CHIRPSTACK
    source = "lorawan"

    def make(self) -> MqttIngestor:
        return MqttIngestor(
            MqttSettings(
                address=self._broker,
                client_id=self._name,
                share=self._name,
                max_pending=MAX_PENDING,
                lorawan=CODECS,
            ),
            self.router,
        )

    def topic(self) -> str:
        return f"application/a/device/{EUI}/event/up"

    def good(self) -> bytes:
        number = next(self._numbers)
        up = {"deduplicationId": f"{number}", "deviceInfo": {"devEui": EUI}, "fCnt": number, "data": FRAME}
        return json.dumps(up).encode()


class TtsMqttRig(BrokerRig):
    """It is sent all at QoS 0, so nobody is told; what it has finished is what counts."""

    content = Content.TTS
    source = "lorawan"

    def make(self) -> TtsMqtt:
        address = msgspec.structs.replace(self._broker, username=f"{self._name}@ttn", password="key")
        return TtsMqtt(
            TtsMqttSettings(address=address, client_id=self._name, max_pending=MAX_PENDING, lorawan=CODECS),
            self.router,
        )

    def topic(self) -> str:
        return f"v3/{self._name}@ttn/devices/valve-1/up"

    def good(self) -> bytes:
        ids = {"device_id": "valve-1", "dev_eui": EUI, "application_ids": {"application_id": self._name}}
        up = {"f_cnt": next(self._numbers), "f_port": 2, "frm_payload": FRAME, "session_key_id": "k"}
        return json.dumps({"end_device_ids": ids, "uplink_message": up}).encode()

    async def send(self, payload: bytes) -> None:
        await self._sender.publish(self.topic(), payload, 0)

    def answers(self) -> list[str]:
        said = self._adapter.statistics()
        return ["accepted"] * (said["received"] - said["pending"])

    def pushed_back(self) -> bool:
        """It takes no more before what it has is committed: readings, and what it said of the device."""
        said = self._adapter.statistics()
        return bool(self.router.pending > MAX_PENDING and said["client"]["messages"] == MAX_PENDING)


class SparkplugRig(BrokerRig):
    content = Content.SPARKPLUG
    source = "sparkplug"
    garbage = b"\xff"

    def make(self) -> SparkplugIngestor:
        return SparkplugIngestor(
            SparkplugSettings(
                address=self._broker,
                client_id=self._name,
                groups=(self._name,),
                max_pending=MAX_PENDING,
            ),
            self.router,
        )

    def topic(self) -> str:
        return f"spBv1.0/{self._name}/NDATA/node"

    def good(self) -> bytes:
        number = next(self._numbers)
        return encode(Payload(None, (Metric("t", 1, DataType.INT32, raw=number),), number % 256))

    async def start(self) -> None:
        await super().start()
        self.router.commits = True
        born = Payload(None, (Metric("t", 1, DataType.INT32, raw=0),), 0)
        await self._sender.publish(f"spBv1.0/{self._name}/NBIRTH/node", encode(born), 1)
        async with asyncio.timeout(10):
            while self._adapter.statistics()["acked"] < 1 or self.router.pending:
                await asyncio.sleep(0.01)
        self.router.commits = False
        self.router.readings.clear()
        self._before = 1


class RequestRig(Rig):
    """What answers each message."""

    tells = True

    def __init__(self) -> None:
        super().__init__()
        self._told: list[str] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def send(self, payload: bytes) -> None:
        task = asyncio.create_task(self._ask(payload))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(self, payload: bytes) -> None:
        self._told.append(await self.answer(payload))

    @abstractmethod
    async def answer(self, payload: bytes) -> str: ...

    def answers(self) -> list[str]:
        return self._told

    def pushed_back(self) -> bool:
        return "later" in self._told

    async def __aexit__(self, *error: object) -> None:
        self.router.commits = True
        self.router.commit()
        await asyncio.gather(*self._under_way)
        await super().__aexit__(*error)


class HttpRig(RequestRig):
    source = "http"
    path = "/api/devices/d/data"

    async def start(self) -> None:
        pipeline = Pipeline(self.router, source=self.source)
        adapter = LorawanAdapter(pipeline, self.router, CODECS)
        self._stack.push_async_callback(adapter.close)
        services: Any = SimpleNamespace(
            router=self.router,
            pipeline=pipeline,
            lorawan=adapter,
            tts_secret="secret",
            bounds=Bounds(),
            limiter=None,
            timeout_s=10.0,
            now_ms=lambda: 1_795_459_094_744,
        )
        app = FastAPI()
        app.include_router(telemetry.routes(services))
        app.include_router(lorawan.routes(services))
        install_handlers(app)
        self._http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        )

    async def stop(self) -> None:
        """The app has no end of its own."""

    async def answer(self, payload: bytes) -> str:
        headers = {"Content-Type": "application/json", "X-Webhook-Secret": "secret"}
        answer = await self._http.post(self.path, content=payload, headers=headers)
        if answer.status_code in (429, 503):
            assert int(answer.headers["Retry-After"]) >= 1
            return "later"
        return "accepted" if answer.is_success else "refused"


class WebhookRig(HttpRig):
    content = Content.TTS
    source = "lorawan"
    path = "/api/lorawan/tts/app"

    def good(self) -> bytes:
        number = next(self._numbers)
        ids = {"dev_eui": EUI, "application_ids": {"application_id": "app"}}
        up = {"session_key_id": "s", "f_port": 1, "f_cnt": number, "frm_payload": FRAME}
        return json.dumps({"end_device_ids": ids, "uplink_message": up}).encode()


class CoapRig(RequestRig):
    source = "coap"

    async def start(self) -> None:
        port = free_port()
        self._server = CoapServer(CoapSettings(port=port, max_pending=MAX_PENDING), self.router)
        await self._server.start()
        self._uri = f"coap://127.0.0.1:{port}/sensors/d"
        self._client = await aiocoap.Context.create_client_context(transports=["udp6"])
        self._stack.push_async_callback(self._client.shutdown)

    async def answer(self, payload: bytes) -> str:
        message = aiocoap.Message(code=aiocoap.POST, uri=self._uri, payload=payload, content_format=50)
        answer = await self._client.request(message).response
        if answer.code is aiocoap.SERVICE_UNAVAILABLE:
            assert answer.opt.max_age >= 1
            return "later"
        return "accepted" if answer.code.is_successful() else "refused"

    async def stop(self) -> None:
        self._stopped = True
        await self._server.stop()


class KafkaRig(Rig):
    source = "kafka"

    async def start(self) -> None:
        broker = self._stack.enter_context(Tansu())
        client = KafkaSettings(brokers=(broker.address,))
        self._producer = AIOKafkaProducer(bootstrap_servers=broker.address)
        await self._producer.start()
        self._stack.push_async_callback(self._producer.stop)
        how = KafkaIngestSettings(client=client, topic="rig-in", group="rig", batch=MAX_PENDING)
        self._adapter = KafkaIngestor(how, self.router)
        await self._adapter.start()

    async def send(self, payload: bytes) -> None:
        await self._producer.send_and_wait("rig-in", payload, b"d")

    def answers(self) -> list[str]:
        return ["accepted"] * self._adapter.statistics()["acked"]

    def pushed_back(self) -> bool:
        """It asks for no more records before those that it has are committed."""
        said = self._adapter.statistics()
        return bool(said["received"] - said["acked"] == said["pending"] == MAX_PENDING)

    async def stop(self) -> None:
        self._stopped = True
        await self._adapter.stop()
