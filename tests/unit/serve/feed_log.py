"""A log in memory to follow: commits become visible when the test says so, in the order of their times."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import Value
from sensorium.actors.placement import device_key
from sensorium.storage.live_cursor import Position
from sensorium.storage.live_log import Change

AT_MS = 1_704_110_400_000


class FeedLog:
    """Implements `FollowsLog`; everything is settled at once."""

    def __init__(self) -> None:
        self.commits: list[list[Change]] = []
        self.looks = 0
        self.open = 0
        self.down = False
        self.asked: tuple[bool, frozenset[int] | None] | None = None
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.may_look = asyncio.Event()
        self.may_look.set()

    def opened(self) -> list["FeedLog"]:
        self.open += 1
        return [self]

    def commit(self, *changes: Change) -> None:
        self.commits.append([change._replace(committed_ms=AT_MS + len(self.commits)) for change in changes])

    async def here(self) -> Position:
        self._check()
        return Position(AT_MS + len(self.commits))

    async def after(
        self, position: Position, readings: bool, devices: Collection[int] | None
    ) -> tuple[list[Change], Position, bool]:
        self._check()
        self.looks += 1
        self.asked = readings, None if devices is None else frozenset(devices)
        await self.may_look.wait()
        found = _of(self.commits[position.floor_ms - AT_MS :], readings, devices)
        return found, await self.here(), False

    async def between(
        self, start: Position, end: Position, readings: bool, devices: Collection[int] | None
    ) -> AsyncGenerator[tuple[list[Change], Position], None]:
        for n in range(start.floor_ms - AT_MS, end.floor_ms - AT_MS):
            self._check()
            yield _of([self.commits[n]], readings, devices), Position(AT_MS + n + 1)

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.open -= 1

    def _check(self) -> None:
        if self.down:
            raise LogUnavailable("the database cannot be reached")


def _of(commits: list[list[Change]], readings: bool, devices: Collection[int] | None) -> list[Change]:
    return [
        change
        for commit in commits
        for change in commit
        if (readings or change.kind is not None)
        and (devices is None or device_key(change.device_id) in devices)
    ]


def reading(device_id: str = "one", offset: int = 1, device_type: str = "pump", **values: Value) -> Change:
    return Change(1, offset, device_id, device_type, AT_MS, 0, values or {"temperature": 20.5})


def happened(
    kind: str, device_id: str = "one", offset: int = 1, device_type: str = "pump", **body: Any
) -> Change:
    return Change(1, offset, device_id, device_type, AT_MS, 0, None, False, kind, body)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The app on a real server in this loop: its address, such as 127.0.0.1:4711."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    config = server.config
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.force_exit = True
        with suppress(TimeoutError):
            await server.shutdown()
