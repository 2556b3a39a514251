"""Replay and simulation against a real Mosquitto: everything arrives, in order, as a device would send it."""

import asyncio
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sensorium.cluster.errors import PlatformUnreachable
from sensorium.cluster.publisher import publishers
from sensorium.cluster.recording import Columns, Recording
from sensorium.cluster.replay import Replay, replay
from sensorium.cluster.simulator.fleet import FleetSimulator, Simulation
from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient
from sensorium.ingest.mqtt_connection import Connection

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerAddress]:
    """A broker with its own defaults, which let a client have 20 messages under way."""
    assert MOSQUITTO is not None
    address = BrokerAddress(host="127.0.0.1", port=free_port())
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(
        f"listener {address.port} 127.0.0.1\nallow_anonymous true\nlog_type error\nmax_queued_messages 0\n"
    )
    process = await asyncio.create_subprocess_exec(
        MOSQUITTO, "-c", str(conf), stderr=asyncio.subprocess.DEVNULL
    )
    yield address
    process.terminate()
    await process.wait()


class Received:
    """Subscribes to all telemetry; `bodies` by topic, in order of arrival."""

    def __init__(self, address: BrokerAddress) -> None:
        self.bodies: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.count = 0
        self._more = asyncio.Event()
        self.client = MqttClient(
            address, "listener", subscriptions=(("devices/+/telemetry", 1),), on_packets=self._take
        )

    def _take(self, connection: Connection, packets: list[Any]) -> None:
        for topic, payload, *_ in packets:
            self.bodies[str(topic)].append(msgspec.json.decode(payload))
        self.count += len(packets)
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while self.count < count:
                self._more.clear()
                await self._more.wait()


async def test_a_recording_arrives_whole_and_in_order(broker: BrokerAddress, tmp_path: Path) -> None:
    rows = 3000
    file = tmp_path / "r.csv"
    lines = [f"{1_386_018_900 + 300 * n},{n}" for n in range(rows)]
    file.write_text("timestamp,value\n" + "\n".join(lines))
    received = Received(broker)
    async with received.client, publishers(broker, "replay", 1) as (client,):
        async with asyncio.timeout(10):
            await received.client.connected()
        with Recording(file, Columns(metrics={"value": "temperature"})) as recording:
            summary = await replay(recording, client, Replay("machine-1"))
        await received.until(rows)
    assert (summary.sent, summary.acked) == (rows, rows)
    (bodies,) = received.bodies.values()
    assert [body["temperature"] for body in bodies] == list(range(rows))
    assert bodies[1]["timestamp"] == (1_386_018_900 + 300) * 1000


async def test_a_fleet_arrives_each_device_in_order(broker: BrokerAddress) -> None:
    simulation = Simulation(devices=40, interval_s=60.0, speed=600.0, duration_s=2.0)
    received = Received(broker)
    async with received.client, publishers(broker, "simulate", 2) as clients:
        async with asyncio.timeout(10):
            await received.client.connected()
        simulator = FleetSimulator(simulation, simulation.fleet(), clients)
        await simulator.run()
        assert simulator.statistics()["acked"] == 40 * 20
        await received.until(40 * 20)
    assert len(received.bodies) == 40
    for bodies in received.bodies.values():
        times = [body["timestamp"] for body in bodies]
        assert times == sorted(times)
        assert len(set(times)) == 20


async def test_a_broker_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.cluster.publisher.CONNECT_TIMEOUT_S", 0.3)
    nowhere = BrokerAddress(host="127.0.0.1", port=free_port())
    with pytest.raises(PlatformUnreachable, match=r"no connection to mqtt://127\.0\.0\.1:"):
        async with publishers(nowhere, "replay", 1):
            pass
