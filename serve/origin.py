"""Who asks: taken from a request, kept while it is answered, and said to devices with what they are asked.

There is no authentication: the name is what the caller says.
"""

import re
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sensorium.actors import messages
from sensorium.actors.audit import Asked
from sensorium.actors.errors import Unavailable
from sensorium.actors.origin import ASKED_BY, Origin, asked_by
from sensorium.serve.headers import BY_HEADER, WAY_HEADER
from sensorium.serve.services import Asks

REQUEST_ID_HEADER: Final = "X-Request-ID"
FORWARDED_HEADER: Final = "X-Forwarded-For"
WAYS: Final = ("rest", "graphql", "cli")
MAX_NAME_CHARS: Final = 128
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def origin_of(scope: Scope) -> Origin:
    """Who asks, of a request. The name may be percent-encoded, as all beyond ASCII must be in a header.

    The address is the one that the proxy in front has seen.
    """
    headers = Headers(scope=scope)
    by = "".join(c for c in unquote(headers.get(BY_HEADER, "")) if c.isprintable()).strip()[:MAX_NAME_CHARS]
    forwarded = headers.getlist(FORWARDED_HEADER)
    client = scope.get("client")
    address = forwarded[-1].rpartition(",")[2].strip() if forwarded else (client[0] if client else "")
    way = headers.get(WAY_HEADER, WAYS[0])
    said = headers.get(REQUEST_ID_HEADER, "")
    request_id = said if _REQUEST_ID.fullmatch(said) else uuid4().hex
    return Origin(by, address[:MAX_NAME_CHARS], way if way in WAYS else WAYS[0], request_id)


class Attributed:
    """Keeps who asks for a change while the request is answered.

    Ray Serve's proxy gives each request an id where it has none, and names it in its answer.

    `changed` is called after each such request.
    """

    def __init__(self, app: ASGIApp, changed: Any) -> None:
        self.app = app
        self.changed = changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READS or _brings_telemetry(scope):
            await self.app(scope, receive, send)
            return
        origin = origin_of(scope)

        try:
            with asked_by(origin):
                await self.app(scope, receive, send)
        finally:
            self.changed()


def _brings_telemetry(scope: Scope) -> bool:
    """Whether the request is a device's way in, of which the audit log has nothing."""
    path: str = scope["path"]
    return scope["method"] == "POST" and path.endswith("/data")


class AttributedAsks:
    """`Asks` that says with each change who asks for it."""

    def __init__(self, asks: Asks) -> None:
        self._asks = asks

    async def ask(self, message: messages.Message, timeout_s: float) -> Any:
        """As the port says."""
        origin = ASKED_BY.get()
        if origin is not None and isinstance(message, Asked):
            message = msgspec.structs.replace(message, origin=origin)
        return await self._asks.ask(message, timeout_s)

    def check(self) -> None:
        """As the port says."""
        self._asks.check()

    def failing(self, device_id: str) -> Unavailable | None:
        """As the port says."""
        return self._asks.failing(device_id)

    @property
    def pending(self) -> int:
        """As the port says."""
        return self._asks.pending
