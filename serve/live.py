"""`/api/live` (Server-Sent Events) and `/ws` (WebSocket): the live feed on its two ways out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sensorium.actors.errors import SensoriumError
from sensorium.serve.describe import answer
from sensorium.serve.feed import LiveFeed
from sensorium.serve.feed_filter import TOPICS, FeedFilter, check_known, read_filter
from sensorium.serve.feed_frames import KEEPALIVE, Frame, snapshot_frame
from sensorium.serve.feed_snapshot import Snapshots
from sensorium.serve.problems import Problem, invalid_parameter, not_found, problem_of
from sensorium.serve.services import Services

PATH: Final = "/api/live"
SOCKET_PATH: Final = "/ws"
SEND_TIMEOUT_S: Final = 20.0
"""A peer that takes nothing for so long is given up."""
RECONNECT_MS: Final = 2_000
"""After which a browser comes back by itself."""
MAX_REASON_BYTES: Final = 123
"""Of a WebSocket's close frame (RFC 6455, 5.5)."""

_UNACCEPTABLE: Final = 1003
_POLICY: Final = 1008
_TRY_LATER: Final = 1013
_FULL: Final = frozenset((429, 503))

_List = Annotated[
    str | None, Query(max_length=65_536, description="Names with commas between; all if absent.")
]


class Live:
    """The feed for the routes: what is sent to a subscriber, from the first frame on."""

    def __init__(self, services: Services, feed: LiveFeed) -> None:
        self._feed = feed
        self._snapshots = Snapshots(services)

    @asynccontextmanager
    async def frames(
        self, which: FeedFilter, cursor: str | None, snapshot: bool
    ) -> AsyncIterator[AsyncGenerator[Frame, None]]:
        """Snapshot or what was missed, then changes, until the feed is closed. Raises as `subscribe`."""
        async with self._feed.subscribe(which, cursor) as (subscription, missed):
            here = self._feed.cursor()
            # Before anything is sent, so that a failure is an answer of its own.
            parts = await self._snapshots.of(which) if snapshot and cursor is None else None

            async def frames() -> AsyncGenerator[Frame, None]:
                if parts is not None:
                    yield snapshot_frame(here, parts)
                async for frame in missed:
                    yield frame
                while (following := await subscription.next()) is not None:
                    yield following

            started = frames()
            try:
                yield started
            finally:
                await started.aclose()


class EventStream(Response):
    """Sends frames as events until they end, the peer goes, or it takes nothing for `SEND_TIMEOUT_S`."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, which: FeedFilter, cursor: str | None, snapshot: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._asked = (which, cursor, snapshot)
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application. Errors before the first byte are raised."""
        async with self._live.frames(*self._asked) as frames:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sending = asyncio.create_task(_send_events(frames, send), name="event stream")
            gone = asyncio.create_task(_until_gone(receive), name="event stream's peer")
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _end(sending, gone)


async def _send_events(frames: AsyncGenerator[Frame, None], send: Send) -> None:
    async def out(body: bytes, more: bool = True) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})

    await out(b"retry: %d\n%s\n" % (RECONNECT_MS, KEEPALIVE))
    try:
        async for frame in frames:
            await out(frame.event)
    except SensoriumError:
        pass  # the stream ends, and the peer comes back with its cursor
    await out(b"", False)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel them and wait; a peer that went or took nothing is no error of ours."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(
            outcome, TimeoutError | OSError | WebSocketDisconnect
        ):
            raise outcome


