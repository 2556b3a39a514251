"""Request bodies with `Content-Encoding: gzip`, as ASGI middleware: what is behind it sees them unpacked."""

import zlib
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.serve.problems import Problem

INFLATED_TIMES: Final = 8
"""How much more than the bound of a body it may unpack to."""
_GZIP: Final = 31


class Inflate:
    """Unpacks gzip, to `max_bytes` at most; other encodings are refused with 415."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _encoding(scope) if scope["type"] == "http" else "identity"
        if encoding in ("", "identity"):
            await self.app(scope, receive, send)
            return
        try:
            if encoding != "gzip":
                raise Problem(
                    415,
                    "unsupported_media_type",
                    f"Content-Encoding {encoding}: send gzip or none",
                    headers={"Accept-Encoding": "gzip"},
                )
            unpacked = await self._unpacked(receive)
        except Problem as problem:
            await problem.response(Request(scope).url.path)(scope, receive, send)
            return
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name not in (b"content-encoding", b"content-length")
        ]
        headers.append((b"content-length", str(len(unpacked)).encode()))
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": unpacked, "more_body": False}

        await self.app({**scope, "headers": headers}, whole, send)

    async def _unpacked(self, receive: Receive) -> bytes:
        inflate, pieces, size = zlib.decompressobj(_GZIP), [], 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _bad("the sender has gone")
            packed, more = message.get("body", b""), message.get("more_body", False)
            while packed:
                try:
                    piece = inflate.decompress(packed, self.max_bytes + 1 - size)
                except zlib.error as error:
                    raise _bad(str(error)) from None
                size += len(piece)
                pieces.append(piece)
                if size > self.max_bytes:
                    detail = f"It unpacks to more than {self.max_bytes} bytes."
                    raise Problem(413, "body_too_large", detail, headers={"Connection": "close"})
                packed = inflate.unconsumed_tail
        if not inflate.eof or inflate.unused_data:
            raise _bad("it is cut off" if not inflate.eof else "something follows it")
        return b"".join(pieces)


def _encoding(scope: Scope) -> str:
    found = [value for name, value in scope["headers"] if name == b"content-encoding"]
    return b",".join(found).decode("latin-1").strip().lower()


def _bad(detail: str) -> Problem:
    return Problem(422, "malformed_body", f"The body is no gzip: {detail}")
