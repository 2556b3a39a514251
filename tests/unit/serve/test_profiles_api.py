"""What holds for the devices of a type, over HTTP."""

from sensorium.actors.profile import Profile, Profiles, RateLimit, Rates
from sensorium.actors.schema import MetricSpec, MetricType, Outside, Schema
from tests.unit.serve.world import world

SCHEMA = Schema({"t": MetricSpec(kind=MetricType.NUMBER, unit="degC", maximum=85.0)}, Outside.FLAG)
PROFILES = Profiles(Profile(rates=Rates(RateLimit(5.0, 20))), {"thermometer": Profile(schema=SCHEMA)})


async def test_profiles_are_listed_the_default_first() -> None:
    async with world(profiles=PROFILES) as here:
        items = (await here.http.get("/api/profiles")).json()["items"]
    assert [item["device_type"] for item in items] == ["default", "thermometer"]
    assert items[0]["ingest"] == {"every": {"rate_per_s": 5.0, "burst": 20}, "by_protocol": {}}
    assert items[0]["metrics"] == {}
    (metric,) = items[1]["metrics"].values()
    assert (metric["type"], metric["unit"], metric["min"], metric["max"]) == ("number", "degC", None, 85.0)
    assert items[1]["unknown_metrics"] == "flag"


async def test_of_any_type_it_is_told_what_holds() -> None:
    async with world(profiles=PROFILES) as here:
        own = (await here.http.get("/api/profiles/thermometer")).json()
        other = (await here.http.get("/api/profiles/a%20tank")).json()
        put = await here.http.put("/api/profiles/thermometer", json={})
    assert own["configured"] is True
    assert other == {**other, "device_type": "a tank", "configured": False, "lateness_s": 300.0}
    assert put.status_code == 405
