"""A host's right to answer from memory: while it has heard from the database lately. Reads no clock."""

from typing import Final

LEASE_S: Final = 5.0
"""After a renewal, nobody else answers for the host's shards for so long."""

MARGIN_S: Final = 0.5
"""So much earlier the host itself stops: for clocks that run at different rates."""

RENEW_EVERY_S: Final = 1.0


class Lease:
    """Times are those of a monotonic clock, taken before the renewal was asked for."""

    def __init__(self) -> None:
        self._renewed_s = float("-inf")

    def renewed(self, asked_s: float) -> None:
        """A renewal that was asked for at that time has succeeded."""
        self._renewed_s = max(self._renewed_s, asked_s)

    def age_s(self, now_s: float) -> float:
        """Time since the last renewal; infinite before the first."""
        return now_s - self._renewed_s

    def holds(self, now_s: float) -> bool:
        """Whether the host may still answer."""
        return self.age_s(now_s) < LEASE_S - MARGIN_S
