"""Publishing as a device does: QoS 1, in order, with a bounded window of unacknowledged messages."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, Self

from sensorium.cluster.errors import ConfigError, DeliveryFailed, PlatformUnreachable
from sensorium.ingest.errors import BrokerRefused, InvalidAddress
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions

WINDOW = 256
"""Unacknowledged messages of one outlet; publishing the next waits."""
DELIVERY_TIMEOUT_S = 60.0
"""For one message, over all reconnects: a broker that is away for longer ends the command."""
RETRY_S = 0.5
"""Between two tries of a QoS 0 message without a connection; the others wait in the client."""
CONNECT_TIMEOUT_S = 10.0


class Publisher(Protocol):
    """An MQTT connection, such as `ingest.mqtt_client.MqttClient`."""

    async def publish(self, topic: str, payload: bytes, qos: int = 1) -> object:
        """Returns once the broker acknowledged; QoS 0: once it is written.

        Raises `ConnectionError` when it may not have arrived, `BrokerRefused` when it is not wanted.
        """
        ...


@asynccontextmanager
async def publishers(address: BrokerAddress, name: str, count: int) -> AsyncIterator[list[MqttClient]]:
    """That many open connections. `name` becomes part of their client ids.

    Raises:
        PlatformUnreachable: the broker did not let us in within `CONNECT_TIMEOUT_S`.
    """
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(count):
            client = MqttClient(
                address,
                f"{name}-{socket.gethostname()[:32]}-{os.getpid()}-{number}",
                options=MqttOptions(session_expiry_s=0, connect_timeout_s=CONNECT_TIMEOUT_S),
            )
            clients.append(await stack.enter_async_context(client))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for client in clients:
                    await client.connected()
        except TimeoutError:
            reason = client.statistics()["last_error"] or "no answer"
            raise PlatformUnreachable(f"no connection to {address}: {reason}") from None
        yield clients


def parse_broker(url: str, ca_file: str | None = None) -> BrokerAddress:
    """The broker of a command line.

    Raises:
        ConfigError: the URL or the file cannot be used.
    """
    try:
        address = broker_address(url, ca_file)
        address.ssl_context()
    except InvalidAddress as error:
        raise ConfigError(f"--mqtt-url: {error}") from error
    return address


class Outlet:
    """Sends through one publisher, up to `window` messages at a time. Use as an async context manager.

    Leaving it waits for the acknowledgements; cancelling abandons what is under way.

    Attributes:
        sent: messages given to the connection.
        acked: those of them that were acknowledged.
    """

    def __init__(self, publisher: Publisher, qos: int = 1, window: int = WINDOW) -> None:
        self.sent = 0
        self.acked = 0
        self._publisher = publisher
        self._qos = qos
        self._room = asyncio.Semaphore(window)
        self._tasks = asyncio.TaskGroup()
        self._failure: DeliveryFailed | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._tasks.__aexit__(*error)  # type: ignore[arg-type]
        if self._failure is not None and error[1] is None:
            raise self._failure

    async def send(self, topic: str, payload: bytes) -> None:
        """Returns as soon as there is room in the window and the message is on its way.

        Raises:
            DeliveryFailed: this or an earlier message was not acknowledged in time, or was refused.
        """
        await self._room.acquire()
        if self._failure is not None:
            raise self._failure
        self.sent += 1
        self._tasks.create_task(self._deliver(topic, payload))

    async def _deliver(self, topic: str, payload: bytes) -> None:
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                await self._publish(topic, payload)
        except TimeoutError:
            self._failure = DeliveryFailed(f"{topic}: not acknowledged within {DELIVERY_TIMEOUT_S:g} s")
        except BrokerRefused as error:
            self._failure = DeliveryFailed(f"{topic}: {error}")
        else:
            self.acked += 1
        finally:
            self._room.release()

    async def _publish(self, topic: str, payload: bytes) -> None:
        while True:  # ends with the delivery timeout
            try:
                await self._publisher.publish(topic, payload, self._qos)
                return
            except ConnectionError:
                await asyncio.sleep(RETRY_S)
