"""The simulated devices' ears: one connection that answers the commands of all of them, as devices would."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Collection
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

COMMANDS: Final = "devices/+/commands"
MAX_ANSWERS: Final = 1_000
"""Answers on their way to the broker; a device that gets more commands than that meanwhile stays silent."""
REMEMBERED: Final = 10_000
"""Command ids by which a repetition is recognised."""


class _Told(msgspec.Struct):
    command_id: str
    command: str
    parameters: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Told).decode


class Responder:
    """Answers at once: `fail` fails, all else succeeds and gives back its parameters. `async with` it.

    Attributes:
        told: how often a command arrived, repetitions included.
        repeated: how many of those arrivals had been there before.
    """

    def __init__(self, address: BrokerAddress, device_ids: Collection[str]) -> None:
        self.told = 0
        self.repeated = 0
        self._device_ids = frozenset(device_ids)
        self._known: set[str] = set()
        self._order: deque[str] = deque()
        self._answering: set[asyncio.Task[None]] = set()
        self._client = MqttClient(
            address,
            f"sensorium-respond-{socket.gethostname()[:32]}-{os.getpid()}",
            subscriptions=((COMMANDS, 1),),
            on_packets=self._take,
            options=MqttOptions(session_expiry_s=0),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._answering:
            task.cancel()
        await self._client.__aexit__(kind, error, trace)

    async def connected(self) -> None:
        """Return once commands can come."""
        await self._client.connected()

    def _take(self, connection: Connection, packets: list[Packet]) -> None:
        for topic, payload, _, _, _ in packets:
            device_id = topic.decode(errors="replace").split("/")[1]
            if device_id not in self._device_ids or len(self._answering) >= MAX_ANSWERS:
                continue
            try:
                told = _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            self.told += 1
            self.repeated += self._is_known(told.command_id)
            task = asyncio.create_task(self._answer(device_id, told))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])

    def _is_known(self, command_id: str) -> bool:
        if command_id in self._known:
            return True
        self._known.add(command_id)
        self._order.append(command_id)
        if len(self._order) > REMEMBERED:
            self._known.discard(self._order.popleft())
        return False

    async def _answer(self, device_id: str, told: _Told) -> None:
        said: dict[str, Any] = {"status": "succeeded", "result": told.parameters}
        if told.command == "fail":
            said = {"status": "failed", "reason": "it was told to"}
        topic = f"devices/{device_id}/commands/{told.command_id}/response"
        try:
            await self._client.publish(topic, msgspec.json.encode(said))
        except (Disconnected, BrokerRefused):
            return  # the platform hears nothing, as of a device that lost its connection
