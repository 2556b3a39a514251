"""A limit on the messages of each device: a token bucket in one number a device, in a bounded table."""

from collections import OrderedDict
from typing import Any, Final, NamedTuple, Protocol

from sensorium.actors.messages import Answer, GetDevice, Message, Outcome, Refusal
from sensorium.actors.profile import RateLimit, RateLimits

MAX_DEVICES: Final = 262_144
"""Devices remembered at most. The one that was silent for longest is forgotten: its bucket counts as full."""
TYPE_HOLDS_MS: Final = 60_000
"""For so long a device's type is taken to be what it was; then it is asked for again …"""
UNKNOWN_HOLDS_MS: Final = 5_000
"""… and sooner where there was none."""
MAX_ASKED: Final = 256
"""Devices that are asked for their type at once; the others keep what they have."""


class Submits(Protocol):
    """What the router does for it."""

    def message(self, message: Message, done: Any, token: Any) -> None:
        """Accept a message; `done(token, outcome)` follows."""
        ...


class _Bucket(NamedTuple):
    interval_ms: float
    depth_ms: float


class RateLimiter:
    """Holds one protocol's devices to a limit.

    The bucket is kept as the time at which it is full again: the generic cell rate algorithm in its form of
    virtual scheduling (ITU-T I.371, annex A), which is a token bucket.

    Args:
        limit: one for all, or one by device type, which `router` is asked for.
    """

    def __init__(
        self,
        limit: RateLimit | RateLimits,
        router: Submits | None = None,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        limits = RateLimits(limit) if isinstance(limit, RateLimit) else limit
        self._default = _bucket(limits.default)
        self._by_type = {name: _bucket(each) for name, each in limits.by_type.items()}
        self._types = None
        if self._by_type and router is not None:
            self._types = DeviceTypes(router, max_devices)
        self._max_devices = max_devices
        self._full_ms: OrderedDict[str, float] = OrderedDict()
        self.refused = 0

    def wait_s(self, device_id: str, now_ms: int) -> float:
        """0 for a message that is within the limit; else the seconds until one would be.

        Before a device's type is known, what holds for all other types holds for it.
        """
        bucket = self._default
        if self._types is not None:
            bucket = self._by_type.get(self._types.of(device_id, now_ms) or "", bucket)
        if bucket is None:
            return 0.0
        interval_ms, depth_ms = bucket
        # A clock that was set back must not make a device wait for longer than an empty bucket takes.
        full_ms = min(max(self._full_ms.pop(device_id, 0.0), now_ms), now_ms + depth_ms)
        over_ms = full_ms + interval_ms - now_ms - depth_ms
        # Sums of intervals are not exact; what they are off is far below a clock's tick.
        within = over_ms < 1e-3
        self._full_ms[device_id] = full_ms + interval_ms if within else full_ms
        if len(self._full_ms) > self._max_devices:
            self._full_ms.popitem(last=False)
        if within:
            return 0.0
        self.refused += 1
        return over_ms / 1000

    def __len__(self) -> int:
        return len(self._full_ms)


class DeviceTypes:
    """The types of devices, as the devices say; what is old is asked for again while it still counts."""

    def __init__(self, router: Submits, max_devices: int = MAX_DEVICES) -> None:
        self._router = router
        self._max_devices = max_devices
        self._known: OrderedDict[str, tuple[str | None, int]] = OrderedDict()
        """The type, and until when it holds."""
        self._asked = 0

    def of(self, device_id: str, now_ms: int) -> str | None:
        """The type; None for a device of which none is known yet, or that is not registered."""
        known = self._known.get(device_id)
        if known is None or now_ms >= known[1]:
            self._ask(device_id, None if known is None else known[0], now_ms)
        return None if known is None else known[0]

    def _ask(self, device_id: str, device_type: str | None, now_ms: int) -> None:
        if self._asked >= MAX_ASKED:
            return
        self._asked += 1
        self._keep(device_id, device_type, now_ms + UNKNOWN_HOLDS_MS)
        self._router.message(GetDevice(device_id), self._told, (device_id, now_ms))

    def _told(self, token: tuple[str, int], outcome: Outcome) -> None:
        self._asked -= 1
        device_id, asked_ms = token
        match outcome:
            case Answer(value=dict() as info) if isinstance(info.get("device_type"), str):
                self._keep(device_id, info["device_type"], asked_ms + TYPE_HOLDS_MS)
            case Refusal(code="not_found"):
                self._keep(device_id, None, asked_ms + UNKNOWN_HOLDS_MS)

    def _keep(self, device_id: str, device_type: str | None, until_ms: int) -> None:
        self._known[device_id] = (device_type, until_ms)
        self._known.move_to_end(device_id)
        if len(self._known) > self._max_devices:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


def limiter(limit: RateLimit | RateLimits | None, router: Submits | None = None) -> RateLimiter | None:
    """A limiter, where there is a limit."""
    return None if limit is None else RateLimiter(limit, router)


def _bucket(limit: RateLimit | None) -> _Bucket | None:
    if limit is None:
        return None
    interval_ms = 1000.0 / limit.rate_per_s
    return _Bucket(interval_ms, interval_ms * limit.burst)
