"""The pages of measures: of a device, and of a fleet."""

import msgspec
import pytest

from sensorium.actors.messages import PresenceSaid
from sensorium.serve import measure_examples as examples
from sensorium.serve.measure_models import VALUES
from sensorium.storage.fleet_figures import Energy
from sensorium.storage.history import Bucket
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, NOW_MS, world

DEVICE = "/api/analytics/devices/sensor-001"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
END_MS = NOW_MS // HOUR_MS * HOUR_MS


def test_the_examples_are_what_is_answered() -> None:
    types = {kind.__name__: kind for kind in VALUES}
    for name, example in (
        ("QualityReport", examples.QUALITY),
        ("UptimeReport", examples.UPTIME),
        ("TrendReport", examples.TRENDS),
        ("FleetReport", examples.FLEET),
        ("SavingsReport", examples.SAVINGS),
    ):
        assert msgspec.to_builtins(msgspec.convert(example, types[name])) == example


@pytest.mark.parametrize("page", ["quality", "uptime", "trends"])
async def test_bad_ranges_and_unknown_devices_are_told(page: str) -> None:
    async with world() as platform:
        assert_problem(await platform.http.get(f"{DEVICE}/{page}"), 404, "not_found")
        await platform.registered()
        for bad in ({"start": "2020-01-01"}, {"start": NOW_MS}, {"start": "soon"}, {"surprise": 1}):
            assert_problem(await platform.http.get(f"{DEVICE}/{page}", params=bad), 422, "invalid")


async def test_quality_is_scored_with_its_parts_and_its_formula() -> None:
    async with world() as platform:
        await platform.registered()
        starts = [END_MS - 7 * DAY_MS + n * HOUR_MS for n in range(126)]
        for name, of in (("count", 60.0), ("min", 19.0), ("max", 21.0), ("mean", 20.0)):
            platform.read.buckets[name] = [Bucket(at, {"t": of, "mode": "x"}) for at in starts]
        found = (await platform.http.get(f"{DEVICE}/quality")).json()
        assert (found["start_ms"], found["end_ms"]) == (END_MS - 7 * DAY_MS, END_MS)
        assert found["quality"]["completeness"] == 0.75
        assert found["quality"]["missing_hours"] == 42
        assert list(found["quality"]["metrics"]) == ["t"]
        assert "completeness" in found["formula"]
        asked = {call[4]: call for call in platform.read.asked}
        assert set(asked) == {"count", "min", "max", "mean"}
        assert asked["mean"][:4] == ("sensor-001", END_MS - 7 * DAY_MS, END_MS, None)


async def test_uptime_goes_by_presence_and_else_by_readings() -> None:
    async with world() as platform:
        await platform.registered()
        platform.read.buckets["count"] = [Bucket(END_MS - n * HOUR_MS, {"t": 1.0}) for n in (4, 3, 1)]
        found = (await platform.http.get(f"{DEVICE}/uptime")).json()["uptime"]
        assert (found["by"], found["uptime"], found["outages"]) == ("readings", 0.75, 1)
        await platform.router.ask(PresenceSaid("sensor-001", True))
        end = {"start": NOW_MS - HOUR_MS, "end": NOW_MS + 2 * HOUR_MS}
        found = (await platform.http.get(f"{DEVICE}/uptime", params=end)).json()["uptime"]
        assert (found["by"], found["uptime"], found["outages"]) == ("presence", 1.0, 0)


async def test_trends_tell_the_days_a_battery_lasts() -> None:
    async with world() as platform:
        await platform.registered()
        platform.read.buckets["mean"] = [
            Bucket(END_MS - (30 - n) * DAY_MS, {"battery": 70.0 - n, "rssi": -90.0, "temperature": 20.0 + n})
            for n in range(30)
        ]
        found = (await platform.http.get(f"{DEVICE}/trends")).json()
        battery, rssi = found["metrics"]
        assert (battery["metric"], battery["limit"], found["interval_s"]) == ("battery", 10.0, 86_400)
        assert battery["line"]["slope_a_day"] == pytest.approx(-1.0)
        assert battery["days_left"]["expected"] == pytest.approx(31.0)
        assert (rssi["metric"], rssi["days_left"]) == ("rssi", None)
        asked = {"metrics": "temperature", "limit": 60, "rising": "true"}
        (one,) = (await platform.http.get(f"{DEVICE}/trends", params=asked)).json()["metrics"][2:]
        assert one["days_left"]["expected"] == pytest.approx(11.0)
        assert platform.read.asked[-1][3] == ["temperature"]


async def test_a_fleet_tells_activation_and_how_alarms_were_answered() -> None:
    async with world() as platform:
        await platform.registered()
        rule = {"name": "hot", "severity": "major"}
        rule["condition"] = {"type": "threshold", "metric": "t", "operator": ">", "value": 50}
        assert (await platform.http.post("/api/analytics/rules", json=rule)).status_code == 201
        row = {"timestamp": AT_MS - HOUR_MS, "t": 99}
        assert (await platform.http.post("/api/devices/sensor-001/data", json=row)).is_success
        found = (await platform.http.get("/api/analytics/fleet")).json()
        assert found["activation"]["rate"] == 1.0
        assert found["alarms"]["acknowledged"] == 0
        assert found["alarms"]["mean_to_acknowledge_s"] is None
        (alarm,) = (await platform.http.get("/api/alarms")).json()["items"]
        acked = await platform.http.post(f"/api/alarms/{alarm['alarm_id']}/ack", json={"by": "ann"})
        assert acked.is_success, acked.text
        found = (await platform.http.get("/api/analytics/fleet")).json()
        assert list(found["by_severity"]) == ["major"]
        assert found["alarms"]["median_to_acknowledge_s"] == (NOW_MS - AT_MS + HOUR_MS) / 1000
        none = (await platform.http.get("/api/analytics/fleet", params={"device_type": "no"})).json()
        assert (none["activation"]["rate"], none["alarms"]["alarms"], none["by_severity"]) == (None, 0, {})


async def test_savings_show_their_formulas_and_reckon_only_what_was_given() -> None:
    page = "/api/analytics/savings"
    async with world() as platform:
        assert (await platform.http.get(page)).json()["energy"] is None
        end_ms = NOW_MS // DAY_MS * DAY_MS
        used, before = (end_ms - 10 * DAY_MS, end_ms), (end_ms - 30 * DAY_MS, end_ms - 10 * DAY_MS)
        platform.figures.used = {
            ("kwh", True, *used): Energy(80.0, 10, 1),
            ("kwh", True, *before): Energy(200.0, 20, 1),
        }
        asked = {"start": used[0], "energy_metric": "kwh", "baseline_start": before[0], "price": 0.5}
        costs = {"cost_unplanned": 5000, "cost_planned": 1000, "hit_rate": 0.5}
        found = (await platform.http.get(page, params=asked | costs)).json()
        assert (found["energy"]["expected"], found["energy"]["saved"], found["energy"]["money"]) == (
            100,
            20,
            10,
        )
        assert "saved = expected - used" in found["energy"]["formula"]
        assert (found["maintenance"]["acted"], found["maintenance"]["money"]) == (0, 0)
        for bad in (
            {"energy_metric": "kwh"},
            {"price": 1},
            {"cost_planned": 1},
            {"hit_rate": 2, "cost_planned": 1, "cost_unplanned": 1},
            {"energy_kind": "heat"},
        ):
            assert_problem(await platform.http.get(page, params=bad), 422, "invalid")
