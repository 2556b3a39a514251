"""Who is said to have changed what over REST and GraphQL, and reading it."""

import pytest

from sensorium.serve.origin import origin_of
from tests.unit.serve.world import NOW_MS, World

BY = {"X-Sensorium-By": "ada", "X-Request-ID": "r-17"}


async def test_a_change_names_who_asked_and_the_request(platform: World) -> None:
    await platform.http.post("/api/devices", json={"device_id": "d", "device_type": "pump"}, headers=BY)
    entries = (await platform.http.get("/api/audit", params={"what": "device.register"})).json()["items"]
    assert [(e["by"], e["what"], e["thing"], e["way"]) for e in entries] == [
        ("ada", "device.register", "d", "rest")
    ]
    assert (entries[0]["at_ms"], entries[0]["request_id"], entries[0]["before"]) == (NOW_MS, "r-17", None)
    assert platform.audit.kicks == 1


async def test_reading_is_no_change(platform: World) -> None:
    await platform.registered("d")
    await platform.http.get("/api/devices/d")
    await platform.send({"t": 1}, "d")
    assert len((await platform.http.get("/api/audit")).json()["items"]) == 1
    assert platform.audit.kicks == 1


async def test_graphql_says_for_whom_it_asks(platform: World) -> None:
    mutation = 'mutation { registerDevice(deviceId: "d", deviceType: "pump") { deviceId } }'
    headers = {"X-Sensorium-By": "Zo%C3%AB"}
    answer = await platform.http.post("/graphql", json={"query": mutation}, headers=headers)
    assert "errors" not in answer.json()
    [entry] = (await platform.http.get("/api/audit", params={"who": "Zoë"})).json()["items"]
    assert (entry["way"], entry["what"]) == ("graphql", "device.register")


async def test_the_head_and_bad_filters(platform: World) -> None:
    await platform.registered("d")
    assert (await platform.http.get("/api/audit/head")).json()["number"] == 1
    assert (await platform.http.get("/api/audit", params={"what": "Rule Delete"})).status_code == 422
    assert (await platform.http.get("/api/audit", params={"cursor": "x"})).status_code == 422


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], ("", "10.0.0.9", "rest")),
        ([(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"192.0.2.7")], ("", "192.0.2.7", "rest")),
        ([(b"x-sensorium-by", b"a%00\x01b"), (b"x-sensorium-way", b"cli")], ("ab", "10.0.0.9", "cli")),
        ([(b"x-sensorium-way", b"platform")], ("", "10.0.0.9", "rest")),
    ],
)
def test_the_origin_of_a_request(headers: list[tuple[bytes, bytes]], expected: tuple[str, str, str]) -> None:
    origin = origin_of({"type": "http", "headers": headers, "client": ("10.0.0.9", 4711)})
    assert (origin.by, origin.client, origin.way) == expected
    assert len(origin.request_id) == 32
