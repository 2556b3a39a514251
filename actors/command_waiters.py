"""Those who wait for the end of a command, in one process. Knows neither where ends are heard of nor Ray."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from sensorium.actors.records import OPEN_STATES, Command

encoder = msgspec.msgpack.Encoder()
wait_decoder = msgspec.msgpack.Decoder(tuple[str, float])
"""The id of a command, and for how many seconds its end is waited for."""
ended_decoder = msgspec.msgpack.Decoder(Command)


class CommandWaiters:
    """Who waits for which command; as many as there are callers."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[Command]]] = {}

    @property
    def command_ids(self) -> list[str]:
        """What is waited for."""
        return list(self._waiting)

    def __contains__(self, command_id: str) -> bool:
        return command_id in self._waiting

    @contextmanager
    def expecting(self, command_id: str) -> Iterator["asyncio.Future[Command]"]:
        """A future of the command as it has ended. Ask before it is sent, so that no end is missed."""
        future: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(command_id, set())
        waiting.add(future)
        try:
            yield future
        finally:
            future.cancel()
            waiting.discard(future)
            if not waiting and self._waiting.get(command_id) is waiting:
                del self._waiting[command_id]

    def among(self, commands: Iterable[Command]) -> list[str]:
        """Which of these are waited for."""
        if not self._waiting:
            return []
        return [command.command_id for command in commands if command.command_id in self._waiting]

    def tell(self, commands: Iterable[Command]) -> None:
        """Commands as they are committed; the open ones are passed over."""
        if not self._waiting:
            return
        for command in commands:
            if command.state not in OPEN_STATES:
                for future in self._waiting.get(command.command_id, ()):
                    if not future.done():
                        future.set_result(command)
