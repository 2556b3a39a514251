"""An event loop whose clock jumps: what waits for time waits no time, and the same seed runs the same way."""

import asyncio
import heapq
import random
import selectors
from collections.abc import Callable, Coroutine
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
    """For code that waits by asyncio only."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s

    def _run_once(self) -> None:
        """As asyncio's, but it looks at sockets only when nothing else is there: a third less."""
        loop: Any = self
        ready, scheduled, jump = loop._ready, loop._scheduled, self._jump
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= jump.now_s or not ready):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                loop._timer_cancelled_count -= 1
            else:
                jump.now_s = max(jump.now_s, handle._when)
                ready.append(handle)
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
            except BaseException as error:  # as a handle does it
                self.call_exception_handler({"message": f"in {handle!r}", "exception": error})


def run_virtually(main: Callable[[], Coroutine[Any, Any, None]], seed: int, limit_s: float = 600.0) -> None:
    """Run to its end within `limit_s` seconds of virtual time, with `random` seeded."""
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(main(), limit_s))
