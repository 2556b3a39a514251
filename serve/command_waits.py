"""Callers that wait for a command's end: told by the device's host or by the database, none of them polling.

A host on the same machine tells the replica itself. Else, or when that fails, the database does.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from sensorium.actors.command_waiters import CommandWaiters
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.records import Command


class EndedCommands(Protocol):
    """Who says that commands have ended."""

    def watch(self) -> AsyncIterator[Sequence[Command | str] | None]:
        """Commands that have ended, some by their ids only; None: look at all that are waited for."""
        ...


class FindsCommands(Protocol):
    """Commands by their ids."""

    async def find(self, command_ids: Sequence[str]) -> Sequence[Command]: ...


class TellsEnd(Protocol):
    """The host of a device."""

    async def ended(self, device_id: str, command_id: str, wait_s: float) -> Command | None:
        """See `actors.router.Router.ended`."""
        ...


class CommandWaits:
    """Who waits for which command. Start and close it once; as many may wait as requests are served."""

    def __init__(self, sources: Sequence[EndedCommands], commands: FindsCommands, hosts: TellsEnd) -> None:
        self._sources = sources
        self._commands = commands
        self._hosts = hosts
        self._waiters = CommandWaiters()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to listen."""
        self._tasks = [asyncio.create_task(self._listen(source)) for source in self._sources]

    async def close(self) -> None:
        """Listen no more; those who still wait are not told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise what ended the listening, if a fault of ours did."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    @contextmanager
    def expecting(
        self, device_id: str, command_id: str, wait_s: float
    ) -> "Iterator[asyncio.Future[Command]]":
        """A future of the command as it has ended. Ask before it is sent, so that no end is missed.

        With `wait_s` its host is asked to say so, in the first step of the loop from now.
        """
        with self._waiters.expecting(command_id) as ended:
            asked = asyncio.create_task(self._ask(device_id, command_id, wait_s)) if wait_s else None
            try:
                yield ended
            finally:
                if asked is not None:
                    asked.cancel()

    async def _ask(self, device_id: str, command_id: str, wait_s: float) -> None:
        ended = await self._hosts.ended(device_id, command_id, wait_s)
        if ended is not None:
            self._waiters.tell([ended])

    async def _listen(self, source: EndedCommands) -> None:
        async for batch in source.watch():
            waiting = self._waiters
            if batch is None:
                ended = waiting.command_ids
            else:
                waiting.tell(command for command in batch if isinstance(command, Command))
                ended = [command for command in batch if isinstance(command, str) and command in waiting]
            if not ended:
                continue
            try:
                waiting.tell(await self._commands.find(ended))
            except LogUnavailable:
                continue  # who waits is looked for again, or waits until their time is out
