"""One subscriber's part of the live feed: a bounded queue whose oldest frames go when the reader is slow."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from sensorium.serve.feed_filter import FeedFilter
from sensorium.serve.feed_frames import Frame, cursor_frame, gap_frame

MAX_QUEUED_BYTES: Final = 1 << 20
"""Of frames that wait for one subscriber; one frame may be larger alone."""
MAX_QUEUED_FRAMES: Final = 64
KEEPALIVE_S: Final = 15.0
"""A subscriber hears something at least so often: below what proxies wait for."""


class Subscription:
    """Frames for one subscriber. `offer` never waits; whoever sends calls `next`, one call at a time.

    `here` gives the cursor behind all that was offered so far.
    """

    def __init__(self, which: FeedFilter, here: Callable[[], str]) -> None:
        self.filter = which
        self.dropped = 0
        """Changes that were left out since it began."""
        self.closed = False
        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0
        self._something = asyncio.Event()
        self._here = here
        self._given = here()
        self._gap_from: str | None = None
        self._gap_items = 0

    def offer(self, frame: Frame) -> None:
        """Add it; the oldest are dropped where they no longer fit, and a gap is told in their place."""
        self._queue.append(frame)
        self._queued_bytes += len(frame.body)
        while len(self._queue) > 1 and (
            self._queued_bytes > MAX_QUEUED_BYTES or len(self._queue) > MAX_QUEUED_FRAMES
        ):
            oldest = self._queue.popleft()
            self._queued_bytes -= len(oldest.body)
            self.miss(oldest.items)
        self._something.set()

    def miss(self, items: int) -> None:
        """Tell of a gap behind what was given so far, of `items` changes (0: nobody counted them)."""
        if self._gap_from is None:
            self._gap_from = self._given
        self._gap_items += items
        self.dropped += items
        self._something.set()

    def close(self) -> None:
        """No frame follows what is queued."""
        self.closed = True
        self._something.set()

    async def next(self) -> Frame | None:
        """The next frame; after `KEEPALIVE_S` without any, the feed's cursor; None when it is closed."""
        if not self._waiting:
            self._something.clear()
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    await self._something.wait()
            except TimeoutError:
                if not self._waiting and not self.closed:
                    self._given = self._here()
                    return cursor_frame(self._given)
        if self._gap_from is not None:
            frame = gap_frame(self._gap_from, self._gap_items)
            self._gap_from, self._gap_items = None, 0
            return frame
        if self._queue:
            frame = self._queue.popleft()
            self._queued_bytes -= len(frame.body)
            self._given = frame.cursor
            return frame
        return None

    @property
    def _waiting(self) -> bool:
        return bool(self._queue) or self._gap_from is not None or self.closed
