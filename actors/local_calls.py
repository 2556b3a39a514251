"""Calls between two processes of one machine over a Unix socket: bytes there, bytes or an error of ours back.

The short way to a host beside its Ray actor. A call of an actor costs some five times the CPU of a frame
here, at low rates (`bench/local_calls.py`); the rest of the way (turns, commit, order, retries) is the same.
"""

import asyncio
import itertools
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import msgspec

from sensorium.actors import errors
from sensorium.actors.errors import Overloaded, SensoriumError

_HEAD: Final = struct.Struct("<IQB")
"""Bytes that follow the head, the call's number, and what they are."""

CALL: Final = 0
RESULT: Final = 1
ERROR: Final = 2
PING: Final = 3
"""A call that asks for proof of life."""
WAIT: Final = 4
"""A call that is answered when something has happened."""

MAX_FRAME_BYTES: Final = 64 << 20
"""What is longer is no frame of ours: the connection is closed."""

MAX_PATH_BYTES: Final = 100
"""An address of a Unix socket holds 108 on Linux and 104 on macOS."""

Answers = Callable[[bytes], Awaitable[bytes]]

_log = logging.getLogger(__name__)


class CallLost(Exception):
    """The connection broke before the answer came; whether the call was carried out is unknown."""


class _Failure(msgspec.Struct, array_like=True):
    """An error on the wire. A `kind` that is none of ours is a fault of the one called."""

    kind: str
    text: str
    retry_after_s: float = 0.0

    def as_exception(self) -> Exception:
        kind = getattr(errors, self.kind, None)
        if kind is Overloaded:
            return Overloaded(self.text, self.retry_after_s)
        if isinstance(kind, type) and issubclass(kind, SensoriumError):
            return kind(self.text)
        return RuntimeError(f"{self.kind}: {self.text}")


_encode = msgspec.msgpack.Encoder().encode
_failure = msgspec.msgpack.Decoder(_Failure).decode


class _Frames(asyncio.Protocol):
    """Cuts what comes in into frames, and hands them to `took`."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        buffer = self._data
        buffer += data
        start = 0
        while len(buffer) - start >= _HEAD.size:
            size, number, kind = _HEAD.unpack_from(buffer, start)
            if size > MAX_FRAME_BYTES or kind > WAIT:
                self.transport.abort()
                return
            end = start + _HEAD.size + size
            if len(buffer) < end:
                break
            self.took(number, kind, bytes(memoryview(buffer)[start + _HEAD.size : end]))
            start = end
        del buffer[:start]

    def send(self, number: int, kind: int, body: bytes) -> None:
        """Write a frame, unless the other side has gone."""
        if not self.transport.is_closing():
            self.transport.write(_HEAD.pack(len(body), number, kind) + body)

    def took(self, number: int, kind: int, body: bytes) -> None:
        """A frame has come."""
        raise NotImplementedError


class LocalServer:
    """Answers calls with what `answer` gives or raises, each as soon as it is there. `close` it once.

    Whoever calls bounds how many there are; `answer` is not cancelled when a caller goes. Pings are answered
    by `ping`, and who waits by `wait`.
    """

    def __init__(
        self,
        answer: Answers,
        ping: Answers | None = None,
        wait: Answers | None = None,
    ) -> None:
        self._answers = {CALL: answer, PING: ping or answer, WAIT: wait or answer}
        self._tasks: set[asyncio.Task[None]] = set()
        self._served: set[_Served] = set()
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Begin at a path in an existing folder, which alone decides who may call. Raises OSError."""
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise OSError(f"{path} is too long for the address of a socket")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Served(self), path)

    def close(self) -> None:
        """Take no call any more, and end the connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._served:
            connection.transport.abort()

    def _begin(self, connection: "_Served", number: int, kind: int, body: bytes) -> None:
        answered = self._answers[kind](body)
        task = asyncio.get_running_loop().create_task(self._carry_out(connection, number, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, connection: "_Served", number: int, answered: Awaitable[bytes]) -> None:
        try:
            result = await answered
        except Exception as error:  # whatever it is, the caller hears of it
            if not isinstance(error, SensoriumError):
                _log.exception("a call has failed")
            failure = _Failure(type(error).__name__, str(error), getattr(error, "retry_after_s", 0.0))
            connection.send(number, ERROR, _encode(failure))
        else:
            connection.send(number, RESULT, result)


class _Served(_Frames):
    """The server's end of a connection."""

    def __init__(self, server: LocalServer) -> None:
        super().__init__()
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server._served.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._server._served.discard(self)

    def took(self, number: int, kind: int, body: bytes) -> None:
        if kind in self._server._answers:
            self._server._begin(self, number, kind, body)
        else:
            self.transport.abort()


class LocalClient(_Frames):
    """The caller's end of a connection, over which any number of calls may be under way."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[bytes]] = {}

    @classmethod
    async def connect(cls, path: Path) -> "LocalClient":
        """Raises OSError when nobody listens there."""
        _, client = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        return client

    @property
    def closed(self) -> bool:
        """Whether no further call can be made."""
        return self.transport.is_closing()

    async def ping(self) -> bytes:
        """Proof of life. Raises as `call` does."""
        return await self.call(b"", PING)

    async def call(self, body: bytes, kind: int = CALL) -> bytes:
        """What the other side answers. Raises what it raised, and `CallLost`."""
        if self.closed:
            raise CallLost("the connection is closed")
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self.send(number, kind, body)
            return await answer
        finally:
            self._calls.pop(number, None)

    def close(self) -> None:
        """End the connection; calls that are under way are lost."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(CallLost(f"the connection was closed: {exc or 'by the other side'}"))

    def took(self, number: int, kind: int, body: bytes) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return  # it was given up
        if kind == RESULT:
            answer.set_result(body)
            return
        with suppress(msgspec.MsgspecError):
            answer.set_exception(_failure(body).as_exception())
            return
        self.transport.abort()
