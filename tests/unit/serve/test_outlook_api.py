"""Remaining time and energy over HTTP: figures of known histories, and what is said where nothing can be."""

import math
from typing import Any

import pytest

from sensorium.storage.history import Bucket, Buckets
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World

HOUR_MS = 3_600_000
MONDAY_MS = 1_767_571_200_000
PATH = "/api/analytics/devices/d1"


def stored(world: World, patch: pytest.MonkeyPatch, buckets: list[Bucket]) -> None:
    async def aggregate(*asked: Any) -> Buckets[Bucket]:
        _, start_ms, end_ms, *_ = asked
        return Buckets([b for b in buckets if start_ms <= b.start_ms < end_ms], "1h")

    patch.setattr(world.read, "aggregate", aggregate)


@pytest.fixture
async def device(platform: World) -> World:
    await platform.registered("d1")
    return platform


def hours(count: int, value: Any, until_ms: int) -> list[Bucket]:
    first_ms = until_ms // HOUR_MS * HOUR_MS - count * HOUR_MS
    return [Bucket(first_ms + n * HOUR_MS, value(n)) for n in range(count)]


async def test_remaining_time(device: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(device, monkeypatch, hours(240, lambda n: {"vibration": 2 + 0.01 * n + 0.05 * (-1) ** n}, AT_MS))
    query = {"metric": "vibration", "threshold": "7", "end": str(AT_MS), "start": str(AT_MS - 400 * HOUR_MS)}
    body = (await device.http.get(f"{PATH}/maintenance", params=query)).json()
    assert body["remaining"]["outlook"] == "approaching"
    assert body["remaining"]["slope_a_day"] == pytest.approx(0.24, rel=0.01)
    assert body["remaining"]["remaining_s"] / 3600 == pytest.approx(500 - 239, rel=0.01)
    assert body["earliest_ms"] < body["expected_ms"] < body["latest_ms"]
    assert body["formula"].startswith("(7 - 4.38")
    assert body["remaining"]["points"] == 240
    query["direction"] = "falling"
    body = (await device.http.get(f"{PATH}/maintenance", params=query)).json()
    assert body["remaining"]["outlook"] == "reached"
    query |= {"threshold": "1"}
    body = (await device.http.get(f"{PATH}/maintenance", params=query)).json()
    assert (body["remaining"]["outlook"], body["expected_ms"]) == ("none", None)
    assert "does not lead" in body["formula"]


async def test_waste(device: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def power(n: int) -> dict[str, Any]:
        hour = n % 24
        outside = 10 + 8 * math.sin(n / 40)
        usual = (20.0 if 7 <= hour < 18 else 5.0) + max(outside - 10, 0.0)
        left_on = 8.0 if n >= 28 * 24 and hour == 2 else 0.0
        return {"power": usual + left_on + 0.1 * math.sin(n * 7), "outside": outside}

    first_ms = MONDAY_MS - 28 * 24 * HOUR_MS
    stored(device, monkeypatch, [Bucket(first_ms + n * HOUR_MS, power(n)) for n in range(35 * 24)])
    query = {
        "metric": "power",
        "covariates": "outside",
        "start": str(MONDAY_MS),
        "end": str(MONDAY_MS + 7 * 24 * HOUR_MS),
    }
    body = (await device.http.get(f"{PATH}/energy", params=query)).json()
    assert body["hours"] == 168
    assert body["baseline_hours"] == 672
    assert body["explained"] > 0.98
    at_two = [(at["hour"], at["weekend"]) for at in body["most"][:2]]
    assert at_two == [(2, False), (2, True)]
    assert sum(at["waste"] for at in body["most"][:2]) == pytest.approx(56, rel=0.1)
    assert body["waste"] == pytest.approx(sum(item["waste"] for item in body["items"]))
    shifted = (await device.http.get(f"{PATH}/energy", params={**query, "timezone": "Europe/Berlin"})).json()
    assert shifted["most"][0]["hour"] == 3


@pytest.mark.parametrize(
    ("path", "query", "status", "said"),
    [
        ("d1/maintenance", {"metric": "x", "threshold": "1"}, 422, "0 intervals have numbers of x"),
        ("d1/maintenance", {"metric": "x"}, 422, "threshold"),
        ("d1/maintenance", {"metric": "x", "threshold": "nan"}, 422, "threshold"),
        ("d1/maintenance", {"metric": "x", "threshold": "1", "interval": "1s"}, 422, "more than 10000"),
        ("nobody/maintenance", {"metric": "x", "threshold": "1"}, 404, "no device nobody"),
        ("d1/energy", {"metric": "x"}, 422, "0 hours of the baseline and 0 of the period have x"),
        ("d1/energy", {"metric": "x", "covariates": "x"}, 422, "not the metric itself"),
        ("d1/energy", {"metric": "x", "timezone": "Mars"}, 422, "Mars"),
        ("d1/energy", {"metric": "x", "start": "2024-01-02", "baseline_start": "2024-01-03"}, 422, "before"),
        ("d1/energy", {"metric": "x", "baseline_start": "2001-01-03"}, 422, "10000 hours"),
        ("nobody/energy", {"metric": "x"}, 404, "no device nobody"),
    ],
)
async def test_what_cannot_be_said(
    device: World, monkeypatch: pytest.MonkeyPatch, path: str, query: Any, status: int, said: str
) -> None:
    stored(device, monkeypatch, [])
    response = await device.http.get(f"/api/analytics/devices/{path}", params=query)
    assert_problem(
        response, status, "not_found" if status == 404 else "no_history" if said[0] == "0" else "invalid"
    )
    assert said in response.text


async def test_models_are_listed_with_those_that_only_work(platform: World) -> None:
    body = (await platform.http.get("/api/analytics/models")).json()
    listed = [(i["model"]["name"], i["active"], i["activated_ms"]) for i in body["items"]]
    assert listed == [("fans", True, 77), ("pumps", False, None)]
