"""The MQTT 5 client of the platform: stays connected, delivers in batches, acknowledges when told.

Stands on gmqtt's codec; gmqtt's own client neither holds back acknowledgements nor what comes in.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from gmqtt.client import Message

from sensorium.ingest.errors import BrokerRefused, Disconnected, InvalidAddress
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_connection import Connection, OnPackets
from sensorium.ingest.mqtt_outbox import Codec, Outbox, build_publish
from sensorium.ingest.mqtt_wire import Packet

_log = logging.getLogger(__name__)

NO_SUBSCRIBERS = 0x10
"""The reason code of a PUBACK for what nobody has subscribed to (OASIS MQTT 5.0, section 3.4.2.1)."""

MAX_WINDOW = 65_535
"""The most messages that may be unacknowledged: there are no more packet ids."""

_MAX_EXPONENT = 20
_MAX_CLIENT_ID_BYTES = 128


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to talk to a broker. Times in seconds.

    Attributes:
        session_expiry_s: how long the broker keeps our session, and with it what we have not
            acknowledged, while we are away. 0 makes every connection start clean.
        receive_maximum: QoS 1 and 2 messages that the broker may have unacknowledged at us: the window.
        connect_timeout_s: for connecting, CONNACK and SUBACK together.
        retry_min_s, retry_max_s: bounds of the exponential backoff, of which a random part is waited.
        refused_retry_s: the wait after the broker said no, which rarely changes within seconds.
        stable_s: a connection that held this long starts the backoff anew when it ends.
        max_packet_bytes: larger ones the broker shall not send.
        topic_aliases: how many topic aliases the broker may use.
    """

    session_expiry_s: int = 86_400
    receive_maximum: int = 20_000
    keepalive_s: int = 30
    connect_timeout_s: float = 10.0
    retry_min_s: float = 0.25
    retry_max_s: float = 30.0
    refused_retry_s: float = 60.0
    stable_s: float = 10.0
    max_packet_bytes: int = 8 * 1024 * 1024
    topic_aliases: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.receive_maximum <= MAX_WINDOW:
            raise InvalidAddress(f"receive_maximum must be 1 to {MAX_WINDOW}")


