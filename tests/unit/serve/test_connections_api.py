"""The page of a device's connections, over a real device."""

from sensorium.actors.messages import PresenceSaid
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import NOW_MS, world

PATH = "/api/devices/sensor-001/connections"


async def test_comings_and_goings_are_listed_newest_first() -> None:
    async with world() as platform:
        await platform.registered()
        assert (await platform.http.get(PATH)).json() == {"items": [], "next": None}
        for online in (True, True, False, True):
            await platform.router.ask(PresenceSaid("sensor-001", online))
        first = (await platform.http.get(PATH, params={"limit": 2})).json()
        assert [item["online"] for item in first["items"]] == [True, False]
        rest = (await platform.http.get(PATH, params={"limit": 2, "cursor": first["next"]})).json()
        assert rest == {"items": [{"time_ms": NOW_MS, "online": True}], "next": None}
        assert_problem(await platform.http.get(PATH, params={"cursor": "x"}), 422, "invalid")
