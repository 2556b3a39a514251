"""Readings over HTTP: committed before the answer, recognised when they come again, refused with reason."""

import asyncio
from typing import Any

import httpx
import pytest

from sensorium.ingest.decode import Bounds
from sensorium.serve import examples
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT, AT_MS, NOW_MS, World, world

READING = {"temperature": 23.5, "humidity": 45.2, "timestamp": AT}


async def test_a_reading_is_committed_and_is_the_latest(platform: World) -> None:
    await platform.registered()
    sent = await platform.send(READING)
    assert sent.status_code == 201
    assert sent.json() == {"accepted": 1, "duplicates": 0, "results": [{"status": "accepted"}], "refused": 0}
    assert [row.time_ms for row in platform.store.readings] == [AT_MS]
    latest = (await platform.http.get("/api/devices/sensor-001/data/latest")).json()
    assert latest["metrics"]["temperature"] == {"value": 23.5, "time_ms": AT_MS, "quality": "good"}


async def test_the_same_reading_again_is_a_duplicate(platform: World) -> None:
    await platform.registered()
    await platform.send(READING)
    again = await platform.send(READING)
    assert again.status_code == 200
    assert again.json() == {
        "accepted": 0,
        "duplicates": 1,
        "results": [{"status": "duplicate"}],
        "refused": 0,
    }
    assert len(platform.store.readings) == 1


async def test_a_reading_without_time_counts_anew_unless_a_key_identifies_it(platform: World) -> None:
    await platform.registered()
    for _ in range(2):
        assert (await platform.send({"temperature": 1.0})).status_code == 201
    key = {"Idempotency-Key": "order-66"}
    assert (await platform.send({"temperature": 1.0}, headers=key)).status_code == 201
    assert (await platform.send({"temperature": 1.0}, headers=key)).status_code == 200
    assert (
        await platform.send({"temperature": 1.0}, headers={"Idempotency-Key": "other"})
    ).status_code == 201
    assert [row.time_ms for row in platform.store.readings] == [NOW_MS] * 4


async def test_an_array_is_answered_item_by_item(platform: World) -> None:
    await platform.registered()
    items = [{"temperature": float(i), "timestamp": AT_MS + i} for i in range(3)]
    await platform.send(items[1])
    sent = await platform.send(items)
    assert sent.status_code == 201
    assert sent.json()["accepted"] == 2
    assert [result["status"] for result in sent.json()["results"]] == ["accepted", "duplicate", "accepted"]
    assert (await platform.send(items)).status_code == 200


async def test_what_the_device_refuses_is_told_by_item_and_the_others_stay(platform: World) -> None:
    await platform.registered()
    await platform.send({"temperature": 1.0, "timestamp": AT_MS})
    sent = await platform.send(
        [{"temperature": "hot", "timestamp": AT_MS + 1}, {"temperature": 2.0, "timestamp": AT_MS + 2}]
    )
    problem = assert_problem(sent, 422, "wrong_type")
    assert [error["pointer"] for error in problem["errors"]] == ["#/0"]
    assert [result["status"] for result in problem["results"]] == ["refused", "accepted"]
    assert len(platform.store.readings) == 2


async def test_an_array_with_an_undecodable_item_stores_nothing(platform: World) -> None:
    await platform.registered()
    sent = await platform.send([{"temperature": 2.0}, {"temperature": None}])
    assert_problem(sent, 422, "wrong_type")
    assert not platform.store.readings
    assert [letter.reason for letter in platform.store.dead_letters] == ["wrong_type"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"{", "malformed_json"),
        (b'{"a": NaN}', "not_finite"),
        (b'{"a": 1e999}', "not_finite"),
        (b'{"a": {"b": 1}}', "wrong_type"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b"[]", "empty"),
        (b"", "empty"),
        (b"[1]", "not_an_object"),
        (b"[[{}]]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"a": 1, "timestamp": "noon"}', "bad_timestamp"),
        (b'{"a": 1, "timestamp": 9704110460000}', "timestamp_too_far_in_future"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "too_large"),
        (b"[" + b",".join([b'{"a":1}'] * 1001) + b"]", "batch_too_long"),
        (b"\xff\xfe", "malformed_json"),
    ],
)
async def test_what_is_no_telemetry_is_refused_with_the_decoders_reason(
    platform: World, payload: bytes, code: str
) -> None:
    await platform.registered()
    sent = await platform.http.post("/api/devices/sensor-001/data", content=payload)
    assert_problem(sent, 422, code)
    assert [(d.source, d.address, d.reason) for d in platform.store.dead_letters] == [
        ("http", "/api/devices/sensor-001/data", code)
    ]
    assert (await platform.send(READING)).status_code == 201


async def test_an_unregistered_device_is_not_found(platform: World) -> None:
    assert_problem(await platform.send(READING, "nobody"), 404, "unregistered")
    assert_problem(await platform.http.get("/api/devices/nobody/data/latest"), 404, "not_found")
    assert_problem(await platform.http.get("/api/devices/nobody/window/t"), 404, "not_found")
    assert_problem(await platform.http.get("/api/devices/nobody/data"), 404, "not_found")


async def test_without_a_commit_there_is_no_2xx_and_sending_again_stores_once() -> None:
    async with world(timeout_s=0.2) as platform:
        await platform.registered()
        platform.store.down = True
        problem = assert_problem(await platform.send(READING), 503, "unavailable")
        assert "Not committed within" in problem["detail"]
        assert not platform.store.readings
        platform.store.down = False
        async with asyncio.timeout(20):
            while (again := await platform.send(READING)).status_code == 503:
                await asyncio.sleep(0.01)
        assert again.status_code in (200, 201)
        assert len(platform.store.readings) == 1


