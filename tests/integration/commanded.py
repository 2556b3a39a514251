"""A device that is told what to do: it hears its commands over MQTT and answers as the test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

Answers = Callable[[dict[str, Any]], Any]
"""From what was told to the answer's payload: JSON, bytes as they are, or None for silence."""


def succeed(told: dict[str, Any]) -> Any:
    return {"status": "succeeded", "result": told["parameters"]}


def stay_silent(_: dict[str, Any]) -> Any:
    return None


class Commanded:
    """Devices behind one connection.

    Attributes:
        told: all that came, in order, with the device's id under "device_id".
        answers: how they answer; may be changed at any time.
    """

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answers: Answers = succeed
        self.client: MqttClient | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def ids(self) -> list[str]:
        """Of the commands that came, in order."""
        return [told["command_id"] for told in self.told]

    def take(self, connection: Connection, packets: list[Packet]) -> None:
        for topic, payload, _, _, properties in packets:
            told = json.loads(payload) | {"device_id": topic.decode().split("/")[1]}
            self.told.append(told)
            answer = self.answers(told)
            if answer is not None:
                to = f"{topic.decode()}/{told['command_id']}/response"
                if properties is not None:  # the embedded broker is given none
                    assert properties["correlation_data"] == [told["command_id"].encode()]
                    assert properties["response_topic"] == [to]
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                assert self.client is not None
                task = asyncio.create_task(self.client.publish(to, data))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])


@asynccontextmanager
async def commanded(broker: BrokerAddress, name: str, *device_ids: str) -> AsyncIterator[Commanded]:
    """Connected and subscribed. Its session ends with it, so that nobody listens then."""
    devices = Commanded()
    async with MqttClient(
        broker,
        name,
        subscriptions=tuple((f"devices/{device_id}/commands", 1) for device_id in device_ids),
        on_packets=devices.take,
        options=MqttOptions(session_expiry_s=0, retry_min_s=0.05, retry_max_s=0.2),
    ) as client:
        devices.client = client
        async with asyncio.timeout(20):
            await client.connected()
        yield devices
