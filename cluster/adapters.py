"""Adapters as services of the coordinator: each in a process of its own, with a router."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.router import Router
from sensorium.actors.runtime import make_router
from sensorium.ingest.adapter import Adapter
from sensorium.storage.database import Pool, close_pool, open_pool

Open = Callable[[Router, AsyncExitStack], Awaitable[Adapter]]
"""`open(router, stack)`: an adapter, not started. What `stack` is given is closed after it has stopped."""


class AdapterService:
    """An adapter and its router.

    Args:
        name: unique among services.
        protocol: what it speaks to devices, as it stands in statistics; None for ways out only.
        open_adapter: makes it, in the service's process; must pickle.
    """

    titled_by_name = True
    """So that whoever looks at the processes can tell them apart."""

    def __init__(self, name: str, protocol: str | None, namespace: str, open_adapter: Open) -> None:
        self._name = name
        self._protocol = protocol
        self._open = open_adapter
        self._router = make_router(f"{name}.{os.getpid()}", namespace)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start it. Raises as `Adapter.start`."""
        await self._router.start()
        self._adapter = await self._open(self._router, self._stack)
        await self._adapter.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._adapter.check()

    def statistics(self) -> dict[str, Any]:
        """Of the adapter, with the router's under "router"."""
        return {
            "name": self._name,
            **({} if self._protocol is None else {"protocol": self._protocol}),
            **msgspec.to_builtins(self._adapter.statistics()),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Stop it, then what it needed."""
        await self._adapter.stop()
        await self._stack.aclose()
        await self._router.close()


class TaskAdapter:
    """Something that runs until it is cancelled, as an adapter."""

    def __init__(
        self,
        name: str,
        run: Callable[[], Coroutine[Any, Any, None]],
        statistics: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._name = name
        self._run = run
        self._statistics = statistics

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def check(self) -> None:
        """Raise what ended it, if something but `stop` did."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    def statistics(self) -> dict[str, Any]:
        """Its own."""
        return dict(self._statistics())

    async def stop(self) -> None:
        """Cancel it, and wait until it has ended."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def adapter_service(
    name: str, protocol: str | None, namespace: str, open_adapter: Callable[..., Any], *given: Any
) -> ServiceSpec:
    """The service of what `open_adapter(*given, router, stack)` opens (see `Open`); all of it must pickle."""
    return ServiceSpec(name, AdapterService, (name, protocol, namespace, partial(open_adapter, *given)))


async def opened_pools(stack: AsyncExitStack, dsns: Sequence[str], application: str) -> list[Pool]:
    """A connection to each database, until `stack` is closed."""
    pools: list[Pool] = []
    for dsn in dsns:
        pools.append(await open_pool(dsn, 1, application))
        stack.push_async_callback(close_pool, pools[-1])
    return pools
