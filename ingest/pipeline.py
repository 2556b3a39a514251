"""From a received payload to committed readings or a dead letter, whatever the transport. Not a queue:
what is pending is the router's, and its bound is kept by the transport."""

import os
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any, Protocol
from zlib import adler32, crc32

from sensorium.actors.messages import (
    ACCEPTED,
    DEAD_LETTER_PAYLOAD_BYTES,
    DUPLICATE,
    Content,
    DeadLetter,
    Duplicate,
    Message,
    Outcome,
    ReadingFlag,
    Refusal,
    Value,
)
from sensorium.actors.profile import RateLimit, RateLimits
from sensorium.ingest.decode import Bounds, Telemetry, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.rate_limit import limiter

Done = Callable[[Any, Outcome], None]
"""`done(token, outcome)`: called once, after the commit, in order per device; must not block or raise."""

Decode = Callable[[bytes, int], list[Telemetry]]
"""`decode(payload, received_ms)`: the readings in it, at least one, or `Undecodable`."""

MAX_DEVICE_ID_CHARS = 128
_DEVICE_ID = re.compile(rf"[^\x00-\x1f\x7f-\x9f/+#\ud800-\udfff]{{1,{MAX_DEVICE_ID_CHARS}}}")
_KNOWN_DEVICES = 65_536
_MAX_ADDRESS_CHARS = 512
_NONE = int(ReadingFlag.NONE)
_REDELIVERED = int(ReadingFlag.REDELIVERED)
_BITS = 2**64
_SIGN = 2**63
# Spreads an array's indexes over the keys; odd, so that no two of them meet (Knuth, TAOCP 3, section 6.4).
_STEP = 0x9E3779B97F4A7C15


class Router(Protocol):
    """Brings messages to the hosts that own their devices. Never drops: it retries until the commit."""

    def reading(
        self,
        device_id: str,
        time_ms: int,
        received_ms: int,
        key: int,
        names: tuple[str, ...],
        values: list[Value],
        flags: int,
        done: Done,
        token: Any,
    ) -> None:
        """Accept a reading."""
        ...

    def message(self, message: Message, done: Done, token: Any) -> None:
        """Accept any other message."""
        ...

    @property
    def pending(self) -> int:
        """How many were accepted and are not yet done."""
        ...

    @property
    def load(self) -> int:
        """As `pending`, without what waits for a database that is away, within a bound."""
        ...

    async def eased(self, below: int) -> None:
        """Return once `load` is below `below`."""
        ...


@lru_cache(_KNOWN_DEVICES)
def is_device_id(device_id: str) -> bool:
    """Whether it may name a device: 1 to 128 characters, without `/`, `+`, `#` and control characters."""
    return _DEVICE_ID.fullmatch(device_id) is not None


