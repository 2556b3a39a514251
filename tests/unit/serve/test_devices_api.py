"""Devices over HTTP: registered, listed, changed, retired and revived."""

from typing import Any

import pytest

from sensorium.serve import examples
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, World


async def test_a_device_is_registered_and_found(platform: World) -> None:
    created = await platform.http.post("/api/devices", json=examples.REGISTER["sensor"])
    assert created.status_code == 201
    assert created.headers["Location"] == "/api/devices/sensor-001"
    found = await platform.http.get(created.headers["Location"])
    assert found.status_code == 200
    assert found.json() == created.json()
    assert found.json()["location"] == {"latitude": 52.52, "longitude": 13.405, "address": "Hall 3, Berlin"}
    assert found.json()["connectivity"] == "never_seen"
    assert found.json()["registered_ms"] == NOW_MS


async def test_a_second_registration_conflicts_and_an_unknown_device_is_not_found(platform: World) -> None:
    await platform.registered()
    again = await platform.http.post(
        "/api/devices", json={"device_id": "sensor-001", "device_type": "temperature"}
    )
    assert_problem(again, 409, "conflict")
    for method in ("GET", "DELETE"):
        assert_problem(await platform.http.request(method, "/api/devices/nobody"), 404, "not_found")
    assert_problem(await platform.http.patch("/api/devices/nobody", json={}), 404, "not_found")


async def test_an_id_with_spaces_and_letters_of_the_world_finds_its_way(platform: World) -> None:
    created = await platform.registered("Fühler 1%")
    assert (await platform.http.get(created.headers["Location"])).json()["device_id"] == "Fühler 1%"


async def test_lists_come_in_pages_that_together_hold_each_device_once(platform: World) -> None:
    for number in range(7):
        await platform.registered(f"d{number}")
    seen: list[str] = []
    url: str | None = "/api/devices?limit=3&type=temperature"
    while url is not None:
        page = await platform.http.get(url)
        seen += [item["device_id"] for item in page.json()["items"]]
        link = page.links.get("next")
        assert (link is None) == (page.json()["next"] is None)
        url = link["url"] if link else None
    assert seen == [f"d{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["a1", "a2", "b1"]),
        ("metadata.site=a", ["a1", "a2"]),
        ('metadata={"site":"a"}', ["a1", "a2"]),
        ("metadata.site=a&metadata.place.floor=2", ["a2"]),
        ("metadata.site=a&type=pump", ["a2"]),
        ("metadata.active=true", ["b1"]),
        ('metadata.place.floor="2"', []),
        ("status=decommissioned", ["old"]),
        ("status=any&limit=10", ["a1", "a2", "b1", "old"]),
    ],
)
async def test_filters_add_up(platform: World, query: str, expected: list[str]) -> None:
    await platform.registered("a1", metadata={"site": "a", "place": {"floor": 1}})
    await platform.registered("a2", device_type="pump", metadata={"site": "a", "place": {"floor": 2}})
    await platform.registered("b1", metadata={"site": "b", "active": True})
    await platform.registered("old")
    await platform.http.delete("/api/devices/old")
    listed = await platform.http.get(f"/api/devices?{query}")
    assert [item["device_id"] for item in listed.json()["items"]] == expected


async def test_a_patch_merges_and_null_removes(platform: World) -> None:
    await platform.http.post("/api/devices", json=examples.REGISTER["sensor"])
    url = "/api/devices/sensor-001"
    patched = await platform.http.patch(
        url,
        json={"location": {"address": "Hall 4"}, "metadata": {"floor": None, "line": 2}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert patched.status_code == 200
    assert patched.json()["location"] == {"latitude": 52.52, "longitude": 13.405, "address": "Hall 4"}
    assert patched.json()["metadata"] == {"site": "a", "line": 2}
    assert patched.json()["device_type"] == "temperature"
    emptied = await platform.http.patch(url, json={"location": None, "metadata": None, "device_type": "pump"})
    assert emptied.json()["metadata"] == {}
    assert emptied.json()["location"] in (None, {})
    assert emptied.json()["device_type"] == "pump"


async def test_a_patch_that_would_leave_half_a_place_is_refused(platform: World) -> None:
    await platform.http.post("/api/devices", json=examples.REGISTER["sensor"])
    half = await platform.http.patch("/api/devices/sensor-001", json={"location": {"latitude": None}})
    problem = assert_problem(half, 422, "invalid")
    assert problem["errors"][0]["pointer"] == "#/location"
    bad = await platform.http.patch("/api/devices/sensor-001", json={"location": {"latitude": 91}})
    assert assert_problem(bad, 422, "invalid")["errors"][0]["pointer"] == "#/location/latitude"


async def test_a_retired_device_keeps_its_history_and_comes_back(platform: World) -> None:
    await platform.registered()
    await platform.send({"temperature": 23.5, "timestamp": "2024-01-01T12:00:00Z"})
    gone = await platform.http.delete("/api/devices/sensor-001")
    assert gone.status_code == 204
    assert gone.content == b""
    assert (await platform.http.get("/api/devices/sensor-001")).json()["status"] == "decommissioned"
    assert_problem(await platform.send({"temperature": 24.0}), 409, "decommissioned")
    history = await platform.http.get("/api/devices/sensor-001/data")
    assert [item["values"] for item in history.json()["items"]] == [{"temperature": 23.5}]
    await platform.registered()
    assert (await platform.send({"temperature": 24.0})).status_code == 201


_NESTED: Any = {}
for _ in range(9):
    _NESTED = {"n": _NESTED}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"device_id": "a/b"}, "#/device_id"),
        ({"device_id": ""}, "#/device_id"),
        ({"device_id": "x" * 129}, "#/device_id"),
        ({"device_id": "a\x00b"}, "#/device_id"),
        ({"device_id": 5}, "#/device_id"),
        ({"device_type": None}, "#/device_type"),
        ({"device_type": "a\x00"}, "#/device_type"),
        ({"location": {"latitude": 90.1, "longitude": 0}}, "#/location/latitude"),
        ({"location": {"latitude": 0, "longitude": -180.5}}, "#/location/longitude"),
        ({"location": {"latitude": "52", "longitude": 0}}, "#/location/latitude"),
        ({"location": {"latitude": 1}}, "#/location"),
        ({"location": {"height": 3}}, "#/location/height"),
        ({"metadata": {"big": "x" * 16_384}}, "#/metadata"),
        ({"metadata": _NESTED}, "#/metadata"),
        ({"metadata": {"nul": ["\x00"]}}, "#/metadata"),
        ({"metadata": [1]}, "#/metadata"),
        ({"colour": "red"}, "#/colour"),
    ],
)
async def test_a_bad_registration_says_where(platform: World, change: dict[str, Any], pointer: str) -> None:
    body = {"device_id": "sensor-001", "device_type": "temperature", **change}
    response = await platform.http.post("/api/devices", json=body)
    problem = assert_problem(response, 422, "invalid")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert not platform.store.registrations


async def test_everything_wrong_is_said_at_once(platform: World) -> None:
    response = await platform.http.post("/api/devices", json={"device_id": "", "colour": 1})
    problem = assert_problem(response, 422, "invalid")
    assert {error["pointer"] for error in problem["errors"]} == {"#/device_id", "#/device_type", "#/colour"}
