"""The devices of the tests: what they publish over MQTT, how fast, and what of it the broker acknowledged."""

import asyncio
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import msgspec
from real_mosquitto import MOSQUITTO_PUB

from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions

TICK_S = 0.02


@asynccontextmanager
async def mqtt_client(address: BrokerAddress, name: str) -> AsyncIterator[MqttClient]:
    """A connected client, as a device has it: it keeps what is not acknowledged, and comes back fast."""
    options = MqttOptions(session_expiry_s=600, retry_min_s=0.1, retry_max_s=0.5)
    async with MqttClient(address, name, options=options) as client:
        async with asyncio.timeout(20):
            await client.connected()
        yield client


def mosquitto_pub(port: int, topic: str, payload: bytes, *options: str) -> None:
    """Publish with the client of Mosquitto; returns when it has ended well."""
    assert MOSQUITTO_PUB is not None
    command = [MOSQUITTO_PUB, "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-s", *options]
    subprocess.run(command, input=payload, check=True, timeout=20)


class Load:
    """Devices that publish all the time, each a sequence from 0 on with its own times, at QoS 1.

    `async with` it; leaving stops it and waits until what was sent is acknowledged.

    Attributes:
        sent: the next sequence number by device.
        acked: the sequence numbers that the broker acknowledged, by device.
        started_ms: the time of sequence 0; each one is a millisecond later.
    """

    def __init__(self, client: MqttClient, device_ids: list[str], messages_per_s: float) -> None:
        self.sent = dict.fromkeys(device_ids, 0)
        self.acked: defaultdict[str, set[int]] = defaultdict(set)
        self._client = client
        self._rate = messages_per_s
        self.started_ms = time.time_ns() // 1_000_000
        self._pace: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._window = asyncio.Semaphore(2000)

    async def __aenter__(self) -> Self:
        self._pace = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._pace is not None
        self._pace.cancel()
        with suppress(asyncio.CancelledError):
            await self._pace
        async with asyncio.timeout(60):
            await asyncio.gather(*self._under_way)

    @property
    def total(self) -> int:
        """Messages acknowledged."""
        return sum(len(sequences) for sequences in self.acked.values())

    async def more(self, messages: int, deadline_s: float = 30.0) -> None:
        """Return when so many more are acknowledged."""
        goal = self.total + messages
        async with asyncio.timeout(deadline_s):
            while self.total < goal:
                await asyncio.sleep(TICK_S)

    async def _send(self) -> None:
        began_s = time.monotonic()
        count = 0
        while True:
            for device_id in self.sent:
                await self._window.acquire()
                sequence = self.sent[device_id]
                self.sent[device_id] = sequence + 1
                task = asyncio.create_task(self._publish(device_id, sequence))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                count += 1
                ahead_s = began_s + count / self._rate - time.monotonic()
                if ahead_s > TICK_S:
                    await asyncio.sleep(ahead_s)

    async def _publish(self, device_id: str, sequence: int) -> None:
        body = {"timestamp": self.started_ms + sequence, "sequence": sequence, "half": sequence / 2}
        try:
            while True:
                try:
                    await self._client.publish(f"devices/{device_id}/telemetry", msgspec.json.encode(body), 1)
                except ConnectionError:
                    # Perhaps arrived, perhaps not: a device that wants it stored sends it again.
                    await asyncio.sleep(TICK_S)
                else:
                    self.acked[device_id].add(sequence)
                    return
        finally:
            self._window.release()
