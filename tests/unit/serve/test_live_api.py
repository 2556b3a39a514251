"""The live feed over real connections: event streams, WebSockets, snapshots, refusals and slow peers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from sensorium.actors.records import Alarm
from sensorium.serve import feed as feeds
from sensorium.serve import feed_subscription, live
from sensorium.serve.feed import LiveFeed
from tests.unit.serve.feed_log import FeedLog, reading, served
from tests.unit.serve.world import AT_MS, World, world

DEADLINE_S = 5.0


class NoAlarms:
    async def get(self, alarm_id: str) -> Alarm | None:
        return None


@dataclass
class Served:
    """The app behind a real server, and the log that its feed follows."""

    world: World
    log: FeedLog
    feed: LiveFeed
    address: str

    def events(self, http: httpx.AsyncClient, query: str = "", **headers: str) -> Any:
        return http.stream("GET", f"http://{self.address}/api/live{query}", headers=headers)

    def socket(self, query: str = "") -> Any:
        return websockets.connect(f"ws://{self.address}/ws{query}", compression=None)


@pytest.fixture
async def live_world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(feeds, "SHORTEST_PAUSE_S", 0.005)
    log = FeedLog()
    feed = LiveFeed(log.opened, NoAlarms(), lambda: AT_MS + 1_000, max_subscribers=2)
    async with world(feed=feed) as there:
        app = there.http._transport.app  # type: ignore[attr-defined]
        async with served(app) as address:
            try:
                yield Served(there, log, feed, address)
            finally:
                await feed.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
        yield client


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """Event, id and data, as a browser would see them."""
    event, last_id, data = "message", "", ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            event = value
        elif field == "id":
            last_id = value
        elif field == "data":
            data = value
        elif not line and data:
            yield event, last_id, msgspec.json.decode(data)
            event, data = "message", ""


async def frame(socket: ClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return msgspec.json.decode(await socket.recv())


async def test_an_event_stream_begins_with_how_things_stand(
    live_world: Served, http: httpx.AsyncClient
) -> None:
    await live_world.world.registered("sensor-001")
    await live_world.world.send({"temperature": 21.5, "humidity": 40.0})
    async with live_world.events(http, "?metric=temperature") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        stream = events(response)
        event, cursor, snapshot = await anext(stream)
        assert (event, snapshot["cursor"]) == ("snapshot", cursor)
        (device,) = snapshot["devices"]
        assert (device["device_id"], device["connectivity"]) == ("sensor-001", "online")
        assert {name: metric["value"] for name, metric in device["metrics"].items()} == {"temperature": 21.5}
        assert (snapshot["alarms"], snapshot["commands"], snapshot["truncated"]) == ([], [], False)
        live_world.log.commit(reading("sensor-001", 7, temperature=22.0))
        event, cursor, changes = await anext(stream)
        assert (event, changes["cursor"], changes["items"][0]["id"]) == ("changes", cursor, "1-7")


async def test_a_browser_that_comes_back_misses_nothing(live_world: Served, http: httpx.AsyncClient) -> None:
    query = "?topics=readings&snapshot=false"
    async with live_world.events(http, query) as response:
        live_world.log.commit(reading(offset=1))
        _, cursor, _ = await anext(events(response))
    live_world.log.commit(reading(offset=2))
    async with live_world.events(http, query, **{"Last-Event-ID": cursor}) as response:
        _, _, changes = await anext(events(response))
        assert [item["id"] for item in changes["items"]] == ["1-2"]


async def test_a_socket_tells_the_same(live_world: Served) -> None:
    await live_world.world.registered("sensor-001")
    async with live_world.socket("?device_id=sensor-001&topics=readings,alarms") as socket:
        snapshot = await frame(socket)
        assert snapshot["type"] == "snapshot"
        assert [device["device_id"] for device in snapshot["devices"]] == ["sensor-001"]
        assert "commands" not in snapshot
        live_world.log.commit(reading("other", 1), reading("sensor-001", 2))
        changes = await frame(socket)
        assert [item["id"] for item in changes["items"]] == ["1-2"]
    live_world.log.commit(reading("sensor-001", 3))
    async with live_world.socket(f"?device_id=sensor-001&cursor={changes['cursor']}") as socket:
        assert [item["id"] for item in (await frame(socket))["items"]] == ["1-3"]


REFUSED = {
    "topics=weather": "topics",
    "severity=loud": "severity",
    "device_id=,": "device_id",
    "devise=x": "devise",
    "snapshot=perhaps": "snapshot",
    "cursor=nonsense": "cursor",
    "cursor=AYCAgIAB": "cursor",
}
"""Queries, and what the refusal names."""


async def test_both_ways_refuse_alike(live_world: Served, http: httpx.AsyncClient) -> None:
    for query, said in REFUSED.items():
        response = await http.get(f"http://{live_world.address}/api/live?{query}")
        assert response.status_code == 422, query
        assert response.headers["content-type"] == "application/problem+json"
        assert said in response.json()["detail"]
        async with live_world.socket(f"?{query}") as socket:
            told = await frame(socket)
            assert (told["type"], told["problem"]["status"]) == ("problem", 422), query
            assert said in told["problem"]["detail"]
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await frame(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_too_many_are_asked_to_come_later(live_world: Served, http: httpx.AsyncClient) -> None:
    async with live_world.socket() as one, live_world.socket() as two:
        await asyncio.gather(frame(one), frame(two))
        response = await http.get(f"http://{live_world.address}/api/live")
        assert (response.status_code, response.headers["retry-after"]) == (429, "5")
        async with live_world.socket() as socket:
            told = await frame(socket)
            assert (told["problem"]["status"], told["retry_after_s"]) == (429, 5)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await frame(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


async def test_what_a_socket_says_ends_it(live_world: Served) -> None:
    async with live_world.socket() as socket:
        await frame(socket)
        await socket.send("hello")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await frame(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003
    await gone(live_world)


async def test_who_takes_nothing_is_given_up(live_world: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SEND_TIMEOUT_S", 0.1)
    monkeypatch.setattr(feed_subscription, "MAX_QUEUED_BYTES", 1 << 16)
    reader, writer = await asyncio.open_connection(*live_world.address.split(":"))
    writer.write(f"GET /api/live?snapshot=false HTTP/1.1\r\nHost: {live_world.address}\r\n\r\n".encode())
    await reader.readuntil(b"keepalive")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE_S):
        while live_world.feed.statistics()["subscribers"]:
            live_world.log.commit(*(reading(offset=n, text="x" * 10_000) for n in range(20)))
            await asyncio.sleep(0.01)
    assert live_world.feed.statistics()["dropped"] > 0
    writer.transport.abort()
    await gone(live_world)


async def test_without_a_feed_there_is_no_such_page(http: httpx.AsyncClient) -> None:
    async with world() as there:
        response = await there.http.get("/api/live")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_the_feed_closing_ends_the_streams(live_world: Served, http: httpx.AsyncClient) -> None:
    async with live_world.events(http) as response, live_world.socket() as socket:
        await frame(socket)
        stream = events(response)
        await anext(stream)
        await live_world.feed.close()
        assert [event async for event in stream] == []
        with pytest.raises(websockets.ConnectionClosedOK) as closed:
            await frame(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def gone(live_world: Served) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while live_world.feed.statistics()["subscribers"]:
            await asyncio.sleep(0.005)
