"""Brings durable timers to their devices when they are due, from the log and from what was just committed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from sensorium.actors.errors import Unavailable
from sensorium.actors.messages import TimerFired
from sensorium.actors.ports import Log
from sensorium.actors.records import TimerRow
from sensorium.actors.timers import TimerQueue

HORIZON_MS: Final = 60_000
"""How far ahead of the clock the timers are known."""

PAGE: Final = 10_000
"""Timers read from the log at a time."""

TURNS: Final = 500
"""Timers that share one commit."""

TICK_S: Final = 0.1
"""Timers are brought at most so often, those together that came due meanwhile."""

LOOK_S: Final = 1.0
"""How often the clock is looked at when nothing is due sooner: it may jump."""

RETRY_S: Final = 1.0


class Ticker:
    """The timers of a host's shards.

    Args:
        fire: runs the turns; returns when they are committed, raises `Unavailable` when they must come again.
    """

    def __init__(
        self,
        log: Log,
        shards: Sequence[int],
        clock_ms: Callable[[], int],
        fire: Callable[[Sequence[TimerFired]], Awaitable[None]],
    ) -> None:
        self._log = log
        self._shards = list(shards)
        self._clock_ms = clock_ms
        self._fire = fire
        self._queue = TimerQueue()
        self._fired = 0
        self._sooner = asyncio.Event()
        """Set when something may be due sooner than was thought."""

    def own(self, shards: Iterable[int]) -> None:
        """Bring the timers of these shards from now on. Those of others may still come out."""
        self._shards = list(shards)
        # What the log holds for shards that are new is not known yet.
        self._queue.horizon_ms = 0
        self._sooner.set()

    def add(self, rows: Iterable[TimerRow]) -> None:
        """Take timers that were just committed."""
        next_ms = self._queue.next_ms
        self._queue.add(rows)
        if self._queue.next_ms != next_ms:
            self._sooner.set()

    async def run(self) -> None:
        """Fire what comes due, until cancelled. While the log is away, timers wait."""
        queue = self._queue
        while True:
            now_ms = self._clock_ms()
            try:
                if queue.horizon_ms < now_ms + HORIZON_MS // 2:
                    await self._look_ahead(now_ms + HORIZON_MS)
                due = queue.take_due(now_ms, TURNS)
                if due:
                    await self._bring(due)
                else:
                    await self._wait(now_ms)
            except Unavailable:
                await asyncio.sleep(RETRY_S)

    def statistics(self) -> dict[str, Any]:
        """How many timers are due within the horizon, how many were fired, and how late the next one is."""
        next_ms = self._queue.next_ms
        late_ms = 0 if next_ms is None else max(0, self._clock_ms() - next_ms)
        return {"timers_soon": len(self._queue), "timers_fired": self._fired, "timers_lag_s": late_ms / 1000}

    async def _wait(self, now_ms: int) -> None:
        """Until the next one is due, as far as is known, or until it is time to look again."""
        self._sooner.clear()
        next_ms = self._queue.next_ms
        due_s = LOOK_S if next_ms is None else (next_ms - now_ms) / 1000
        try:
            async with asyncio.timeout(min(LOOK_S, max(TICK_S, due_s))):
                await self._sooner.wait()
        except TimeoutError:
            return

    async def _look_ahead(self, horizon_ms: int) -> None:
        shards = self._shards
        rows = await self._log.timers(shards, horizon_ms, PAGE)
        last_ms = rows[-1].due_ms if len(rows) == PAGE else None
        # The last one's millisecond may hold more, so the next look begins with it.
        self._queue.extend(rows, horizon_ms if last_ms is None else last_ms)
        if shards is not self._shards:
            self._queue.horizon_ms = 0

    async def _bring(self, due: Sequence[tuple[int, str, str]]) -> None:
        try:
            await self._fire([TimerFired(device_id, name, due_ms) for due_ms, device_id, name in due])
        except Unavailable:
            self._queue.put_back(due)
            raise
        self._fired += len(due)
