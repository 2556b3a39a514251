"""The bounds of the API as ASGI middleware: bytes a body, requests at once."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.serve.problems import Problem

RETRY_AFTER_OVERLOAD_S: Final = 1.0
DISCARDED_BYTES: Final = 16 * 1_048_576
DISCARDED_S: Final = 3.0
"""How much, and for how long, of a body that is too large is read and dropped before the refusal. Closing a
connection on unread bytes resets it, and the sender would never see why."""


class BodyLimit:
    """Refuses bodies of more than `max_bytes` with 413, whether their length is announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await _discard(receive)
            await self._too_large().response(Request(scope).url.path)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    if message.get("more_body"):
                        await _discard(receive)
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> Problem:
        detail = f"More than {self.max_bytes} bytes."
        return Problem(413, "body_too_large", detail, headers={"Connection": "close"})


async def _discard(receive: Receive) -> None:
    discarded = 0
    try:
        async with asyncio.timeout(DISCARDED_S):
            while discarded < DISCARDED_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


class InFlightLimit:
    """Answers 429 with Retry-After beyond `max_requests` at once, except to `exempt` paths.

    The exempt ones are what operators look at when everything else is busy.
    """

    def __init__(self, app: ASGIApp, max_requests: int, exempt: frozenset[str]) -> None:
        self.app = app
        self.max_requests = max_requests
        self.exempt = exempt
        self.in_flight = 0
        self.refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.exempt:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.max_requests:
            self.refused += 1
            problem = Problem(
                429,
                "overloaded",
                f"{self.max_requests} requests are being served already.",
                retry_after_s=RETRY_AFTER_OVERLOAD_S,
            )
            await problem.response(Request(scope).url.path)(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight -= 1