class Socket:
    """One WebSocket from accept to close."""

    def __init__(self, live: Live) -> None:
        self._live = live

    async def serve(self, socket: WebSocket) -> None:
        """Accept it once it follows the feed: what happens from then on is told.

        A refusal is accepted as well, so that it can say why: a frame `problem`, then a close code.
        """
        try:
            which, cursor, snapshot = _asked(dict(socket.query_params.items()))
            async with self._live.frames(which, cursor, snapshot) as frames:
                await socket.accept()
                await self._follow(socket, frames)
        except Problem as problem:
            await _refuse(socket, problem)
        except SensoriumError as error:
            await _refuse(socket, problem_of(error))

    async def _follow(self, socket: WebSocket, frames: AsyncGenerator[Frame, None]) -> None:
        sending = asyncio.create_task(_send_frames(socket, frames), name="live socket")
        heard = asyncio.create_task(_until_said(socket), name="live socket's peer")
        try:
            await asyncio.wait({sending, heard}, return_when=asyncio.FIRST_COMPLETED)
            if heard.done() and not heard.cancelled() and heard.result():
                await _close(socket, _UNACCEPTABLE, "the feed takes no messages: filters are in the address")
        finally:
            await _end(sending, heard)


async def _send_frames(socket: WebSocket, frames: AsyncGenerator[Frame, None]) -> None:
    async for frame in frames:
        await _text(socket, frame.text)
    await _close(socket, 1001, "the server stops; come back with the last cursor")


def _asked(parameters: dict[str, str]) -> tuple[FeedFilter, str | None, bool]:
    check_known(parameters, "cursor", "snapshot")
    snapshot = parameters.get("snapshot", "true")
    if snapshot not in ("true", "false"):
        raise invalid_parameter("snapshot", "true or false")
    return read_filter(parameters), parameters.get("cursor"), snapshot == "true"


async def _until_said(socket: WebSocket) -> bool:
    """Whether the peer sent a message; False when it has gone."""
    return bool((await socket.receive())["type"] == "websocket.receive")


async def _refuse(socket: WebSocket, problem: Problem) -> None:
    if socket.application_state is WebSocketState.CONNECTING:
        await socket.accept()
    document = bytes(problem.response(SOCKET_PATH).body)
    retry_after = problem.headers.get("Retry-After")
    body = msgspec.json.encode(
        {
            "type": "problem",
            "problem": msgspec.Raw(document),
            "retry_after_s": retry_after and int(retry_after),
        }
    )
    await _text(socket, body.decode())
    await _close(socket, _TRY_LATER if problem.status in _FULL else _POLICY, problem.detail)


async def _text(socket: WebSocket, text: str) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await socket.send_text(text)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    if socket.application_state is WebSocketState.CONNECTED:
        with suppress(WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await socket.close(code, reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["live"])
    feed = services.feed
    live = None if feed is None else Live(services, feed)

    @router.get(
        PATH,
        response_model=None,
        summary="Follow what happens",
        responses={
            **answer(None, "", problems=(410,)),
            200: {"description": "Events until the peer goes.", "content": {"text/event-stream": {}}},
        },
    )
    async def events(
        request: Request,
        topics: Annotated[
            str | None, Query(max_length=64, description=f"Some of {', '.join(TOPICS)}; all if absent.")
        ] = None,
        device_id: _List = None,
        device_type: _List = None,
        metric: _List = None,
        severity: _List = None,
        quality: Annotated[
            str | None, Query(max_length=64, description="Of readings: good, suspect.")
        ] = None,
        snapshot: Annotated[bool, Query(description="Whether it begins with how things stand.")] = True,
        cursor: Annotated[
            str | None, Query(max_length=8192, description="Behind which it goes on; `Last-Event-ID` wins.")
        ] = None,
        last_event_id: Annotated[str | None, Header(max_length=8192)] = None,
    ) -> Response:
        """Server-Sent Events `snapshot`, `changes` and `gap`, each with the cursor to resume from as its id.

        `/ws` tells the same over a WebSocket, by the same parameters.
        """
        if live is None:
            raise not_found("this server has no live feed")
        which = read_filter(dict(request.query_params.items()))
        return EventStream(live, which, last_event_id or cursor, snapshot)

    if live is not None:
        router.routes.append(WebSocketRoute(SOCKET_PATH, Socket(live).serve))
    return router
