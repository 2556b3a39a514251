"""What charts are given: intervals that are filled, chosen points, groups of devices."""

import math
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.serve.buckets import Fill, fill
from sensorium.serve.downsample import lttb
from sensorium.serve.problems import Problem
from sensorium.storage.history import Buckets, TypeBucket
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World

H = 3_600_000
BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("how", "values"),
    [
        (Fill.NULL, [1.0, None, None, 4.0]),
        (Fill.ZERO, [1.0, 0.0, 0.0, 4.0]),
        (Fill.PREVIOUS, [1.0, 1.0, 1.0, 4.0]),
        (Fill.LINEAR, [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_gaps(how: Fill, values: list[float | None]) -> None:
    found = fill(how, [(0, {"t": 1.0}), (3 * H, {"t": 4.0})], 3600, None, None, None)
    assert [(b.start_ms, b.values["t"], b.filled) for b in found] == [
        (n * H, value, n in (1, 2)) for n, value in enumerate(values)
    ]


def test_the_range_says_where_it_begins_and_ends() -> None:
    found = fill(Fill.PREVIOUS, [(2 * H, {"t": 1.0})], 3600, None, H + 1, 4 * H)
    assert [(b.start_ms, b.values["t"]) for b in found] == [(H, None), (2 * H, 1.0), (3 * H, 1.0)]
    assert [b.values for b in fill(Fill.ZERO, [], 3600, None, 0, 2 * H)] == [{}, {}]
    assert fill(Fill.ZERO, [], 3600, None, None, 2 * H) == []


def test_texts_lie_on_no_line() -> None:
    buckets: list[tuple[int, dict[str, Any]]] = [(0, {"m": "a", "t": 1.0}), (2 * H, {"m": "b", "t": 2.0})]
    assert [b.values for b in fill(Fill.LINEAR, buckets, 3600, None, None, None)][1] == {"m": None, "t": 1.5}
    assert [b.values for b in fill(Fill.PREVIOUS, buckets, 3600, None, None, None)][1] == {"m": "a", "t": 1.0}


def test_days_of_a_zone_are_as_long_as_there() -> None:
    def midnight(day: int, offset_h: int) -> int:
        return round(datetime(2024, 3, day, tzinfo=UTC).timestamp() * 1000) - offset_h * H

    there = [(midnight(30, 1), {"t": 1.0}), (midnight(32 - 1, 1) + 23 * H, {"t": 2.0})]
    found = fill(Fill.NULL, there, 86_400, BERLIN, None, None)
    assert [b.start_ms - found[0].start_ms for b in found] == [0, 24 * H, 47 * H]
    assert [b.filled for b in found] == [False, True, False]
    weeks = fill(Fill.ZERO, [], 7 * 86_400, BERLIN, midnight(27, 1), midnight(28, 1))
    assert [datetime.fromtimestamp(b.start_ms / 1000, UTC).isoformat() for b in weeks] == [
        "2024-03-24T23:00:00+00:00"
    ]


def test_too_many_intervals_are_refused() -> None:
    with pytest.raises(Problem):
        fill(Fill.NULL, [], 1, None, 0, 11_000_000)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.floats(-1e6, 1e6)),
        min_size=3,
        max_size=200,
        unique_by=lambda p: p[0],
    ),
    st.integers(3, 50),
)
def test_chosen_points_are_some_of_them_in_order(points: list[tuple[int, float]], count: int) -> None:
    points.sort()
    chosen = lttb(points, count)
    assert len(chosen) == min(count, len(points))
    assert (chosen[0], chosen[-1]) == (points[0], points[-1])
    assert [p for p in points if p in set(chosen)] == chosen


def test_a_peak_stays() -> None:
    rng = random.Random(3)
    points = [(n, math.sin(n / 50) + rng.gauss(0, 0.05)) for n in range(5000)]
    points[3210] = (3210, 25.0)
    chosen = lttb(points, 100)
    assert points[3210] in chosen


