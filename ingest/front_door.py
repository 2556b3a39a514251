"""One port for MQTT 3.1.1 and 5 before a broker that has two: looks at CONNECT, then passes bytes on."""

import asyncio
from collections.abc import Mapping
from typing import cast

_CONNECT = 0x10
# Fixed header, length of four bytes, and a protocol name of "MQIsdp" at the longest, with its level.
_ENOUGH_BYTES = 1 + 4 + 2 + 6 + 1
_HELLO_TIMEOUT_S = 10.0
_BACKLOG = 512


class FrontDoor:
    """Listens on a port and forwards each connection by its protocol level.

    Args:
        ports: where to forward to, on the same host, by protocol level (4 is MQTT 3.1.1).
    """

    def __init__(self, host: str, port: int, ports: Mapping[int, int]) -> None:
        self._host = host
        self._port = port
        self._ports = ports
        self._server: asyncio.Server | None = None
        self._open: set[_Side] = set()

    async def open(self) -> None:
        """Start to listen. Raises `OSError` when the port is taken."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Visitor(self._host, self._ports, self._open), self._host, self._port, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
            for side in list(self._open):
                side.drop()
            await self._server.wait_closed()


class _Side(asyncio.Protocol):
    """One end of a forwarded connection; writes what comes to its peer, at the peer's pace."""

    def __init__(self, everybody: "set[_Side]") -> None:
        self._everybody = everybody
        self.peer: _Side | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not derived from asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self._everybody.add(self)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._everybody.discard(self)
        self.transport = None
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Visitor(_Side):
    """The client's end: connects its peer as soon as it is known which protocol is spoken."""

    def __init__(self, host: str, ports: Mapping[int, int], everybody: set[_Side]) -> None:
        super().__init__(everybody)
        self._host = host
        self._ports = ports
        self._hello = b""
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._timer = asyncio.get_running_loop().call_later(_HELLO_TIMEOUT_S, self.drop)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        self._hello += data
        if self._connecting is not None:
            return
        level = protocol_level(self._hello)
        if level is None and len(self._hello) < _ENOUGH_BYTES:
            return
        port = None if level is None else self._ports.get(level)
        if port is None:
            self.drop()
            return
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = asyncio.create_task(self._connect(port))

    async def _connect(self, port: int) -> None:
        try:
            _, peer = await asyncio.get_running_loop().create_connection(
                lambda: _Side(self._everybody), self._host, port
            )
        except OSError:
            self.drop()
            return
        finally:
            if self._timer is not None:
                self._timer.cancel()
        peer.peer = self
        self.peer = peer
        if self.transport is None:
            peer.drop()
            return
        _Side.data_received(self, self._hello)
        self._hello = b""
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        super().connection_lost(exc)


def protocol_level(hello: bytes) -> int | None:
    """The protocol level in a CONNECT packet's first bytes; None when they are too few or something else."""
    if not hello or hello[0] & 0xF0 != _CONNECT:
        return None
    start = 1
    while start < len(hello) and hello[start] > 127:
        start += 1
    start += 1
    name_end = start + 2 + int.from_bytes(hello[start : start + 2], "big")
    if start > 5 or hello[start + 2 : name_end] not in (b"MQTT", b"MQIsdp") or len(hello) <= name_end:
        return None
    return hello[name_end]