async def test_an_outage_does_not_pile_up_readings() -> None:
    async with world(timeout_s=0.2) as platform:
        await platform.registered()
        platform.store.down = True
        assert_problem(await platform.send(READING), 503, "unavailable")
        async with asyncio.timeout(20):
            while platform.router.failing("sensor-001") is None:
                await asyncio.sleep(0.01)
        waiting = platform.router.pending
        for number in range(5):
            refused = await platform.send([{"t": 1.0, "timestamp": AT_MS + number}])
            assert_problem(refused, 503, "unavailable")
        assert platform.router.pending == waiting


async def test_the_window_is_the_devices(platform: World) -> None:
    await platform.registered()
    for i, value in enumerate((1.0, 3.0)):
        await platform.send({"temperature": value, "timestamp": AT_MS + i * 1000})
    window = await platform.http.get("/api/devices/sensor-001/window/temperature")
    assert window.status_code == 200
    assert (window.json()["count"], window.json()["mean"]) == (2, 2.0)
    same = await platform.http.get("/api/devices/sensor-001/window/temperature?length_s=900")
    assert same.json() == window.json()
    assert_problem(await platform.http.get("/api/devices/sensor-001/window/pressure"), 404, "not_found")
    bad = await platform.http.get("/api/devices/sensor-001/window/temperature?length_s=nan")
    assert_problem(bad, 422, "invalid")


async def test_history_comes_in_pages_and_ranges(platform: World) -> None:
    await platform.registered()
    await platform.send([{"temperature": float(i), "timestamp": AT_MS + i * 1000} for i in range(5)])
    url = "/api/devices/sensor-001/data"
    within = await platform.http.get(
        url, params={"start": "2024-01-01T12:00:01+00:00", "end": AT_MS + 4000, "order": "desc"}
    )
    assert [item["time_ms"] - AT_MS for item in within.json()["items"]] == [3000, 2000, 1000]
    # The plus of an offset, not encoded by the caller, arrives as a space.
    plain = await platform.http.get(f"{url}?start=2024-01-01T12:00:03+00:00")
    assert len(plain.json()["items"]) == 2
    values: list[float] = []
    following: str | None = f"{url}?limit=2"
    while following is not None:
        page: httpx.Response = await platform.http.get(following)
        values += [item["values"]["temperature"] for item in page.json()["items"]]
        following = page.links["next"]["url"] if "next" in page.links else None
    assert values == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("aggregation=max", ("max", None)),
        ("interval=1h", ("mean", 3600)),
        ("interval=60&aggregation=first", ("first", 60)),
        ("interval=90s", ("mean", 90)),
        ("interval=5m", ("mean", 300)),
        ("interval=366d", ("mean", 31_622_400)),
    ],
)
async def test_aggregates_are_asked_for_in_words(
    platform: World, query: str, asked: tuple[str, float | None]
) -> None:
    await platform.registered()
    got = await platform.http.get(f"/api/devices/sensor-001/data?metrics=temperature,humidity&{query}")
    assert got.status_code == 200, got.text
    expected = ("sensor-001", None, None, ["temperature", "humidity"], *asked, 1000, "asc", None, None)
    assert platform.read.asked == [expected]
    assert got.json() == {
        "device_id": "sensor-001",
        "aggregation": asked[0],
        "interval_s": asked[1],
        "items": [{"start_ms": AT_MS, "values": {"temperature": 23.5}}],
        "source": "1h",
        "approximate": False,
        "timezone": None,
    }


async def test_a_type_is_aggregated_over_its_devices(platform: World) -> None:
    got = await platform.http.get(
        "/api/analytics/aggregated",
        params={"device_type": "temperature", "metric": "temperature", "interval": "1h", "start": AT},
    )
    assert got.json()["items"] == [{"start_ms": AT_MS, "value": 23.5, "devices": 2}]
    assert platform.read.asked == [("temperature", "temperature", AT_MS, None, "mean", 3600, None, None)]
    assert_problem(await platform.http.get("/api/analytics/aggregated?device_type=t"), 422, "invalid")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("start=yesterday", "start"),
        ("end=99999999999999999", "end"),
        ("start=2&end=1", "end"),
        ("interval=0", "interval"),
        ("interval=1y", "interval"),
        ("interval=367d", "interval"),
        ("aggregation=median", "aggregation"),
        ("metrics=", "metrics"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("order=up", "order"),
        ("cursor=abc", "cursor"),
        ("cursor=é", "cursor"),
        ("aggregation=mean&cursor=WyJhIiwxXQ", "cursor"),
        ("limits=5", "limits"),
        ("limit=5&limit=6", "limit"),
    ],
)
async def test_a_bad_parameter_is_named(platform: World, query: str, parameter: str) -> None:
    await platform.registered()
    got = await platform.http.get(f"/api/devices/sensor-001/data?{query}")
    problem = assert_problem(got, 422, "invalid")
    assert {error["parameter"] for error in problem["errors"]} == {parameter}


async def test_a_cursor_of_another_list_is_refused(platform: World) -> None:
    for name in ("a", "b"):
        await platform.registered(name)
    cursor = (await platform.http.get("/api/devices?limit=1")).json()["next"]
    for url in ("/api/alarms", "/api/dead-letters", "/api/devices/a/data"):
        assert_problem(await platform.http.get(url, params={"cursor": cursor}), 422, "invalid")


async def test_the_examples_can_be_sent() -> None:
    async with world(bounds=Bounds()) as platform:
        await platform.registered()
        for example in examples.TELEMETRY.values():
            body: Any = example
            assert (await platform.send(body)).status_code == 201
