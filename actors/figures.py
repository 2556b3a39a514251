"""Counters and the latency histogram of a process, as plain values that travel and add up."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

LATENCY_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds, included, of the latency histogram's buckets; one more bucket takes what is slower."""


class Histogram:
    """How many observations fell into each bucket, and their sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """One observation."""
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def observe_since_ms(self, now_ms: int, received_ms: Iterable[int]) -> None:
        """Observe for each of `received_ms` the time from then to `now_ms`."""
        for since_ms, count in Counter(received_ms).items():
            seconds = max(now_ms - since_ms, 0) / 1000.0
            self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += count
            self.sum_s += seconds * count

    def as_dict(self) -> dict[str, Any]:
        """`{"counts": [...], "sum_s": float}`."""
        return {"counts": list(self.counts), "sum_s": self.sum_s}


def quantile_s(counts: Sequence[int], q: float) -> float | None:
    """The q-quantile in seconds by interpolation within its bucket; None without observations."""
    total = sum(counts)
    if not total:
        return None
    rank = q * total
    below = 0
    for i, count in enumerate(counts):
        if count and below + count >= rank:
            low = LATENCY_BOUNDS_S[i - 1] if i else 0.0
            high = LATENCY_BOUNDS_S[i] if i < len(LATENCY_BOUNDS_S) else LATENCY_BOUNDS_S[-1] * 2
            return low + (high - low) * (rank - below) / count
        below += count
    return LATENCY_BOUNDS_S[-1] * 2


def add_up(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of statistics: numbers add, lists add by position, mappings by key; others: the last stays."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = _add(total[name], value) if name in total else value
    return total


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return add_up((a, b))
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [_add(x, y) for x, y in zip(a, b, strict=True)]
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return a + b
    return b