async def test_a_chart_of_a_device(platform: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await platform.registered()
    for n in range(40):
        await platform.send({"temperature": float(n % 7), "mode": "eco", "timestamp": AT_MS + n * 1000})

    async def count(*_: Any) -> Any:
        return [type("Bucket", (), {"values": {"temperature": 40.0, "mode": 40.0}})]

    monkeypatch.setattr(platform.read, "aggregate", count)
    answered = (await platform.http.get("/api/devices/sensor-001/series?points=10")).json()
    (line,) = answered["items"]
    assert (answered["source"], line["metric"], len(line["points"])) == ("raw", "temperature", 10)
    assert line["points"][0] == [AT_MS, 0.0]
    assert_problem(await platform.http.get("/api/devices/none/series"), 404, "not_found")
    assert_problem(await platform.http.get("/api/devices/sensor-001/series?points=2"), 422, "invalid")


async def test_groups_and_places(platform: World) -> None:
    berlin, potsdam = {"latitude": 52.52, "longitude": 13.4}, {"latitude": 52.4, "longitude": 13.05}
    await platform.registered("a", metadata={"site": "north", "floor": 3}, location=berlin)
    await platform.registered("b", metadata={"site": "south", "up": True}, location=potsdam)
    await platform.registered("c")
    page = "/api/analytics/aggregated?metric=temperature&"

    async def groups(query: str) -> dict[str, int]:
        answered = (await platform.http.get(page + query)).json()
        return {g["group"]: g["devices"] for g in answered["groups"]}

    assert await groups("group_by=metadata.site") == {"": 1, "north": 1, "south": 1}
    assert await groups("group_by=metadata.floor") == {"": 2, "3": 1}
    assert await groups("group_by=type&near=52.5,13.4,5000") == {"temperature": 1}
    assert await groups("group_by=place") == {"": 1, "52.4,13.0": 1, "52.5,13.4": 1}
    assert await groups("group_by=metadata.up&metadata.site=south") == {"true": 1}
    asked = platform.read.asked
    await platform.http.get(page + "near=52.5,13.4,50000")
    assert asked[-1][-1] == ["a", "b"]
    await platform.http.get(page + "device_type=temperature")
    assert asked[-1][-1] is None


@pytest.mark.parametrize(
    "query",
    [
        "near=52.5,13.4",
        "near=91,0,10",
        "near=0,0,nan",
        "group_by=site",
        "group_by=metadata.",
        "points=10",
        "timezone=Europe/Berlin",
        "timezone=Europe/Berlin&interval=1h",
        "timezone=Nowhere&interval=1d",
        "fill=zero",
        "fill=some&interval=1d",
    ],
)
async def test_mistakes_are_told(platform: World, query: str) -> None:
    response = await platform.http.get(f"/api/analytics/aggregated?metric=t&{query}")
    problem = assert_problem(response, 422, "invalid")
    assert problem["errors"][0]["parameter"] == query.partition("=")[0]


async def test_intervals_over_devices_are_chosen_for_a_chart(
    platform: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = [TypeBucket(AT_MS + n * H, float(n % 7) + (n == 55) * 90.0, 2) for n in range(100)]

    async def aggregated(*_: Any) -> Any:
        return Buckets(buckets, "1h")

    monkeypatch.setattr(platform.read, "aggregate_type", aggregated)
    page = "/api/analytics/aggregated?metric=t&device_type=temperature&interval=1h&points="
    items = (await platform.http.get(page + "12")).json()["items"]
    assert len(items) == 12
    assert (items[0]["start_ms"], items[-1]["start_ms"]) == (AT_MS, AT_MS + 99 * H)
    assert max(item["value"] for item in items) == 96.0, "no peak is lost"
    assert len((await platform.http.get(page + "200")).json()["items"]) == 100


async def test_a_devices_intervals_are_filled(platform: World) -> None:
    await platform.registered()
    query = f"interval=1h&fill=previous&start={AT_MS}&end={AT_MS + 3 * H}"
    items = (await platform.http.get(f"/api/devices/sensor-001/data?{query}")).json()["items"]
    assert items == [
        {"start_ms": AT_MS, "values": {"temperature": 23.5}},
        {"start_ms": AT_MS + H, "values": {"temperature": 23.5}, "filled": True},
        {"start_ms": AT_MS + 2 * H, "values": {"temperature": 23.5}, "filled": True},
    ]
    assert_problem(await platform.http.get("/api/devices/sensor-001/data?fill=zero"), 422, "invalid")
