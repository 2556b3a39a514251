"""An event loop whose clock jumps: what waits for time waits no time, and the same seed runs the same way."""

import asyncio
import heapq
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import Any


class _Jump(selectors.DefaultSelector):
    """Never waits: when nothing is ready, the loop's clock goes on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits and nothing will ever happen")
        if not ready and timeout:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that waits by asyncio only.

    It does what asyncio's does with less about it, since storms are made of little else: it looks at sockets
    only when nothing else is there, and compares timers by their times, not by a method of theirs.
    """

    def __init__(self) -> None:
        self._jump = _Jump()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._jump.now_s + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time has come."""

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        timers, jump = self._timers, self._jump
        while timers and (not ready or timers[0][0] <= jump.now_s):
            when, _, timer = heapq.heappop(timers)
            if not timer.cancelled():
                jump.now_s = max(jump.now_s, when)
                ready.append(timer)
        if not ready:
            super()._run_once()  # type: ignore[misc]
            return
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"in {handle!r}", "exception": error})


def run_virtually(main: Callable[[], Coroutine[Any, Any, None]], seed: int, limit_s: float = 600.0) -> None:
    """Run to its end within `limit_s` seconds of virtual time, with `random` seeded."""
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(main(), limit_s))
