"""Memory of received CoAP messages, bounded in time and number, so that a retransmission is carried out once.

Takes the place of aiocoap's, which keeps a timer a message and grows with the rate (RFC 7252, section 4.5).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

EXCHANGE_LIFETIME_S: Final = 247.0
"""For so long a message id means the same message (RFC 7252, section 4.8.2)."""

MAX_EXCHANGES: Final = 50_000
"""Messages remembered at most, with their responses."""

Key = Hashable


class Exchanges:
    """Which messages came, and what was answered. Keys are (remote, message id).

    Attributes:
        complete_since_s: from this moment on, nothing that is younger than a lifetime was forgotten.
    """

    def __init__(self, clock_s: Callable[[], float], max_exchanges: int = MAX_EXCHANGES) -> None:
        self._clock_s = clock_s
        self._max_exchanges = max_exchanges
        self._known: OrderedDict[Key, tuple[float, Any]] = OrderedDict()
        self.complete_since_s = clock_s()

    def add(self, key: Key) -> bool:
        """Remember a message; False when it is known already."""
        now_s = self._clock_s()
        while self._known:
            came_s, _ = next(iter(self._known.values()))
            if now_s - came_s < EXCHANGE_LIFETIME_S:
                break
            self._known.popitem(last=False)
        if key in self._known:
            return False
        if len(self._known) >= self._max_exchanges:
            self._known.popitem(last=False)
            self.complete_since_s = now_s
        self._known[key] = now_s, None
        return True

    @property
    def complete(self) -> bool:
        """Whether a message that is not known is surely new, and not the repetition of a forgotten one."""
        return self._clock_s() - self.complete_since_s >= EXCHANGE_LIFETIME_S

    def response(self, key: Key) -> Any:
        """What the message was answered with; None while nothing was."""
        known = self._known.get(key)
        return None if known is None else known[1]

    # What aiocoap's message manager does with its own memory, to store a response.

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def __setitem__(self, key: Key, response: Any) -> None:
        came_s, _ = self._known[key]
        self._known[key] = came_s, response

    def __len__(self) -> int:
        return len(self._known)


def install(exchanges: Exchanges, manager: Any) -> None:
    """Let an `aiocoap.messagemanager.MessageManager` use `exchanges` as its memory."""

    def deduplicate(message: Any) -> bool:
        key = (message.remote, message.mid)
        if exchanges.add(key):
            return False
        response = exchanges.response(key)
        # A confirmable message that is still being worked on is answered when that is done.
        if response is not None and message.mtype == 0:
            manager._send_initially(response)
        return True

    manager._recent_messages = exchanges
    manager._deduplicate_message = deduplicate
