"""A server that takes InfluxDB's writes, and fails as it is told. Points are kept as a set: twice is once."""

import asyncio
import gzip
from collections import deque
from collections.abc import Callable
from typing import Self

from aiohttp import web

Answer = Callable[[bytes], web.Response | None]
"""From the body to what is answered instead of taking it; None takes it."""


def status(code: int, **headers: str) -> Answer:
    """An answer with this status."""
    return lambda body: web.json_response({"message": "as told"}, status=code, headers=headers)


class FaultyInflux:
    """`async with` it.

    Attributes:
        points: the lines that were taken.
        answers: what becomes of the next writes, one each; then `always`.
        deleted: the predicates of deletions; they delete by device.
        results: what the next queries get: a status, or annotated CSV.
        go_on: while cleared, writes are not answered.
    """

    def __init__(self) -> None:
        self.points: set[bytes] = set()
        self.requests: list[int] = []
        self.tokens: set[str] = set()
        self.compressed = 0
        self.answers: deque[Answer] = deque()
        self.always: Answer = lambda body: None
        self.buckets: list[dict[str, object]] = []
        self.created: list[dict[str, object]] = []
        self.queries: list[str] = []
        self.deleted: list[str] = []
        self.results: deque[str | int] = deque()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/api/v2/write", self._write)
        app.router.add_post("/api/v2/query", self._query)
        app.router.add_post("/api/v2/delete", self._delete)
        app.router.add_get("/api/v2/buckets", self._buckets)
        app.router.add_post("/api/v2/buckets", self._create)
        app.router.add_get("/api/v2/orgs", self._orgs)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.go_on.set()
        await self._runner.cleanup()

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body.startswith(b"\x1f\x8b"):
            body = gzip.decompress(body)
        self.compressed += request.headers.get("Content-Encoding") == "gzip"
        self.requests.append(len(body))
        self.tokens.add(request.headers.get("Authorization", ""))
        await self.go_on.wait()
        answer = self.answers.popleft() if self.answers else self.always
        refused = answer(body)
        if refused is not None:
            return refused
        self.points.update(body.split(b"\n"))
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        predicate = (await request.json())["predicate"]
        self.deleted.append(predicate)
        name = predicate.partition('device_id="')[2].removesuffix('"').encode()
        self.points = {point for point in self.points if b",device_id=" + name + b"," not in point}
        return web.Response(status=204)

    async def _query(self, request: web.Request) -> web.Response:
        self.queries.append((await request.json())["query"])
        answer = self.results.popleft()
        if isinstance(answer, int):
            return web.json_response({"message": "as told"}, status=answer)
        return web.Response(text=answer.replace("\n", "\r\n"), content_type="text/csv")

    async def _buckets(self, request: web.Request) -> web.Response:
        found = [b for b in self.buckets if b["name"] == request.query["name"]]
        return web.json_response({"buckets": found})

    async def _create(self, request: web.Request) -> web.Response:
        bucket = await request.json()
        self.created.append(bucket)
        self.buckets.append({"name": bucket["name"], "retentionRules": []})
        return web.json_response({"id": "0a", **bucket}, status=201)

    async def _orgs(self, request: web.Request) -> web.Response:
        return web.json_response({"orgs": [{"id": "00000000000000aa", "name": request.query["org"]}]})
