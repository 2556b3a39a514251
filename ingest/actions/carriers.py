"""What every way of telling a target has in common: its Protocol, and the two ways in which it can fail."""

from typing import Final, Protocol

import msgspec

from sensorium.actors.errors import Refused, Unavailable
from sensorium.storage.delivery_rows import Claimed

MAX_ATTEMPTS: Final = 12
"""Over more than half an hour; then a delivery is dead."""
MAX_REASON_CHARS: Final = 300


class Undelivered(Unavailable):
    """It may be delivered at another time.

    Attributes:
        retry_after_s: for how long the target wants to be left alone; 0: it did not say.
        counts: whether this was an attempt; without, the target could not even be tried.
        most: how often it may be attempted.
    """

    def __init__(
        self,
        reason: str,
        retry_after_s: float = 0.0,
        *,
        counts: bool = True,
        most: int = MAX_ATTEMPTS,
    ) -> None:
        super().__init__(short(reason))
        self.retry_after_s = retry_after_s
        self.counts = counts
        self.most = most


class Undeliverable(Refused):
    """It never can be delivered so: a person has to look at it."""

    code = "undeliverable"


class Carrier(Protocol):
    """One way of telling targets."""

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """Tell the target; return when it has taken the message. The dispatcher bounds the time.

        Raises:
            Undelivered: it has not, or nobody knows.
            Undeliverable: it never will.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


def message(delivery: Claimed) -> bytes:
    """What is sent to webhooks, MQTT and Kafka: the same bytes at each attempt."""
    return msgspec.json.encode(delivery.content)


def short(reason: str) -> str:
    """One line that fits into a row."""
    line = " ".join(reason.split())
    return line if len(line) <= MAX_REASON_CHARS else line[: MAX_REASON_CHARS - 1] + "…"
