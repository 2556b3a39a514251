"""A limit on the messages of each device: a token bucket in one number a device, in a bounded table."""

from collections import OrderedDict
from typing import Final

import msgspec

MAX_DEVICES: Final = 262_144
"""Devices remembered at most. The one that was silent for longest is forgotten: its bucket counts as full."""


class RateLimit(msgspec.Struct, frozen=True):
    """Messages that each device may send: `rate_per_s` in the long run, `burst` at once."""

    rate_per_s: float
    burst: int = 10


class RateLimiter:
    """Holds one protocol's devices to a limit.

    The bucket is kept as the time at which it is full again: the generic cell rate algorithm in its form of
    virtual scheduling (ITU-T I.371, annex A), which is a token bucket.
    """

    def __init__(self, limit: RateLimit, max_devices: int = MAX_DEVICES) -> None:
        self._interval_ms = 1000.0 / limit.rate_per_s
        self._depth_ms = self._interval_ms * limit.burst
        self._max_devices = max_devices
        self._full_ms: OrderedDict[str, float] = OrderedDict()
        self.refused = 0

    def wait_s(self, device_id: str, now_ms: int) -> float:
        """0 for a message that is within the limit; else the seconds until one would be."""
        # A clock that was set back must not make a device wait for longer than an empty bucket takes.
        full_ms = min(max(self._full_ms.pop(device_id, 0.0), now_ms), now_ms + self._depth_ms)
        over_ms = full_ms + self._interval_ms - now_ms - self._depth_ms
        # Sums of intervals are not exact; what they are off is far below a clock's tick.
        within = over_ms < 1e-3
        self._full_ms[device_id] = full_ms + self._interval_ms if within else full_ms
        if len(self._full_ms) > self._max_devices:
            self._full_ms.popitem(last=False)
        if within:
            return 0.0
        self.refused += 1
        return over_ms / 1000

    def __len__(self) -> int:
        return len(self._full_ms)


def limiter(limit: RateLimit | None) -> RateLimiter | None:
    """A limiter, where there is a limit."""
    return None if limit is None else RateLimiter(limit)
