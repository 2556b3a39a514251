"""`/api/devices/{id}/state`."""

from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, NOW_MS, World


async def test_the_whole_device_is_shown(platform: World) -> None:
    await platform.registered("d", metadata={"floor": 2})
    await platform.send({"t": 21.5}, "d")
    state = (await platform.http.get("/api/devices/d/state", params={"at": NOW_MS})).json()["state"]
    assert state["registration"]["metadata"] == {"floor": 2}
    assert state["metrics"]["t"]["value"] == 21.5
    assert state["windows"][0]["metrics"]["t"]["count"] == 1
    assert (state["alarms"], state["commands"], state["online"]) == ([], [], None)


async def test_what_cannot_be_shown_is_said(platform: World) -> None:
    await platform.registered("d")
    path = "/api/devices/d/state"
    assert_problem(await platform.http.get(path, params={"at": AT_MS - 1}), 404, "no_history")
    assert_problem(await platform.http.get(path, params={"at": NOW_MS + 1}), 422, "invalid")
    assert_problem(await platform.http.get(path), 422, "invalid")
