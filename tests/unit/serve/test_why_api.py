"""Why there is an alarm: what led to it and what followed, over real devices."""

from typing import Any

import msgspec

from sensorium.actors.conditions.recursion import metrics_looked_at
from sensorium.actors.rules import RuleSpec
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.test_rules_api import HOT, RULES, alarmed
from tests.unit.serve.world import AT_MS, World


async def test_an_alarm_says_what_led_to_it_and_what_followed(platform: World) -> None:
    rule_id, alarm_id = await alarmed(platform)
    await platform.send({"temperature": 20.0, "humidity": 3.0, "timestamp": AT_MS + 50_000})
    await platform.http.post(f"/api/alarms/{alarm_id}/ack", json={"by": "ada"})
    why = (await platform.http.get(f"/api/alarms/{alarm_id}/why")).json()
    assert why["alarm"] == (await platform.http.get(f"/api/alarms/{alarm_id}")).json()
    assert (why["rule"]["rule_id"], why["rule"]["version"]) == (rule_id, 1)
    assert why["rule"]["spec"]["condition"]["value"] == HOT["condition"]["value"]
    raised = {
        "time_ms": why["alarm"]["start_ms"],
        "values": {"temperature": 90.0},
        "late": False,
        "quality": "good",
    }
    assert why["readings"][-1] == raised
    assert why["decoder"] == {"way_in": "direct", "format": "telemetry", "codec": None, "version": None}
    assert [e["kind"] for e in why["events"]] == ["alarm_raised", "alarm_cleared", "alarm_ack"]
    assert (why["windows"], why["actions"], why["commands"]) == ([], [], [])


async def test_windows_are_looked_at_as_they_were(platform: World) -> None:
    window = {"type": "window", "metric": "temperature", "function": "mean", "operator": ">", "value": 60}
    deviant = {"type": "z_score", "metric": "temperature", "window_s": 600}
    condition = {"type": "any", "conditions": [{**window, "window_s": 900}, deviant, window]}
    rule = {**HOT, "condition": condition}
    await platform.http.post(RULES, json=rule)
    await platform.registered()
    number = 0
    while not platform.store.alarms:
        number += 1
        await platform.send({"temperature": 90.0, "timestamp": AT_MS + number})
        assert number < 500
    [alarm] = platform.store.alarms.values()
    why = (await platform.http.get(f"/api/alarms/{alarm.alarm_id}/why")).json()
    shown = [(f["function"], f["window_s"], f["value"]) for f in why["windows"]]
    assert shown == [
        ("mean", 900.0, 23.5),
        ("mean", 600.0, 23.5),
        ("stddev", 600.0, 23.5),
        ("count", 600.0, 23.5),
        ("mean", None, None),
    ]
    ends = {(asked[1], asked[2]) for asked in platform.read.asked}
    start = alarm.start_ms
    assert ends == {(start + 1 - 900_000, start + 1), (start - 600_000, start)}


async def test_no_alarm_has_no_why(platform: World) -> None:
    assert_problem(await platform.http.get("/api/alarms/nobody/why"), 404, "not_found")


def test_every_metric_of_a_rule_is_found() -> None:
    condition: dict[str, Any] = {
        "type": "all",
        "conditions": [
            {"type": "threshold", "metric": "inlet", "operator": ">", "value": {"metric": "outlet"}},
            {"type": "geofence", "circle": {"latitude": 1, "longitude": 2, "radius_m": 3}},
        ],
    }
    spec = msgspec.convert({"name": "x", "condition": condition}, RuleSpec)
    assert metrics_looked_at(spec) == ["inlet", "outlet", "latitude", "longitude"]