class Pipeline:
    """Decodes telemetry and hands it to the router; what cannot be decoded becomes a dead letter.

    Args:
        router: where readings and dead letters go.
        bounds: what a payload may be at most.
        source: the protocol, as it stands in dead letters.
        limit: on each device, over which payloads become dead letters. Repetitions do not count. Protocols
            that can tell their senders to wait do that instead, and give none.
        content: what payloads are, unless it is said of one.
        letters: whether what cannot be decoded is kept; otherwise it is refused and that is all.
    """

    def __init__(
        self,
        router: Router,
        bounds: Bounds | None = None,
        source: str = "mqtt",
        limit: RateLimit | RateLimits | None = None,
        *,
        content: Content = Content.JSON,
        letters: bool = True,
    ) -> None:
        self.limiter = limiter(limit, router)
        self._router = router
        self._source = source
        self._content = content
        self._letters = letters
        self._decode = TelemetryDecoder(bounds).decode
        self._unique = count(int.from_bytes(os.urandom(8), "big") - _SIGN)
        self._payloads = 0
        self._readings = 0
        self._dead: Counter[str] = Counter()

    def telemetry(
        self,
        address: str,
        device_id: str,
        payload: bytes,
        received_ms: int,
        redelivery: int | None,
        done: Done,
        token: Any,
        *,
        redelivered: bool = False,
        decode: Decode | None = None,
        identity: int | None = None,
        known_again: bool = False,
        sent_ms: int | None = None,
        content: Content | None = None,
    ) -> None:
        """Take a payload of a device; `done(token, outcome)` follows once all of it is committed.

        An array's outcome is the first refusal among its readings, `Duplicate` when all were, else
        `Accepted`. A dead-lettered payload's is a `Refusal` with the reason, after that was committed.

        Args:
            redelivery: what stays the same when the transport delivers this message again. It identifies
                readings without a time of their own; None: nothing does, each counts as new.
            redelivered: the transport says that this may be such a repetition.
            decode: of the payload's format, where that is not our JSON.
            identity: the key that a single reading has where it comes from; None: one made of its payload.
            known_again: whether `redelivery` is the sender's own, so that any later message may repeat it.
            sent_ms: when it was sent, where what comes late comes in bursts; the limit goes by it.
        """
        self._payloads += 1
        try:
            if not is_device_id(device_id):
                raise Undecodable(
                    Reason.BAD_DEVICE_ID,
                    f"device ids have 1 to {MAX_DEVICE_ID_CHARS} characters, without /, +, # and controls",
                )
            if self.limiter is not None and not redelivered:
                self.check_rate(device_id, received_ms if sent_ms is None else sent_ms)
            decoded = (decode or self._decode)(payload, received_ms)
        except Undecodable as error:
            self._dead_letter(address, device_id, payload, received_ms, error, done, token, content)
            return
        self._readings += len(decoded)
        identity = adler32(payload) << 32 | crc32(payload) if identity is None else identity + _SIGN
        if len(decoded) > 1:
            done = _All(len(decoded), done).done
        elif decoded[0][3]:
            # By far the most are one reading with a time of its own, whose key needs no arithmetic.
            time_ms, names, values, _ = decoded[0]
            key = identity - _SIGN
            self._router.reading(device_id, time_ms, received_ms, key, names, values, _NONE, done, token)
            return
        for index, (time_ms, names, values, own_time) in enumerate(decoded):
            flags = _NONE
            if own_time:
                key = (identity + index * _STEP) % _BITS - _SIGN
            elif redelivery is None:
                key = (next(self._unique) + _SIGN) % _BITS - _SIGN
            else:
                key = ((identity ^ redelivery * _STEP) + index * _STEP) % _BITS - _SIGN
                if redelivered or known_again:
                    flags = _REDELIVERED
            self._router.reading(device_id, time_ms, received_ms, key, names, values, flags, done, token)

    def check_rate(self, device_id: str, now_ms: int) -> None:
        """Count a message of the device. Raises `Undecodable` for one that is over its limit."""
        if self.limiter is not None and (wait_s := self.limiter.wait_s(device_id, now_ms)):
            raise Undecodable(
                Reason.RATE_LIMITED, f"more messages than the device may send; wait {wait_s:.3g} s"
            )

    def refuse(
        self,
        address: str,
        device_id: str,
        payload: bytes,
        received_ms: int,
        error: Undecodable,
        done: Done,
        token: Any,
        content: Content | None = None,
    ) -> None:
        """Take a payload that an adapter could not decode by itself; `done` follows as in `telemetry`."""
        self._payloads += 1
        self._dead_letter(address, device_id, payload, received_ms, error, done, token, content)

    def _dead_letter(
        self,
        address: str,
        device_id: str,
        payload: bytes,
        received_ms: int,
        error: Undecodable,
        done: Done,
        token: Any,
        content: Content | None,
    ) -> None:
        self._dead[error.code] += 1
        if not self._letters:
            done(token, Refusal(error.code, error.detail))
            return
        letter = DeadLetter(
            device_id="" if error.reason is Reason.BAD_DEVICE_ID else device_id,
            source=self._source,
            address=_printable(address)[:_MAX_ADDRESS_CHARS],
            reason=error.code,
            detail=_printable(error.detail),
            payload=payload[:DEAD_LETTER_PAYLOAD_BYTES],
            size_bytes=len(payload),
            received_ms=received_ms,
            content=self._content if content is None else content,
        )
        refusal = Refusal(error.code, error.detail, dead_lettered=True)
        self._router.message(letter, lambda token, _: done(token, refusal), token)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: payloads, readings made of them, and dead letters by reason."""
        return {"payloads": self._payloads, "readings": self._readings, "dead_letters": dict(self._dead)}


class _All:
    """Calls `done` once, when all of a payload's readings are."""

    __slots__ = ("_done", "_duplicates", "_left", "_outcome", "_readings")

    def __init__(self, readings: int, done: Done) -> None:
        self._readings = self._left = readings
        self._done = done
        self._duplicates = 0
        self._outcome: Outcome = ACCEPTED

    def done(self, token: Any, outcome: Outcome) -> None:
        self._left -= 1
        if isinstance(outcome, Duplicate):
            self._duplicates += 1
        elif isinstance(outcome, Refusal) and self._outcome is ACCEPTED:
            self._outcome = outcome
        if not self._left:
            self._done(token, DUPLICATE if self._duplicates == self._readings else self._outcome)


def _printable(text: str) -> str:
    """The text with what a database or a terminal cannot take written as escapes."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
