"""Calls over a Unix socket: answers, errors of ours, faults, and what becomes of calls when an end goes."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from sensorium.actors.errors import Fenced, InvalidMessage, LeaseOver, LogUnavailable, Moved, Overloaded
from sensorium.actors.local_calls import MAX_FRAME_BYTES, WAIT, CallLost, LocalClient, LocalServer

Answer = Callable[[bytes], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def called(
    answer: Answer, folder: Path, *others: Answer
) -> AsyncIterator[tuple[LocalServer, LocalClient]]:
    """A server with one client."""
    server = LocalServer(answer, *others)
    await server.listen(folder / "calls")
    client = await LocalClient.connect(folder / "calls")
    try:
        yield server, client
    finally:
        client.close()
        server.close()


async def twice(body: bytes) -> bytes:
    return body * 2


async def test_answers_go_to_their_calls_in_whatever_order_they_come(tmp_path: Path) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def answer(body: bytes) -> bytes:
        await gates[body[0]].wait()
        return body

    async with called(answer, tmp_path) as (_, client):
        calls = [asyncio.create_task(client.call(bytes([n]))) for n in range(3)]
        for n in (2, 0, 1):
            gates[n].set()
            assert await calls[n] == bytes([n])


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_003])
async def test_bodies_of_any_size_come_whole(size: int, tmp_path: Path) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with called(twice, tmp_path) as (_, client):
        assert await asyncio.gather(client.call(body), client.call(b"y")) == [body * 2, b"yy"]


@pytest.mark.parametrize(
    "error",
    [
        LogUnavailable("away"),
        Fenced("lost"),
        Moved("there"),
        LeaseOver("perhaps"),
        InvalidMessage("no batch: \N{SNOWMAN}"),
    ],
)
async def test_our_errors_are_raised_where_the_call_was_made(error: Exception, tmp_path: Path) -> None:
    async def answer(_: bytes) -> bytes:
        raise error

    async with called(answer, tmp_path) as (_, client):
        with pytest.raises(type(error)) as raised:
            await client.call(b"")
        assert type(raised.value) is type(error)
        assert str(raised.value) == str(error)


async def test_a_bound_tells_when_to_come_back(tmp_path: Path) -> None:
    async def answer(_: bytes) -> bytes:
        raise Overloaded("full", 2.5)

    async with called(answer, tmp_path) as (_, client):
        with pytest.raises(Overloaded, match="full") as raised:
            await client.call(b"")
        assert raised.value.retry_after_s == 2.5


async def test_a_fault_is_told_to_the_caller_and_logged_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(_: bytes) -> bytes:
        raise KeyError("shard 7")

    async with called(answer, tmp_path) as (_, client):
        with pytest.raises(RuntimeError, match="KeyError: 'shard 7'"):
            await client.call(b"")
    assert "shard 7" in caplog.text


async def test_calls_under_way_are_lost_with_the_server(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def never(_: bytes) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    async with called(never, tmp_path) as (server, client):
        call = asyncio.create_task(client.call(b""))
        await asked.wait()
        server.close()
        with pytest.raises(CallLost):
            await call
        assert client.closed
        with pytest.raises(CallLost):
            await client.call(b"")
    with pytest.raises(FileNotFoundError):
        await LocalClient.connect(tmp_path / "nobody")


async def test_a_caller_that_goes_stops_neither_its_call_nor_others(tmp_path: Path) -> None:
    asked, gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(body: bytes) -> bytes:
        if body == b"wait":
            asked.set()
            await gate.wait()
            done.set()
        return body

    async with called(answer, tmp_path) as (_, client):
        gone = await LocalClient.connect(tmp_path / "calls")
        call = asyncio.create_task(gone.call(b"wait"))
        await asked.wait()
        gone.close()
        with pytest.raises(CallLost):
            await call
        gate.set()
        await done.wait()
        assert await client.call(b"still there") == b"still there"


async def test_each_kind_of_call_has_its_answer(tmp_path: Path) -> None:
    async def alive(_: bytes) -> bytes:
        return b"alive"

    async def happened(body: bytes) -> bytes:
        return b"happened: " + body

    async with called(twice, tmp_path, alive, happened) as (server, client):
        answers = await asyncio.gather(client.ping(), client.call(b"x"), client.call(b"it", WAIT))
        assert answers == [b"alive", b"xx", b"happened: it"]
        server.close()
        with pytest.raises(CallLost):
            await client.ping()


async def test_a_call_that_was_given_up_leaves_the_connection_as_it_was(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def answer(body: bytes) -> bytes:
        if body == b"slow":
            await gate.wait()
        return body

    async with called(answer, tmp_path) as (_, client):
        call = asyncio.create_task(client.call(b"slow"))
        assert await client.call(b"fast") == b"fast"
        call.cancel()
        await asyncio.wait({call})
        gate.set()
        assert await client.call(b"next") == b"next"


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("<IQB", MAX_FRAME_BYTES + 1, 1, 0),
        struct.pack("<IQB", 0, 1, 5),
        struct.pack("<IQB", 0, 1, 1),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_who_sends_anything_else_is_cut_off_and_nobody_besides(garbage: bytes, tmp_path: Path) -> None:
    async with called(twice, tmp_path) as (_, client):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "calls")
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert await client.call(b"x") == b"xx"


async def test_a_path_that_no_socket_can_have_is_said_to_be_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        await LocalServer(twice).listen(tmp_path / ("x" * 120))


def test_the_event_loop_of_rays_actors_is_no_different(tmp_path: Path) -> None:
    async def run() -> None:
        async with called(twice, tmp_path) as (server, client):
            assert await client.call(b"x") == b"xx"
            server.close()
            while not client.closed:
                with contextlib.suppress(CallLost):
                    await client.call(b"x")

    uvloop.run(run())
