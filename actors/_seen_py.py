"""The memory of readings, in Python; `_seen.c` does the same faster."""

from array import array
from typing import Final

REMEMBERED: Final = 32
"""Readings remembered exactly. Whatever is older than the memory reaches is looked up in the log."""

_BEFORE_ALL: Final = -(2**63)


class Seen:
    """The last `REMEMBERED` readings by time and key.

    `floor_ms`: among readings with a later event time the memory is complete; at or below it, only the log
    knows.
    """

    __slots__ = ("_keys", "_next", "_times", "floor_ms")

    def __init__(self) -> None:
        self._times = array("q", [_BEFORE_ALL]) * REMEMBERED
        self._keys = array("q", bytes(8 * REMEMBERED))
        self._next = 0
        self.floor_ms = _BEFORE_ALL

    def remember(self, time_ms: int, key: int) -> None:
        """Add a reading, forgetting the oldest added."""
        at = self._next
        forgotten = self._times[at]
        if forgotten > self.floor_ms:
            self.floor_ms = forgotten
        self._times[at] = time_ms
        self._keys[at] = key
        self._next = (at + 1) % REMEMBERED

    def holds(self, time_ms: int, key: int) -> bool:
        """Whether a reading of this time and key is in the memory."""
        return key in self._keys and any(
            k == key and t == time_ms for k, t in zip(self._keys, self._times, strict=True)
        )

    def holds_key(self, key: int) -> bool:
        """Whether a reading of this key, at whatever time, is in the memory."""
        return key in self._keys and any(
            k == key and t != _BEFORE_ALL for k, t in zip(self._keys, self._times, strict=True)
        )

    def dump(self) -> tuple[bytes, bytes, int, int]:
        """The memory as plain values, for `restore`."""
        return self._times.tobytes(), self._keys.tobytes(), self._next, self.floor_ms

    @classmethod
    def restore(cls, dump: tuple[bytes, bytes, int, int]) -> "Seen":
        """The memory as it was when `dump` was taken."""
        seen = cls()
        times, keys, following, seen.floor_ms = dump
        if len(times) != 8 * REMEMBERED or len(keys) != 8 * REMEMBERED or not 0 <= following < REMEMBERED:
            raise ValueError("the dump is of another memory")
        seen._next = following
        seen._times = array("q", times)
        seen._keys = array("q", keys)
        return seen
