"""Many readings in one request: of many devices, by lines, packed; each item by itself."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from sensorium.actors.profile import RateLimit
from sensorium.ingest.rate_limit import limiter
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World, world

NDJSON = {"Content-Type": "application/x-ndjson"}
TEMPERATURE = {"temperature": 23.5, "timestamp": AT_MS}


def lines(*items: Any) -> bytes:
    return b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items)


async def bulk(platform: World, content: bytes, **headers: str) -> httpx.Response:
    return await platform.http.post("/api/data", content=content, headers=headers)


def statuses(response: httpx.Response) -> list[str]:
    return [item.get("code") or item["status"] for item in response.json()["results"]]


def item(device_id: str, data: Any) -> dict[str, Any]:
    return {"device_id": device_id, "data": data}


@pytest.mark.parametrize("by_line", [False, True])
async def test_readings_of_many_devices(platform: World, by_line: bool) -> None:
    await platform.registered("a")
    await platform.registered("b")
    items = [item("a", TEMPERATURE), item("b", [TEMPERATURE, {"temperature": 24, "timestamp": AT_MS + 1}])]
    content = lines(*items) if by_line else json.dumps(items).encode()
    headers = NDJSON if by_line else {"Content-Type": "application/json"}
    first = await bulk(platform, content, **headers)
    assert (first.status_code, statuses(first)) == (201, ["accepted", "accepted"])
    assert len(platform.store.readings) == 3
    again = await bulk(platform, content, **headers)
    assert (again.status_code, again.json()["duplicates"]) == (200, 2)
    assert len(platform.store.readings) == 3


async def test_what_is_wrong_is_refused_alone(platform: World) -> None:
    await platform.registered("a")
    content = lines(
        item("a", TEMPERATURE),
        b"{not json",
        item("nobody", TEMPERATURE),
        item("a", {"temperature": [1]}),
        {"device_id": "a", "dat": {}},
        item("a/b", TEMPERATURE),
        b"\xff\xfe",
        item("a", {"temperature": 24.5, "timestamp": AT_MS + 1000}),
    )
    response = await bulk(platform, content, **NDJSON)
    assert response.status_code == 207
    told = statuses(response)
    assert [told[0], told[7]] == ["accepted", "accepted"]
    assert [told[1], told[4], told[6]] == ["malformed_json"] * 3
    assert told[2] == "unregistered"
    assert (response.json()["accepted"], response.json()["refused"]) == (2, 6)
    assert all(result["detail"] for result in response.json()["results"] if result["status"] == "refused")
    assert [row.time_ms for row in platform.store.readings] == [AT_MS, AT_MS + 1000]


async def test_a_devices_own_lines(platform: World) -> None:
    await platform.registered()
    content = lines(TEMPERATURE, b"", b"{", {"temperature": 24.5, "timestamp": AT_MS + 1000})
    response = await platform.http.post("/api/devices/sensor-001/data", content=content, headers=NDJSON)
    assert (response.status_code, statuses(response)[::2]) == (207, ["accepted", "accepted"])
    content = lines(TEMPERATURE)
    fine = await platform.http.post("/api/devices/sensor-001/data", content=content, headers=NDJSON)
    assert (fine.status_code, fine.json()["duplicates"]) == (200, 1)


async def test_a_key_tells_what_was_sent_before(platform: World) -> None:
    await platform.registered("a")
    content = lines(item("a", {"temperature": 1}), item("a", {"temperature": 1}))
    key = {"Idempotency-Key": "gateway-7/42", **NDJSON}
    assert (await bulk(platform, content, **key)).json()["accepted"] == 2
    assert (await bulk(platform, content, **key)).json()["duplicates"] == 2
    assert (await bulk(platform, content, **{**key, "Idempotency-Key": "43"})).json()["accepted"] == 2
    assert len(platform.store.readings) == 4


@pytest.mark.parametrize("content", [b"[]", b"{}", b"", b"[" * 10_000, b'[{"device_id": "a"', b"\xff"])
async def test_what_is_no_array_is_refused_as_a_whole(platform: World, content: bytes) -> None:
    response = await bulk(platform, content, **{"Content-Type": "application/json"})
    assert response.status_code == 422
    assert_problem(response, 422, response.json()["code"])


async def test_too_many_items_are_refused(platform: World) -> None:
    response = await bulk(platform, b"1\n" * 10_001, **NDJSON)
    assert "not 10,001" in assert_problem(response, 422, "invalid")["detail"]


async def test_the_device_that_sends_too_much_waits_alone() -> None:
    async with world(limiter=limiter(RateLimit(1.0, 2))) as platform:
        await platform.registered("a")
        await platform.registered("b")
        many = [item("a", {"temperature": n, "timestamp": AT_MS + n}) for n in range(4)]
        response = await bulk(platform, lines(*many, item("b", TEMPERATURE)), **NDJSON)
        assert statuses(response) == ["accepted", "accepted", "rate_limited", "rate_limited", "accepted"]


async def test_packed_bodies(platform: World) -> None:
    await platform.registered("a")
    packed = gzip.compress(lines(item("a", TEMPERATURE)))
    response = await bulk(platform, packed, **NDJSON, **{"Content-Encoding": "gzip"})
    assert response.status_code == 201
    one = gzip.compress(json.dumps({"temperature": 1, "timestamp": AT_MS + 5}).encode())
    headers = {"Content-Encoding": "GZIP", "Content-Type": "application/json"}
    there = await platform.http.post("/api/devices/a/data", content=one, headers=headers)
    assert there.status_code == 201


@pytest.mark.parametrize(
    ("content", "encoding", "status", "code"),
    [
        (b"no gzip", "gzip", 422, "malformed_body"),
        (gzip.compress(b"[]", mtime=0)[:-3], "gzip", 422, "malformed_body"),
        (gzip.compress(b"[]", mtime=0) + b"more", "gzip", 422, "malformed_body"),
        (b"", "gzip", 422, "malformed_body"),
        (zlib.compress(b"[]"), "deflate", 415, "unsupported_media_type"),
        (b"[]", "gzip, gzip", 415, "unsupported_media_type"),
        (gzip.compress(bytes(9 * 1_048_576)), "gzip", 413, "body_too_large"),
    ],
)
async def test_what_cannot_be_unpacked_is_refused(
    platform: World, content: bytes, encoding: str, status: int, code: str
) -> None:
    assert len(content) < 20_000
    response = await bulk(platform, content, **NDJSON, **{"Content-Encoding": encoding})
    assert_problem(response, status, code)
