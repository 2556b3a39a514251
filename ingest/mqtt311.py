"""A client of MQTT 3.1.1 at QoS 0 only, for brokers that offer no more (OASIS MQTT 3.1.1).

Nothing is acknowledged, so what comes while we are away or crash is lost. Where the broker speaks MQTT 5, use
`mqtt_client`.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_address import BrokerAddress

_log = logging.getLogger(__name__)

OnMessage = Callable[[str, bytes], Awaitable[None]]
"""Called with topic and payload, one after the other; the next is read when it returns."""

_CONNECT: Final = 0x10
_CONNACK: Final = 0x20
_PUBLISH: Final = 0x30
_SUBSCRIBE: Final = 0x82
_SUBACK: Final = 0x90
_PINGREQ: Final = b"\xc0\x00"
_DISCONNECT: Final = b"\xe0\x00"
_CLEAN_SESSION, _PASSWORD, _USERNAME = 0x02, 0x40, 0x80
_FAILURE: Final = 0x80
_REFUSALS: Final = {4: 0x86, 5: 0x87}
"""Return codes of CONNACK as reason codes of MQTT 5; others are "unspecified"."""
_MAX_LENGTH_BYTES: Final = 4


class Mqtt311Options(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds; see `MqttOptions`. What was not heard for two keepalives is lost."""

    keepalive_s: int = 60
    connect_timeout_s: float = 10.0
    retry_min_s: float = 0.25
    retry_max_s: float = 30.0
    refused_retry_s: float = 60.0
    max_packet_bytes: int = 1 << 20


class Mqtt311Client:
    """Stays connected and subscribed while `run` runs.

    Args:
        address: the broker, with user name and password.
        topics: filters to subscribe to.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        topics: tuple[str, ...],
        on_message: OnMessage,
        options: Mqtt311Options | None = None,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._topics = topics
        self._on_message = on_message
        self._options = options or Mqtt311Options()
        self._writer: asyncio.StreamWriter | None = None
        self._up = asyncio.Event()
        self._connects = 0
        self._messages = 0
        self._last_error = ""

    @property
    def is_connected(self) -> bool:
        """Whether messages can come and go now."""
        return self._up.is_set()

    async def connected(self) -> None:
        """Return once subscribed."""
        await self._up.wait()

    async def publish(self, topic: str, payload: bytes) -> None:
        """Hand a message to the socket. Raises `Disconnected` when there is none."""
        if self._writer is None:
            raise Disconnected(f"not connected to {self._address}: {self._last_error or 'connecting'}")
        self._writer.write(_packet(_PUBLISH, _text(topic) + payload))
        try:
            await self._writer.drain()
        except OSError as error:
            raise Disconnected(f"the connection broke: {error}") from None

    def statistics(self) -> dict[str, Any]:
        """Whether it is connected, counts since the start, the last error."""
        return {
            "connected": self._up.is_set(),
            "connects": self._connects,
            "messages": self._messages,
            "last_error": self._last_error,
        }

    async def run(self) -> None:
        """Connect, read, and connect again, until cancelled. What `on_message` raises ends it."""
        options = self._options
        context = self._address.ssl_context()
        wait_s = options.retry_min_s
        while True:
            try:
                await self._session(context)
            except BrokerRefused as error:
                self._failed(error)
                await asyncio.sleep(options.refused_retry_s * random.uniform(0.5, 1.0))
                continue
            except (OSError, TimeoutError, asyncio.IncompleteReadError, Disconnected) as error:
                wait_s = options.retry_min_s if self._up.is_set() else min(2 * wait_s, options.retry_max_s)
                self._failed(error)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    def _failed(self, error: Exception) -> None:
        self._up.clear()
        text = str(error) or "no answer in time"
        if text != self._last_error:
            _log.warning("%s at %s: %s", self._client_id, self._address, text)
        self._last_error = text

    async def _session(self, context: ssl.SSLContext | None) -> None:
        options = self._options
        async with asyncio.timeout(options.connect_timeout_s):
            reader, writer = await asyncio.open_connection(
                self._address.host, self._address.port, ssl=context
            )
        pinging: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(options.connect_timeout_s):
                await self._login(reader, writer)
            self._writer = writer
            self._connects += 1
            self._last_error = ""
            self._up.set()
            pinging = asyncio.create_task(_ping(writer, options.keepalive_s), name="mqtt 3.1.1 pings")
            while True:
                async with asyncio.timeout(2 * options.keepalive_s):
                    head, body = await self._read(reader)
                if head & 0xF0 == _PUBLISH:
                    self._messages += 1
                    await self._on_message(*_published(head, body))
        finally:
            self._writer = None
            if pinging is not None:
                pinging.cancel()
            with suppress(OSError):
                writer.write(_DISCONNECT)
                writer.close()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = self._address
        flags = _CLEAN_SESSION
        said = _text(self._client_id)
        for flag, text in ((_USERNAME, address.username), (_PASSWORD, address.password)):
            if text is not None:
                flags |= flag
                said += _text(text)
        header = _text("MQTT") + bytes((4, flags)) + self._options.keepalive_s.to_bytes(2, "big")
        writer.write(_packet(_CONNECT, header + said))
        head, body = await self._read(reader)
        if head != _CONNACK or len(body) != 2:
            raise Disconnected("the peer does not speak MQTT 3.1.1")
        if body[1]:
            raise BrokerRefused(_REFUSALS.get(body[1], 0x80), "the connection")
        wanted = b"".join(_text(topic) + b"\x00" for topic in self._topics)
        writer.write(_packet(_SUBSCRIBE, b"\x00\x01" + wanted))
        head, body = await self._read(reader)
        if head != _SUBACK or len(body) != 2 + len(self._topics):
            raise Disconnected("the broker did not answer the subscription")
        for topic, code in zip(self._topics, body[2:], strict=True):
            if code >= _FAILURE:
                raise BrokerRefused(code, f"the subscription {topic!r}")

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        (head,) = await reader.readexactly(1)
        length = 0
        for step in range(_MAX_LENGTH_BYTES):
            (byte,) = await reader.readexactly(1)
            length |= (byte & 127) << 7 * step
            if byte < 128:
                break
        else:
            raise Disconnected("a length of more than four bytes")
        if length > self._options.max_packet_bytes:
            raise Disconnected(f"a packet of {length} bytes; {self._options.max_packet_bytes} are taken")
        return head, await reader.readexactly(length)


async def _ping(writer: asyncio.StreamWriter, keepalive_s: int) -> None:
    while not writer.is_closing():
        await asyncio.sleep(keepalive_s / 2)
        writer.write(_PINGREQ)


def _published(head: int, body: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(body[:2], "big")
    start = 2 + size
    if len(body) < start or head & 0x06:
        raise Disconnected("a PUBLISH that cannot be, at QoS 0")
    return body[2:start].decode(errors="replace"), body[start:]


def _text(text: str) -> bytes:
    content = text.encode()
    return len(content).to_bytes(2, "big") + content


def _packet(head: int, body: bytes) -> bytes:
    length = len(body)
    out = bytearray((head,))
    while True:
        length, digit = length >> 7, length & 127
        out.append(digit | (128 if length else 0))
        if not length:
            return bytes(out) + body
