"""The broker that comes along: rumqttd, from the iotcore wheel, on loopback. For a laptop, not for the field.

It checks no credentials, keeps everything in memory, and answers nobody any more (a panic in its router) once
a member of a shared subscription leaves a backlog behind: give a lone subscriber a subscription of its own.
"""

import asyncio
import random
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from iotcore import Broker

from sensorium.actors.errors import Unavailable
from sensorium.ingest.front_door import FrontDoor
from sensorium.ingest.mqtt_address import BrokerAddress

_HOST = "127.0.0.1"

_PORTS: Final = range(20_000, 30_000)
"""Ray's workers have 10002-19999, Ray Serve's replicas 30000-31000."""

_PORT_TRIES: Final = 100
_given: set[int] = set()
"""Ports that this process was given already, and may not use yet."""

_CONFIG = """\
id = 0

[router]
id = 0
max_connections = {max_connections}
max_outgoing_packet_count = {max_outgoing_packets}
max_segment_size = {segment_bytes}
max_segment_count = {segments}
"""

_LISTENER = """
[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload_bytes}
max_inflight_count = {max_in_flight}
dynamic_filters = true
"""


class BrokerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the embedded broker.

    Attributes:
        backlog_bytes: payloads kept for a subscriber that does not read; beyond it the broker silently
            drops the oldest. Kept whether they were read or not, so this is also what it costs in memory.
        max_payload_bytes: above what the decoder takes, so that too large messages become dead letters
            instead of lost connections.
    """

    backlog_bytes: int = 192 * 1024 * 1024
    max_payload_bytes: int = 4 * 1024 * 1024
    max_connections: int = 5000
    max_outgoing_packets: int = 2000
    max_in_flight: int = 1000


_SEGMENTS = 12


class EmbeddedBroker:
    """Runs the broker as a child process, which ends with `stop` or with this process, however that ends.

    Attributes:
        address: for everybody, MQTT 3.1.1 and 5 alike.
        direct: for MQTT 5 clients of the platform: past the front door, set by `start`.

    Args:
        port: where clients connect.
        data_dir: an existing directory for the generated configuration.
    """

    def __init__(self, port: int, data_dir: Path, limits: BrokerLimits | None = None) -> None:
        self.address = BrokerAddress(host=_HOST, port=port)
        self.direct = self.address
        self._data_dir = data_dir
        self._limits = limits or BrokerLimits()
        self._broker: Broker | None = None
        self._door: FrontDoor | None = None

    async def start(self) -> None:
        """Start, and return once clients can connect. Raises `Unavailable` if the port is taken."""
        config = self._data_dir / "broker.toml"
        ports = {"v4": free_port(), "v5": free_port()}
        await asyncio.to_thread(config.write_text, self._config(ports))
        broker = Broker(config_path=str(config))
        try:
            await asyncio.to_thread(broker.start)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"the embedded broker does not start: {error}") from error
        self._broker = broker
        self.direct = BrokerAddress(host=_HOST, port=ports["v5"])
        self._door = FrontDoor(_HOST, self.address.port, {3: ports["v4"], 4: ports["v4"], 5: ports["v5"]})
        try:
            await self._door.open()
        except OSError as error:
            await self.stop()
            raise Unavailable(f"the embedded broker cannot listen on {self.address}: {error}") from error

    async def stop(self) -> None:
        """End the child process. Safe to call twice."""
        door, self._door = self._door, None
        if door is not None:
            await door.close()
        broker, self._broker = self._broker, None
        if broker is not None:
            await asyncio.to_thread(broker.stop)

    @property
    def is_running(self) -> bool:
        """Whether the child process lives."""
        return self._broker is not None and bool(self._broker.is_running)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _config(self, ports: dict[str, int]) -> str:
        limits = self._limits
        text = _CONFIG.format(
            max_connections=limits.max_connections,
            max_outgoing_packets=limits.max_outgoing_packets,
            segment_bytes=limits.backlog_bytes // _SEGMENTS,
            segments=_SEGMENTS,
        )
        for version, port in ports.items():
            text += _LISTENER.format(
                version=version,
                host=_HOST,
                port=port,
                max_payload_bytes=limits.max_payload_bytes,
                max_in_flight=limits.max_in_flight,
            )
        return text


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago and is never given to another unasked.

    It lies below the ports that systems hand out for outgoing connections and for `bind` to port 0: dozens of
    those are taken while Ray starts, and one of them may be the port that was found free just before.
    """
    for port in random.SystemRandom().sample(_PORTS, _PORT_TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
    raise OSError(f"none of {_PORT_TRIES} ports in {_PORTS.start}-{_PORTS.stop - 1} is free")
