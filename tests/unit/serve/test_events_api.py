"""The pages of a device's events and connections, over a real device."""

from sensorium.actors.messages import PresenceSaid
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, world

EVENTS = "/api/devices/sensor-001/events"
CONNECTIONS = "/api/devices/sensor-001/connections"


async def test_comings_and_goings_are_listed_newest_first() -> None:
    async with world() as platform:
        await platform.registered()
        assert (await platform.http.get(CONNECTIONS)).json() == {"items": [], "next": None}
        for online in (True, True, False, True):
            await platform.router.ask(PresenceSaid("sensor-001", online))
        first = (await platform.http.get(CONNECTIONS, params={"limit": 2})).json()
        assert [item["online"] for item in first["items"]] == [True, False]
        rest = (await platform.http.get(CONNECTIONS, params={"limit": 2, "cursor": first["next"]})).json()
        assert rest == {"items": [{"time_ms": NOW_MS, "online": True}], "next": None}
        assert_problem(await platform.http.get(CONNECTIONS, params={"cursor": "x"}), 422, "invalid")


async def test_all_that_happened_is_listed_also_of_a_device_that_is_gone() -> None:
    async with world() as platform:
        assert_problem(await platform.http.get(EVENTS), 404, "not_found")
        await platform.registered()
        await platform.router.ask(PresenceSaid("sensor-001", True))
        patched = await platform.http.patch(
            "/api/devices/sensor-001",
            json={"metadata": {"floor": 3}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert patched.status_code == 200, patched.text
        assert (await platform.http.delete("/api/devices/sensor-001")).is_success
        told = (await platform.http.get(EVENTS, params={"order": "asc"})).json()
        kinds = [item["kind"] for item in told["items"]]
        assert kinds[:3] == ["registered", "online", "updated"]
        assert kinds[-1] == "decommissioned"
        assert (await platform.http.get(EVENTS)).json()["items"] == told["items"][::-1]
        chosen = (await platform.http.get(EVENTS, params={"kinds": "up*, online"})).json()
        assert [item["kind"] for item in chosen["items"]] == ["updated", "online"]
        none = await platform.http.get(EVENTS, params={"kinds": "alarm_*", "limit": 1})
        assert none.json() == {"items": [], "next": None}


async def test_pages_follow_each_other_in_one_order_only() -> None:
    async with world() as platform:
        await platform.registered()
        for online in (True, False):
            await platform.router.ask(PresenceSaid("sensor-001", online))
        first = await platform.http.get(EVENTS, params={"limit": 2})
        assert first.headers["Link"].endswith('rel="next"')
        rest = (await platform.http.get(EVENTS, params={"limit": 2, "cursor": first.json()["next"]})).json()
        assert [item["kind"] for item in rest["items"]] == ["registered"]
        turned = {"order": "asc", "cursor": first.json()["next"]}
        assert_problem(await platform.http.get(EVENTS, params=turned), 422, "invalid")
        for wrong in (
            {"kinds": ""},
            {"kinds": "a,,b"},
            {"kinds": "x" * 80},
            {"order": "up"},
            {"start": "soon"},
        ):
            assert_problem(await platform.http.get(EVENTS, params=wrong), 422, "invalid")
