"""Messages that a device sends twice under one id, by a public client through a real Mosquitto."""

import asyncio
import re
from pathlib import Path

import pytest
from coap_world import OneHost
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB, RealMosquitto

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Register
from sensorium.actors.placement import SHARDS
from sensorium.actors.router import Router
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings


@pytest.mark.skipif(MOSQUITTO is None or MOSQUITTO_PUB is None, reason="mosquitto is not installed")
async def test_what_has_one_id_is_stored_once(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    (commands,) = re.findall(r"```sh\n(mosquitto_pub.*?)```", page, re.DOTALL)
    broker = RealMosquitto(tmp_path)
    broker.start()
    store = MemoryStore(lambda: 0)
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: 0)
    await store.join("host-0")
    await host.start()
    try:
        async with Router("ids-test", OneHost(host)) as router:
            await router.ask(Register("sensor-001", "climate"))
            ingestor = MqttIngestor(MqttSettings(address=broker.address), router)
            await ingestor.start()
            async with asyncio.timeout(20):
                await ingestor.connected()
                script = commands.replace("-p 1883", f"-p {broker.address.port}")
                running = await asyncio.create_subprocess_exec("bash", "-ec", script)
                assert await running.wait() == 0
                while ingestor.statistics()["acked"] < 4:
                    await asyncio.sleep(0.01)
            await ingestor.stop()
            ingestor.check()
        assert [(r.metric_set.names, r.values) for r in store.readings] == [
            (("temperature",), [23.5]),
            (("temperature",), [23.6]),
        ]
        assert store.dead_letters == []
    finally:
        await host.stop()
        broker.stop()
