"""The pages of twins, over a real device."""

from typing import Any

import pytest

from sensorium.actors.placement import SHARDS
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, World

PATH = "/api/devices/sensor-001/twin"


@pytest.fixture(autouse=True)
async def registered(platform: World) -> None:
    await platform.registered()


async def test_a_new_twin_is_empty(platform: World) -> None:
    response = await platform.http.get(PATH)
    assert response.headers["ETag"] == '"0.0"'
    twin = response.json()
    assert (twin["desired"]["version"], twin["desired"]["values"], twin["delta"]) == (0, {}, {})
    assert_problem(await platform.http.get("/api/devices/nobody/twin"), 404, "not_found")


async def test_patches_merge_and_say_who_wrote_what_when(platform: World) -> None:
    first = await platform.http.patch(f"{PATH}/desired", json={"a": {"b": 1, "c": [1, 2]}, "d": "x"})
    assert (first.status_code, first.headers["ETag"]) == (200, '"d1"')
    second = await platform.http.patch(
        f"{PATH}/desired?by=alice",
        json={"a": {"b": None, "c": [3]}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert second.json() == {
        "version": 2,
        "values": {"a": {"c": [3]}, "d": "x"},
        "fields": {
            "/a/c": {"time_ms": NOW_MS, "by": "alice"},
            "/d": {"time_ms": NOW_MS, "by": "api"},
            "/a/b": {"time_ms": NOW_MS, "by": "alice", "removed": True},
        },
        "changed_ms": NOW_MS,
    }
    reported = await platform.http.patch(f"{PATH}/reported", json={"d": "x", "battery": 3.1})
    assert reported.json()["fields"]["/battery"]["by"] == "http"
    twin = (await platform.http.get(PATH)).json()
    assert twin["delta"] == {"a": {"c": [3]}}


async def test_a_patch_that_changes_nothing_is_no_new_version(platform: World) -> None:
    await platform.http.patch(f"{PATH}/desired", json={"a": 1})
    again = await platform.http.patch(f"{PATH}/desired?by=bob", json={"a": 1.0, "b": None})
    assert (again.json()["version"], again.json()["fields"]["/a"]["by"]) == (1, "api")


async def test_put_replaces(platform: World) -> None:
    await platform.http.patch(f"{PATH}/desired", json={"a": 1, "b": 2})
    response = await platform.http.put(f"{PATH}/desired", json={"b": 3})
    assert (response.json()["values"], response.json()["version"]) == ({"b": 3}, 2)
    whole = await platform.http.put(PATH, json={"desired": {"c": 1}, "reported": {"c": 1}})
    assert (whole.headers["ETag"], whole.json()["delta"]) == ('"3.1"', {})


async def test_who_saw_an_older_one_is_refused(platform: World) -> None:
    tag = (await platform.http.patch(f"{PATH}/desired", json={"a": 1})).headers["ETag"]
    await platform.http.patch(f"{PATH}/reported", json={"z": 1})
    headers = {"If-Match": f'W/"d1", "d7", {tag}'}
    assert (await platform.http.patch(f"{PATH}/desired", json={"a": 2}, headers=headers)).status_code == 200
    for path, body in ((f"{PATH}/desired", {"a": 3}), (PATH, {"desired": {"a": 3}})):
        late = await platform.http.patch(path, json=body, headers=headers)
        assert_problem(late, 412, "precondition_failed")
    weak = {"If-Match": 'W/"d2"'}
    late = await platform.http.put(f"{PATH}/desired", json={}, headers=weak)
    assert_problem(late, 412, "precondition_failed")
    anyone = await platform.http.patch(PATH, json={"desired": {"a": 4}}, headers={"If-Match": "*"})
    assert anyone.headers["ETag"] == '"3.1"'
    bad = await platform.http.patch(f"{PATH}/desired", json={}, headers={"If-Match": "d2"})
    assert_problem(bad, 422, "invalid")


async def test_who_has_it_is_told_so(platform: World) -> None:
    tag = (await platform.http.get(PATH)).headers["ETag"]
    same = await platform.http.get(PATH, headers={"If-None-Match": f'"x", W/{tag}'})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
    await platform.http.patch(f"{PATH}/desired", json={"a": 1})
    assert (await platform.http.get(PATH, headers={"If-None-Match": tag})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [{"a": "x" * 32_768}, {str(n): n for n in range(1001)}, {"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}],
)
async def test_bounds(platform: World, body: dict[str, Any]) -> None:
    response = await platform.http.patch(f"{PATH}/desired", json=body)
    assert_problem(response, 422, "twin_too_large")
    assert (await platform.http.get(PATH)).headers["ETag"] == '"0.0"'


@pytest.mark.parametrize("text", ["[1]", '{"a": "\\u0000"}', '{"a": 1e999}', "{", '{"a":' * 5000])
async def test_what_is_no_document_is_refused(platform: World, text: str) -> None:
    response = await platform.http.patch(
        f"{PATH}/desired", content=text, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    unknown = await platform.http.patch(PATH, json={"wanted": {}})
    assert_problem(unknown, 422, "invalid")


async def test_it_survives_the_end_of_its_host_and_rests_while_decommissioned(platform: World) -> None:
    await platform.http.patch(f"{PATH}/desired", json={"a": 1})
    platform.host._compartments[0].activations.close(range(SHARDS))
    await platform.host._compartments[0].activations.open(dict.fromkeys(range(SHARDS)))
    assert (await platform.http.get(PATH)).json()["desired"]["values"] == {"a": 1}
    assert platform.store.twins["sensor-001"].ready
    await platform.http.delete("/api/devices/sensor-001")
    assert not platform.store.twins["sensor-001"].ready
    assert_problem(await platform.http.patch(f"{PATH}/desired", json={"a": 2}), 409, "conflict")
    await platform.registered()
    assert platform.store.twins["sensor-001"].ready


async def test_how_it_was_and_how_it_came_to_be_so(platform: World) -> None:
    for n in range(3):
        await platform.http.patch(f"{PATH}/desired?by=p{n}", json={"n": n})
    await platform.http.patch(f"{PATH}/reported", json={"n": 2})
    past = (await platform.http.get(PATH, params={"at": NOW_MS})).json()
    assert (past["at_ms"], past["desired"]["version"], past["delta"]) == (NOW_MS, 3, {})
    past = (await platform.http.get(PATH, params={"at": NOW_MS - 1})).json()
    assert (past["desired"]["version"], past["desired"]["values"]) == (0, {})
    path = f"{PATH}/changes"
    changes = (await platform.http.get(path, params={"document": "desired", "limit": 2})).json()
    assert [(c["version"], c["by"], c["patch"]) for c in changes["items"]] == [
        (1, "p0", {"n": 0}),
        (2, "p1", {"n": 1}),
    ]
    rest = await platform.http.get(path, params={"document": "desired", "cursor": changes["next"]})
    assert [c["version"] for c in rest.json()["items"]] == [3]
    for bad in ({"at": "yesterday"}, {"At": "1"}):
        assert_problem(await platform.http.get(PATH, params=bad), 422, "invalid")
    for gone in ("?at=5", "/changes"):
        assert_problem(await platform.http.get(f"/api/devices/nobody/twin{gone}"), 404, "not_found")
