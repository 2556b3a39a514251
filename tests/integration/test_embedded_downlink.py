"""What devices are told through the embedded broker, whose halves for MQTT 3.1.1 and 5 do not agree."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from sensorium.actors.messages import Telling, TwinTelling
from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.downlink import MqttCarrier
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions

MOSQUITTO_SUB = shutil.which("mosquitto_sub")


@pytest.mark.skipif(MOSQUITTO_SUB is None, reason="mosquitto-clients is not installed")
@pytest.mark.parametrize("version", ["311", "5"])
async def test_devices_of_either_version_are_told(version: str, tmp_path: Path) -> None:
    port = free_port()
    async with EmbeddedBroker(port, tmp_path) as broker, asyncio.timeout(20):
        options = MqttOptions(session_expiry_s=0)
        async with MqttClient(broker.direct, "out", options=options, repeat=False) as publisher:
            await publisher.connected()
            carrier = MqttCarrier(publisher, lambda: 0, properties=False)
            subscriber = await asyncio.create_subprocess_exec(
                *(
                    "stdbuf",
                    "-oL",
                    str(MOSQUITTO_SUB),
                    "-V",
                    version,
                    "-p",
                    str(port),
                    "-q",
                    "1",
                    "-d",
                    "-C",
                    "2",
                ),
                *("-t", "devices/d/commands", "-t", "devices/d/twin/desired"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            assert subscriber.stdout is not None
            while b"Subscribed" not in await subscriber.stdout.readline():
                pass
            await carrier.tell("d", Telling("c1", "open", {}, 1, 60_000))
            await carrier.tell_twin("d", TwinTelling(3, {"a": 1}, 5))
            said = (await subscriber.stdout.read()).decode().splitlines()
            assert await subscriber.wait() == 0
    command, twin = [json.loads(line) for line in said if line.startswith("{")]
    assert (command["command_id"], twin["delta"]) == ("c1", {"a": 1})
