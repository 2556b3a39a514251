"""A target that fails again and again is left alone for a while. Pure."""

from typing import Final

FAILURES: Final = 5
"""In a row, after which the circuit opens."""
FIRST_OPEN_S: Final = 5.0
LONGEST_OPEN_S: Final = 300.0


class Circuit:
    """Closed: all go. Open: none until `open_until_s`, then one, whose outcome closes or opens it again."""

    __slots__ = ("_first_s", "_open_s", "failures", "open_until_s")

    def __init__(self, scale: float = 1.0) -> None:
        self.failures = 0
        self.open_until_s = float("-inf")
        self._open_s = self._first_s = FIRST_OPEN_S * scale

    def room(self, now_s: float, most: int) -> int:
        """How many may go now, of `most` at once."""
        if self.failures < FAILURES:
            return most
        return 1 if now_s >= self.open_until_s else 0

    def succeeded(self) -> None:
        """The target answers."""
        self.failures = 0
        self._open_s = self._first_s

    def failed(self, now_s: float) -> None:
        """The target does not answer."""
        self.failures += 1
        # Those that were under way together count as one.
        if self.failures >= FAILURES and now_s >= self.open_until_s:
            self.open_until_s = now_s + self._open_s
            self._open_s = min(2 * self._open_s, LONGEST_OPEN_S)

    def paused(self, now_s: float, for_s: float) -> None:
        """The target, or a person, asked to be left alone for so long."""
        self.failures = max(self.failures, FAILURES)
        self.open_until_s = max(self.open_until_s, now_s + for_s)

    def state(self, now_s: float) -> str:
        """ "closed", "open" or "half-open"."""
        if self.failures < FAILURES:
            return "closed"
        return "half-open" if now_s >= self.open_until_s else "open"