class Will(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker publishes for us when it loses us."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True
    delay_s: int = 0


class MqttClient:
    """Connects on `async with` and reconnects until its end, with backoff and jitter.

    Args:
        address: the broker.
        client_id: printable ASCII, stable over restarts and used by nobody else: the broker knows the
            session by it, and evicts the other of two that share one.
        subscriptions: filters with their maximum QoS, subscribed at every connect.
        on_packets: called with the connection and each batch of packets; it must not block. Every packet
            with an ack word must be given back to that connection's `acknowledge`, when its work is durable.
        on_connect: called whenever packets can come and go again; must not block.
        repeat: whether what was published and not answered when a connection breaks is published again.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        subscriptions: tuple[tuple[str, int], ...] = (),
        on_packets: OnPackets | None = None,
        options: MqttOptions | None = None,
        will: Will | None = None,
        repeat: bool = True,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        if not (
            client_id.isascii() and client_id.isprintable() and 0 < len(client_id) <= _MAX_CLIENT_ID_BYTES
        ):
            raise InvalidAddress(
                f"client id {client_id!r}: 1 to {_MAX_CLIENT_ID_BYTES} printable ASCII characters"
            )
        self.address = address
        self.client_id = client_id
        self._subscriptions = subscriptions
        self._on_connect = on_connect
        self._on_packets = on_packets or _acknowledge_at_once
        self._options = options or MqttOptions()
        self._will = will
        self._codec = Codec()
        self._outbox = Outbox(self._codec, repeat)
        self._released: set[int] = set()
        self._connection: Connection | None = None
        self._order = asyncio.Lock()
        self._up = asyncio.Event()
        self._paused = False
        self._supervisor: asyncio.Task[None] | None = None
        self._state = "new"
        self._connects = 0
        self._failures = 0
        self._refusals = 0
        self._last_error = ""

    async def __aenter__(self) -> Self:
        if self._supervisor is not None:
            raise RuntimeError("an MqttClient is entered once")
        self._ssl = self.address.ssl_context()
        self._supervisor = asyncio.create_task(self._run(), name=f"mqtt {self.client_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._supervisor is not None
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])
        self._outbox.close()
        self._state = "closed"
        self._up.clear()
        if not self._supervisor.cancelled():
            # It only ends by itself through a fault of ours.
            self._supervisor.result()

    @property
    def state(self) -> str:
        """ "new", "connecting", "connected", "waiting" (before the next try), "refused" or "closed"."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """Whether packets can come and go now."""
        return self._up.is_set()

    async def connected(self) -> None:
        """Return once connected and subscribed. Bound it with `asyncio.timeout`."""
        await self._up.wait()

    def pause(self) -> None:
        """Stop reading, QoS 0 included, over reconnects too. Answers to `publish` are not read either."""
        self._paused = True
        if self._connection is not None and self.is_connected:
            self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    async def publish(
        self, topic: str, payload: bytes, qos: int = 1, retain: bool = False, **properties: Any
    ) -> int:
        """Publish; returns when the broker has the message (QoS 1 and 2) or it was handed to the socket.

        QoS 1 and 2 wait for a connection and for the broker's window, and are sent again after a reconnect;
        bound the wait with `asyncio.timeout`. `properties` go by gmqtt's names: `message_expiry_interval`,
        `response_topic`, `correlation_data`, `user_property`, …

        Returns:
            The broker's reason code: 0, or `NO_SUBSCRIBERS` from brokers that say so.

        Raises:
            BrokerRefused: the broker answered with a failure, such as 0x87, not authorised.
            Disconnected: QoS 0 without a connection; QoS 2 when the broker lost the session; what must not be
                repeated when the connection broke; or closed.
        """
        if not topic or any(c in topic for c in "+#\0"):
            raise ValueError(f"not a topic to publish to: {topic!r}")
        message = Message(topic, payload, qos=qos, retain=retain, **properties)
        async with self._order:  # fair: whoever asks later does not overtake while the socket is full
            if self._connection is not None:
                await self._connection.drain()
        if qos:
            return await self._outbox.send(message)
        if self._connection is None or not self.is_connected:
            raise Disconnected(f"not connected to {self.address}: {self._last_error or 'connecting'}")
        self._connection.write(build_publish(self._codec, message)[1])
        return 0

    def statistics(self) -> dict[str, Any]:
        """The state, counts of connections, failures and refusals, the last error, messages in flight out."""
        return {
            "state": self._state,
            "connects": self._connects,
            "failures": self._failures,
            "refusals": self._refusals,
            "last_error": self._last_error,
            "publishing": len(self._outbox),
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            self._state = "connecting"
            try:
                connection = await self._connect()
            except BrokerRefused as error:
                self._refusals += 1
                self._failed(error, "refused")
                await asyncio.sleep(self._options.refused_retry_s * random.uniform(0.5, 1.0))
                continue
            except (OSError, TimeoutError, Disconnected) as error:
                self._failures += 1
                self._failed(error, "waiting")
            else:
                since = loop.time()
                try:
                    reason = await asyncio.shield(connection.lost)
                except asyncio.CancelledError:
                    self._up.clear()
                    await connection.close()
                    raise
                self._up.clear()
                self._failed(Disconnected(reason), "waiting")
                if loop.time() - since >= self._options.stable_s:
                    attempt = 0
            await asyncio.sleep(random.uniform(0, self._backoff_s(attempt)))
            attempt += 1

    def _backoff_s(self, attempt: int) -> float:
        return min(self._options.retry_max_s, self._options.retry_min_s * 2.0 ** min(attempt, _MAX_EXPONENT))

    def _failed(self, error: Exception, state: str) -> None:
        self._state = state
        text = str(error) or f"no answer within {self._options.connect_timeout_s:g} s"
        if text != self._last_error:
            _log.warning("%s at %s: %s", self.client_id, self.address, text)
        self._last_error = text

    async def _connect(self) -> Connection:
        options = self._options
        async with asyncio.timeout(options.connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                self._new_connection, self.address.host, self.address.port, ssl=self._ssl
            )
            try:
                session_present, granted = await connection.login(
                    self.client_id,
                    options.session_expiry_s == 0,
                    self.address.username,
                    self.address.password,
                    self._will_message(),
                    session_expiry_interval=options.session_expiry_s,
                    receive_maximum=options.receive_maximum,
                    maximum_packet_size=options.max_packet_bytes,
                    topic_alias_maximum=options.topic_aliases,
                )
                if not session_present:
                    self._released.clear()
                # In a session that was kept, too: Mosquitto forgets shared ones when it restarts.
                if self._subscriptions:
                    await connection.subscribe(self._subscriptions)
            except BaseException:
                connection.abort("the session could not be set up")
                raise
        if connection.lost.done():
            raise Disconnected(connection.lost.result())
        self._connection = connection
        self._connects += 1
        self._state = "connected"
        self._last_error = ""
        self._outbox.connected(connection.write, granted.get("receive_maximum", [65_535])[0], session_present)
        if self._paused:
            connection.pause()
        self._up.set()
        if self._on_connect is not None:
            self._on_connect()
        return connection

    def _new_connection(self) -> Connection:
        return Connection(
            self._codec,
            self._outbox,
            self._released,
            self._on_packets,
            self._options.keepalive_s,
            self._options.max_packet_bytes,
        )

    def _will_message(self) -> Message | None:
        if self._will is None:
            return None
        will = self._will
        return Message(
            will.topic, will.payload, qos=will.qos, retain=will.retain, will_delay_interval=will.delay_s
        )


def _acknowledge_at_once(connection: Connection, packets: list[Packet]) -> None:
    connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
