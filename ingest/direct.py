"""Commands told by who sends them: claimed with the sending, in one commit, and published there.

What cannot be told so at once stays ready, and the `Downlink` finds it.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final
from uuid import uuid4

from sensorium.ingest.dispatch import Dispatcher
from sensorium.ingest.downlink import DownlinkSettings, MqttCarrier, never_repeating
from sensorium.ingest.pipeline import Router

PROTOCOL: Final = "mqtt"
_log = logging.getLogger(__name__)


class DirectDownlink:
    """Tells devices by MQTT what was sent to them through `router`. Start and stop it once.

    It has a connection of its own, which never repeats, as that of the `Downlink`. It works as long as it is
    connected and somebody hears the answers; nothing depends on it.

    Args:
        heard: whether a `Downlink` is there, whenever that changes (`storage.attendance`).
    """

    def __init__(
        self,
        settings: DownlinkSettings,
        router: Router,
        heard: AsyncIterator[bool],
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._publisher = never_repeating(
            settings, f"{settings.client_id}-direct-{os.getpid()}-{uuid4().hex[:8]}"
        )
        carrier = MqttCarrier(self._publisher, clock_ms, properties=settings.properties)
        self._dispatcher = Dispatcher(router, (), carrier)
        self._heard_by = heard
        self._heard = False
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin connecting; returns at once."""
        self._task = asyncio.create_task(self._run(), name="direct downlink")
        self._task.add_done_callback(_told)

    async def connected(self) -> None:
        """Return once the broker can be reached."""
        await self._publisher.connected()

    async def stop(self) -> None:
        """Claim nothing more, wait for what is under way, disconnect."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    def statistics(self) -> dict[str, int]:
        """Those of the dispatcher."""
        return self._dispatcher.statistics()

    async def claim(self, device_id: str, command_id: str) -> None:
        """Have a new command, whose `SendCommand` was submitted to the router just now, told if it may be."""
        if self._heard and self._publisher.is_connected and not self._stop.is_set():
            await self._dispatcher.claim((device_id, command_id, 1), PROTOCOL)

    async def _run(self) -> None:
        async with self._publisher, asyncio.TaskGroup() as tasks:
            await self._dispatcher.run(tasks)
            following = tasks.create_task(self._follow())
            await self._stop.wait()
            following.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout_s):
                    await self._dispatcher.drained()

    async def _follow(self) -> None:
        async for heard in self._heard_by:
            self._heard = heard


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("commands are told by the downlink alone: %s: %s", type(error).__name__, error)
