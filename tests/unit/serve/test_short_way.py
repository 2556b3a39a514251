"""The short way: the same answers as the long one, an id for each request, and no work for who has gone."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from sensorium.serve import short_way
from sensorium.serve.short_way import ShortRoute, ShortWay
from tests.unit.serve.world import World, world

DATA: Final = "/api/devices/sensor-001/data"
COMMANDS: Final = "/api/devices/sensor-001/commands"

REQUESTS: Final[list[tuple[str, dict[str, Any]]]] = [
    (DATA, {"json": {"temperature": 23.5, "timestamp": "2024-01-01T12:00:00Z"}}),
    (DATA, {"json": [{"temperature": 23.5}, {"temperature": "warm"}]}),
    (DATA, {"content": b"{"}),
    (DATA, {"content": b'{"a": 1}\n{"a":', "headers": {"content-type": "application/x-ndjson"}}),
    (DATA, {"content": b"x" * 2_000_000}),
    (DATA, {"content": b"no gzip", "headers": {"content-encoding": "gzip"}}),
    ("/api/devices/nobody/data", {"json": {"temperature": 23.5}}),
    (COMMANDS, {"json": {"command": "open", "idempotency_key": "k"}}),
    (COMMANDS, {"json": {"command": "close", "idempotency_key": "k"}}),
    (COMMANDS, {"json": {"command": ""}}),
    (COMMANDS, {"content": b"<open/>", "headers": {"content-type": "text/xml"}}),
    ("/api/devices/nobody/commands", {"json": {"command": "open"}}),
]


def app_of(platform: World) -> FastAPI:
    transport = platform.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    assert isinstance(transport.app, FastAPI)
    return transport.app


def route_of(platform: World) -> ShortRoute:
    return next(route for route in app_of(platform).router.routes if isinstance(route, ShortRoute))


@pytest.fixture
def closed() -> Iterator[None]:
    """No app takes the short way after the test."""
    yield
    ShortWay.app = ShortWay.route = None


async def answers() -> list[httpx.Response]:
    async with world() as platform:
        await platform.registered()
        return [await platform.http.post(path, **request) for path, request in REQUESTS]


async def test_both_ways_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, taken = ShortRoute.handle, []

    async def counted(route: ShortRoute, scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(scope["path"])
        await handle(route, scope, receive, send)

    monkeypatch.setattr(ShortRoute, "handle", counted)
    short = await answers()
    assert len(taken) == len(REQUESTS) - 2  # all but those that are refused by their size and encoding
    monkeypatch.setattr(ShortRoute, "find", lambda *_: None)
    for (path, _), one, other in zip(REQUESTS, short, await answers(), strict=True):
        assert (one.status_code, one.content) == (other.status_code, other.content), path
        assert one.headers == other.headers, path


def scope_of(method: str, path: str, query: bytes = b"", **headers: str) -> Scope:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "query_string": query, "headers": named}


async def test_only_what_needs_no_further_check_goes_the_short_way(platform: World) -> None:
    route = route_of(platform)
    for path in (DATA, COMMANDS):
        found = route.find(scope_of("POST", path, content_type="application/json"))
        assert found is not None
        assert found[1] == "sensor-001"
        assert route.find(scope_of("GET", path)) is None
        assert route.find(scope_of("POST", path, b"limit=1")) is None
        assert route.find(scope_of("POST", path.replace("sensor-001", "x" * 129))) is None
        assert route.find(scope_of("POST", path.replace("sensor-001", "a\x00b"))) is None
        assert route.find({**scope_of("POST", path), "type": "websocket"}) is None
    assert route.find(scope_of("POST", DATA, idempotency_key="k")) is None
    assert route.find(scope_of("POST", "/api/devices/sensor-001/twin")) is None


async def refused(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands for Ray Serve."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.usefixtures("closed")
async def test_other_requests_are_ray_serves(platform: World) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(ShortWay(refused)), base_url="http://x"
    ) as http:
        assert (await http.post(COMMANDS, json={"command": "open"})).status_code == 418
        await platform.registered()
        ShortWay.open(app_of(platform))
        assert (await http.post(COMMANDS, json={"command": "open"})).status_code == 202
        assert (await http.get(COMMANDS)).status_code == 418


@pytest.mark.usefixtures("closed")
async def test_each_request_has_an_id(platform: World) -> None:
    await platform.registered()
    ShortWay.open(app_of(platform))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(ShortWay(refused)), base_url="http://x"
    ) as http:
        given = await http.post(COMMANDS, json={"command": "open"}, headers={"X-Request-ID": "mine"})
        made = [await http.post(COMMANDS, json={"command": name}) for name in ("open", "")]
    assert given.headers.get_list("X-Request-ID") == ["mine"]
    assert len({answer.headers["X-Request-ID"] for answer in made}) == 2
    said = {change.origin.request_id for change in platform.store.audits}
    assert {"mine", made[0].headers["X-Request-ID"]} <= said


class Waiting:
    """An app that serves until it is told that nobody waits."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = False
        self.body = b""

    async def send(self, device_id: str, request: Any) -> None:
        self.body = await request.body()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@pytest.fixture
async def waiting(monkeypatch: pytest.MonkeyPatch, closed: None) -> Waiting:
    monkeypatch.setattr(short_way, "WATCHED_AFTER_S", 0.01)
    app, endpoint = FastAPI(), Waiting()
    routes = short_way.APIRouter()

    @routes.post("/{device_id}")
    @short_way.short()
    async def send(device_id: str, request: short_way.Request) -> None:
        await endpoint.send(device_id, request)

    app.router.routes.insert(0, ShortRoute([routes]))
    ShortWay.open(app)
    return endpoint


def asked() -> "asyncio.Queue[Message]":
    """What a client has sent: a whole request."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b"{}", "more_body": False})
    return messages


def served_to(receive: Receive) -> "asyncio.Task[None]":
    """A request that nobody must get an answer to."""

    async def send(_: Message) -> None:
        raise AssertionError("nobody is there")

    return asyncio.create_task(ShortWay(refused)(scope_of("POST", "/a"), receive, send))


async def test_who_has_gone_is_no_longer_served(waiting: Waiting) -> None:
    messages = asked()
    served = served_to(messages.get)
    await waiting.begun.wait()
    messages.put_nowait({"type": "http.disconnect"})
    await served
    assert waiting.cancelled


async def test_a_body_that_comes_slowly_comes_whole(waiting: Waiting) -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    calls = 0

    async def receive() -> Message:
        nonlocal calls
        calls += 1
        return await messages.get()

    served = served_to(receive)
    for part in (b"one ", b"two ", b"three"):
        await asyncio.sleep(0.03)  # longer than until somebody is looked after
        assert calls <= 3
        messages.put_nowait({"type": "http.request", "body": part, "more_body": part != b"three"})
    await waiting.begun.wait()
    assert waiting.body == b"one two three"
    messages.put_nowait({"type": "http.disconnect"})
    await served


async def test_a_stop_is_no_departure(waiting: Waiting) -> None:
    messages = asked()
    served = served_to(messages.get)
    await waiting.begun.wait()
    served.cancel()
    with pytest.raises(asyncio.CancelledError):
        await served
