"""ChirpStack's events from a real Mosquitto, acknowledged after the commit."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
from coap_world import OneHost
from field import mqtt_client
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Register
from sensorium.actors.placement import SHARDS
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.lorawan.adapter import CayenneCodec, LorawanSettings
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings

EUI = "a8404137b182428e"


async def published_by_the_page(broker: RealMosquitto) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lorawan.md").read_text()
    (command,) = re.findall(r"```sh\n(mosquitto_pub.*?)```", page, re.DOTALL)
    script = command.replace("-p 1883", f"-p {broker.address.port}")
    running = await asyncio.create_subprocess_exec("bash", "-ec", script)
    assert await running.wait() == 0


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_events_become_readings(tmp_path: Path) -> None:
    broker = RealMosquitto(tmp_path)
    broker.start()
    store = MemoryStore(lambda: 0)
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: 0)
    await store.join("host-0")
    await host.start()
    lorawan = LorawanSettings(codecs={"default": CayenneCodec()}, chirpstack=True)
    try:
        async with Router("lorawan-test", OneHost(host)) as router:
            await router.ask(Register(EUI, "climate"))
            ingestor = MqttIngestor(
                MqttSettings(address=broker.address, client_id="lorawan-0", lorawan=lorawan), router
            )
            await ingestor.start()
            async with asyncio.timeout(20), mqtt_client(broker.address, "chirpstack") as server:
                await ingestor.connected()
                for counter in range(3):
                    event = {
                        "deduplicationId": str(counter),
                        "deviceInfo": {"devEui": EUI},
                        "fCnt": counter,
                        "data": "A2cBEA==",
                    }
                    topic = f"application/1/device/{EUI}/event/up"
                    await server.publish(topic, json.dumps(event).encode())
                await server.publish(f"application/1/device/{EUI}/event/integration", b"{}")
                await server.publish(f"application/1/device/{EUI}/event/up", b"{")
                await published_by_the_page(broker)
                while ingestor.statistics()["acked"] < 6:
                    await asyncio.sleep(0.01)
            await ingestor.stop()
            ingestor.check()
        names = [dict(zip(r.metric_set.names, r.values, strict=True)) for r in store.readings]
        read = [(n["temperature_3"], n["lora_fcnt"]) for n in names]
        assert read == [(27.2, 0), (27.2, 1), (27.2, 2), (27.2, 0)]
        assert names[-1]["lora_gateway"] == "0016c001f153a14c"
        assert [letter.reason for letter in store.dead_letters] == ["malformed_json"]
    finally:
        await host.stop()
        broker.stop()
        shutil.rmtree(tmp_path, ignore_errors=True)
