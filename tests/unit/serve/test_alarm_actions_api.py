"""What people do about alarms, over HTTP to the device and back."""

import pytest

from sensorium.serve import examples
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.test_rules_api import alarmed
from tests.unit.serve.world import AT_MS, NOW_MS, World


async def test_every_action_and_the_life_it_leaves(platform: World) -> None:
    _, alarm_id = await alarmed(platform)
    url = f"/api/alarms/{alarm_id}"
    expected = {
        "assign": {"assignee": "grace"},
        "comment": {},
        "shelve": {"shelved_until_ms": NOW_MS + 3_600_000},
        "unshelve": {"shelved_until_ms": None},
        "ack": {"acknowledged": True, "acknowledged_by": "ada", "acknowledged_ms": NOW_MS},
        "unack": {"acknowledged": False, "acknowledged_by": None, "acknowledged_ms": None},
    }
    for action, changes in expected.items():
        before = (await platform.http.get(url)).json()
        answered = await platform.http.post(f"{url}/{action}", json=examples.ALARM_ACTIONS[action])
        assert answered.status_code == 200, answered.text
        assert answered.json() == (await platform.http.get(url)).json() == {**before, **changes}
    told = (await platform.http.get(f"{url}/life")).json()["items"]
    assert [event["kind"] for event in told] == ["alarm_raised", *(f"alarm_{name}" for name in expected)]
    comment = next(event["body"] for event in told if event["kind"] == "alarm_comment")
    assert comment == {"alarm_id": alarm_id, "by": "grace", "text": "Fan replaced."}


async def test_an_ended_alarm_may_be_acknowledged_and_assigned_but_not_shelved(platform: World) -> None:
    _, alarm_id = await alarmed(platform)
    await platform.send({"temperature": 20.0, "timestamp": AT_MS + 50_000})
    url = f"/api/alarms/{alarm_id}"
    assert (await platform.http.get(url)).json()["state"] == "CLEARED"
    acked = (await platform.http.post(f"{url}/ack", json={"by": "ada"})).json()
    assert (acked["state"], acked["acknowledged"], acked["acknowledged_by"]) == ("CLEARED", True, "ada")
    again = (await platform.http.post(f"{url}/ack", json={"by": "bob"})).json()
    assert again["acknowledged_by"] == "ada", "the first who took note did"
    assert (await platform.http.post(f"{url}/assign", json={"assignee": "eve"})).json()["assignee"] == "eve"
    assert (await platform.http.post(f"{url}/assign", json={"assignee": ""})).json()["assignee"] is None
    assert_problem(await platform.http.post(f"{url}/shelve", json={"for_s": 60}), 409, "conflict")


async def test_lists_by_what_people_did(platform: World) -> None:
    _, alarm_id = await alarmed(platform)
    url = f"/api/alarms/{alarm_id}"

    async def listed(query: str) -> bool:
        items = (await platform.http.get(f"/api/alarms?{query}")).json()["items"]
        return bool(items)

    assert (await listed("acknowledged=false"), await listed("acknowledged=true")) == (True, False)
    assert (await listed("shelved=false"), await listed("assignee=grace")) == (True, False)
    for action, body in examples.ALARM_ACTIONS.items():
        if action in ("ack", "assign", "shelve"):
            await platform.http.post(f"{url}/{action}", json=body)
    assert (await listed("acknowledged=false"), await listed("acknowledged=true")) == (False, True)
    assert (await listed("shelved=false"), await listed("assignee=grace")) == (False, True)


@pytest.mark.parametrize(
    ("action", "body", "pointer"),
    [
        ("ack", {"who": "ada"}, "#/who"),
        ("ack", {"by": "a\0"}, "#/by"),
        ("assign", {}, "#/assignee"),
        ("comment", {"text": ""}, "#/text"),
        ("shelve", {"for_s": 0}, "#/for_s"),
        ("shelve", {"for_s": "long"}, "#/for_s"),
    ],
)
async def test_a_bad_body_says_where(
    platform: World, action: str, body: dict[str, object], pointer: str
) -> None:
    _, alarm_id = await alarmed(platform)
    problem = assert_problem(
        await platform.http.post(f"/api/alarms/{alarm_id}/{action}", json=body), 422, "invalid"
    )
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_an_alarm_that_is_not_there(platform: World) -> None:
    assert_problem(await platform.http.post("/api/alarms/none/ack", json={}), 404, "not_found")
    assert_problem(await platform.http.get("/api/alarms/none/life"), 404, "not_found")
