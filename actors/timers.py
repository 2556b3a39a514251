"""The timers that come due soon, in order: what a host keeps of the durable ones. Pure."""

import heapq
from collections.abc import Iterable

from sensorium.actors.records import TimerRow


class TimerQueue:
    """Timers due before `horizon_ms`; those beyond it stay in the log until the next look.

    A cancelled timer may still come out: the device knows better.
    """

    def __init__(self) -> None:
        self.horizon_ms = 0
        self._heap: list[tuple[int, str, str]] = []
        self._known: set[tuple[int, str, str]] = set()

    def extend(self, rows: Iterable[TimerRow], horizon_ms: int) -> None:
        """Take what the log holds up to a new horizon."""
        self.horizon_ms = horizon_ms
        self.add(rows)

    def add(self, rows: Iterable[TimerRow]) -> None:
        """Take those of `rows` that come due before the horizon; rows of timers that are gone do nothing."""
        for row in rows:
            if row.due_ms is not None and row.due_ms < self.horizon_ms:
                entry = (row.due_ms, row.device_id, row.name)
                if entry not in self._known:
                    self._known.add(entry)
                    heapq.heappush(self._heap, entry)

    def take_due(self, now_ms: int, limit: int) -> list[tuple[int, str, str]]:
        """Remove and return up to `limit` entries (due_ms, device id, name) that are due, soonest first."""
        due: list[tuple[int, str, str]] = []
        while self._heap and self._heap[0][0] <= now_ms and len(due) < limit:
            entry = heapq.heappop(self._heap)
            self._known.discard(entry)
            due.append(entry)
        return due

    def put_back(self, entries: Iterable[tuple[int, str, str]]) -> None:
        """Take entries again whose turn did not come about."""
        for entry in entries:
            if entry not in self._known:
                self._known.add(entry)
                heapq.heappush(self._heap, entry)

    @property
    def next_ms(self) -> int | None:
        """When the next one is due."""
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)
