"""Acknowledgements of one connection's packets, gathered and sent together."""

import asyncio
from collections.abc import Callable

from sensorium.actors.messages import Outcome
from sensorium.ingest.mqtt_connection import Connection


class Acks:
    """Collects what is done of one connection's packets and acknowledges it once a turn of the loop."""

    __slots__ = ("_count", "_loop", "_words", "connection")

    def __init__(self, connection: Connection, count: Callable[[int, int], None]) -> None:
        self.connection = connection
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._words: list[int] = []

    def done(self, ack: int, outcome: Outcome) -> None:
        """The packet's work is committed, whatever its outcome."""
        words = self._words
        words.append(ack)
        if len(words) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        words, self._words = self._words, []
        acked = self.connection.acknowledge([word for word in words if word])
        self._count(len(words), acked)
