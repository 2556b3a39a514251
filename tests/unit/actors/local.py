"""A runtime in one event loop: the real hosts, router and coordinator over plain objects instead of Ray."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from sensorium.actors.placement import Node
from sensorium.actors.router import HostGone, Table


class LocalProcess:
    """An object that can be killed: calls under way, before or after their effect, end in `HostGone`.

    Or it can be cut off: its callers hear nothing more, but it lives on and finishes what it was asked for.
    """

    def __init__(self, thing: Any, rng: random.Random) -> None:
        self.address = self
        self.thing = thing
        self._rng = rng
        self._dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def dead(self) -> bool:
        return self._dead.done()

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        if self._dead.done() or self._cut.done():
            raise HostGone("dead or cut off", dead=self._dead.done())
        result = getattr(self.thing, method)(*args)
        if not asyncio.iscoroutine(result):
            return result
        task = asyncio.ensure_future(result)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        ends = {task, self._dead, self._cut}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        if self._cut.done():
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
            raise HostGone("cut off during the call")
        if self._dead.done() or not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise HostGone("died during the call", dead=self._dead.done())
        return task.result()

    async def deliver(self, data: bytes) -> bytes:
        reply: bytes = await self.call("deliver", data, timeout_s=30.0)
        return reply

    def cut(self) -> None:
        """Cut it off. Whoever kills it then does not reach it either."""
        if not self._cut.done():
            self._cut.set_result(None)

    def kill(self) -> None:
        if not self._cut.done():
            self.end()

    def end(self) -> None:
        """End it, cut off or not."""
        if not self._dead.done():
            self._dead.set_result(None)
            for task in getattr(self.thing, "_tasks", []):
                task.cancel()


class LocalLauncher:
    """Launches into this loop and remembers the newest of each name, by the part before the dot."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.current: dict[str, LocalProcess] = {}
        self.named: dict[str, LocalProcess] = {}
        self.machines: list[Node] = []
        self.room: dict[str, bool] = {}
        """By name whether a node has what it needs; not named: yes."""
        self.needs: dict[str, Any] = {}
        self.launched: list[LocalProcess] = []

    def launch(
        self, name: str, node: str, make: Callable[..., Any], *args: Any, needs: Any = None
    ) -> LocalProcess:
        if self.room.get(name, True) is False:
            raise RuntimeError(f"no node has what {name} needs")
        self.needs[name] = needs
        process = LocalProcess(make(*args), self.rng)
        self.current[name.partition(".")[0]] = process
        self.named[name] = process
        self.launched.append(process)
        return process

    def living(self) -> dict[str, LocalProcess]:
        return {name: process for name, process in self.named.items() if not process.dead}

    def nodes(self) -> list[Node]:
        return self.machines


class LocalTransport:
    """A router's way to hosts in this loop."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    async def table(self, newer_than: int | None = None) -> Table:
        table: Table = await self._coordinator.table(newer_than)
        return table

    async def close(self) -> None:
        """Nothing is held."""

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """Nobody waits here."""
        return None

    async def deliver(self, address: LocalProcess, data: bytes) -> bytes:
        return await address.deliver(data)
