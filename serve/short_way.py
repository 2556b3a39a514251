"""A short way to what is asked all the time: past Ray Serve's own work for each request, and past FastAPI's.

Both cost more than a command itself. What takes the short way stays a route of the app, with its place in the
OpenAPI document, and takes the long way whenever there is more to check than the path: a query, a header.
What the app does for every request (bounds, unpacking, attribution, problem documents) is done here too.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, TypeVar
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.serve.query import DEVICE_ID

WATCHED_AFTER_S: Final = 1.0
"""From when on it is noticed that who asked has gone. A quick answer is not worth a watch."""

_REQUEST_ID: Final = b"x-request-id"
_PROCESS: Final = uuid4().hex[:20].encode()
_NUMBERS: Final = count(1 << 44)
_MARK: Final = "_sensorium_short"
_FOUND: Final = "sensorium.short"
"""In a request's scope: its endpoint, and the device."""
_E = TypeVar("_E", bound=Callable[..., Any])


def short(*headers: str) -> Callable[[_E], _E]:
    """Have an endpoint served the short way, unless a request has a query or one of these headers.

    It is called with the device's id and the request; its other parameters must have defaults.
    """

    def marked(endpoint: _E) -> _E:
        setattr(endpoint, _MARK, frozenset(header.lower().encode() for header in headers))
        return endpoint

    return marked


class ShortRoute(BaseRoute):
    """The marked routes of `routers` as one. To be tried before all others."""

    def __init__(self, routers: Sequence[APIRouter]) -> None:
        self._endpoints = [
            (route.path_regex, route.methods or (), route.endpoint, getattr(route.endpoint, _MARK))
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and hasattr(route.endpoint, _MARK)
        ]

    def find(self, scope: Scope) -> tuple[Callable[..., Any], str] | None:
        """The endpoint for a request, and the device."""
        if scope["type"] != "http" or scope["query_string"]:
            return None
        for pattern, methods, endpoint, headers in self._endpoints:
            if scope["method"] in methods and (found := pattern.match(scope["path"])):
                device_id = found["device_id"]
                if DEVICE_ID.fullmatch(device_id) and not any(
                    name in headers for name, _ in scope["headers"]
                ):
                    return endpoint, device_id
        return None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette asks. `ShortWay` has looked already, where the request came through it."""
        found = scope.get(_FOUND) or self.find(scope)
        return (Match.NONE, {}) if found is None else (Match.FULL, {_FOUND: found})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette asks."""
        endpoint, device_id = scope[_FOUND]
        response = await endpoint(device_id, Request(scope, receive))
        await response(scope, receive, send)


class ShortWay:
    """In front of what Ray Serve does for a request, in the process of a replica.

    `open` it with the app once that is built. A server that stops waits for what it serves, this way or that.
    """

    app: FastAPI | None = None
    route: ShortRoute | None = None

    def __init__(self, serve: ASGIApp) -> None:
        self._serve = serve

    @classmethod
    def open(cls, app: FastAPI) -> None:
        """From now on, of all servers of this process."""
        cls.route = next(route for route in app.router.routes if isinstance(route, ShortRoute))
        cls.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None if self.route is None else self.route.find(scope)
        if found is None or self.app is None:
            await self._serve(scope, receive, send)
            return
        scope[_FOUND] = found
        request_id = next((value for name, value in scope["headers"] if name == _REQUEST_ID), None)
        if request_id is None:
            request_id = b"%s%x" % (_PROCESS, next(_NUMBERS))
            scope["headers"] = [*scope["headers"], (_REQUEST_ID, request_id)]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, request_id)]
            await send(message)

        with _Watch(receive) as watch:
            await self.app(scope, watch.receive, answer)


class _Watch:
    """Cancels the task that it was entered in when who asked has gone, and ends that quietly."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = False
        self._gone = False
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> "_Watch":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self._timer = self._loop.call_later(WATCHED_AFTER_S, self._look)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        return kind is asyncio.CancelledError and self._gone and not self._task.uncancel()

    async def receive(self) -> Message:
        """What the server gives."""
        message = await self._receive()
        self._read = not message.get("more_body", False)
        return message

    def _look(self) -> None:
        if self._read:
            self._watching = self._loop.create_task(self._wait())
        else:  # whoever reads the body is told as well
            self._timer = self._loop.call_later(WATCHED_AFTER_S, self._look)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()


def middlewares() -> list[Middleware]:
    """What Ray Serve puts in front of its HTTP servers: see `environment`."""
    return [Middleware(ShortWay)]
