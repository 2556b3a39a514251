"""What a profile's schema makes of readings, as people and devices see it over HTTP."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.schema import MetricSpec, Outside, Schema
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World, world

PROFILE = Profile(
    schema=Schema(
        {
            "temperature": MetricSpec(unit="degC", minimum=-40.0, maximum=85.0),
            "humidity": MetricSpec(maximum=100.0, outside=Outside.REJECT),
        },
        Outside.REJECT,
    )
)


@pytest.fixture
async def platform() -> AsyncIterator[World]:
    async with world(profiles=Profiles(PROFILE)) as here:
        await here.registered()
        yield here


async def test_what_is_rejected_is_told_by_code_and_item(platform: World) -> None:
    problem = assert_problem(await platform.send({"humidity": 101}), 422, "out_of_range")
    assert "humidity is 101, above 100" in problem["detail"]
    assert_problem(await platform.send({"preasure": 1}), 422, "unknown_metric")
    lines = '{"humidity": 50}\n{"humidity": "wet"}'
    answer = await platform.http.post(
        "/api/devices/sensor-001/data", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 207
    assert [(item["status"], item.get("code")) for item in answer.json()["results"]] == [
        ("accepted", None),
        ("refused", "wrong_type"),
    ]
    reasons = {item["reason"] for item in (await platform.http.get("/api/dead-letters")).json()["items"]}
    assert reasons == {"out_of_range", "unknown_metric", "wrong_type"}


async def test_what_is_suspect_is_stored_told_and_found(platform: World) -> None:
    for n, value in enumerate([20, 99, 21, -60]):
        sent = await platform.send({"temperature": value, "humidity": 40, "timestamp": AT_MS + n})
        assert sent.status_code == 201
    path = "/api/devices/sensor-001/data"
    latest = (await platform.http.get(f"{path}/latest")).json()["metrics"]
    assert (latest["temperature"]["quality"], latest["humidity"]["quality"]) == ("suspect", "good")

    async def found(query: str) -> list[Any]:
        items = (await platform.http.get(f"{path}{query}")).json()["items"]
        return [(item["values"]["temperature"], item["quality"]) for item in items]

    assert await found("") == [(20.0, "good"), (99.0, "suspect"), (21.0, "good"), (-60.0, "suspect")]
    assert await found("?quality=suspect") == [(99.0, "suspect"), (-60.0, "suspect")]
    assert await found("?quality=good") == [(20.0, "good"), (21.0, "good")]
    assert_problem(await platform.http.get(f"{path}?quality=bad"), 422, "invalid")
    await platform.http.get(f"{path}?quality=good&interval=1h")
    assert platform.read.asked[-1][-1] == "good"
    export = await platform.http.get("/api/export/readings?device_id=sensor-001&quality=suspect")
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert [(line["values"]["temperature"], line["quality"]) for line in lines] == [
        (99.0, "suspect"),
        (-60.0, "suspect"),
    ]


async def test_graphql_tells_and_filters_it(platform: World) -> None:
    for n, value in enumerate([20, 99]):
        await platform.send({"temperature": value, "timestamp": AT_MS + n})
    query = """{
      device(deviceId: "sensor-001") { latest { metric quality } }
      readings(deviceId: "sensor-001", quality: SUSPECT) { items { values quality } }
    }"""
    said = (await platform.http.post("/graphql", json={"query": query})).json()
    assert "errors" not in said, said
    assert said["data"]["device"]["latest"] == [{"metric": "temperature", "quality": "suspect"}]
    assert said["data"]["readings"]["items"] == [{"values": {"temperature": 99.0}, "quality": "suspect"}]
