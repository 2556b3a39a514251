"""Rules and alarms over HTTP, to the device and back."""

import asyncio
from typing import Any

import msgspec
import pytest

from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.rules import Condition, RuleSpec, Schedule
from sensorium.actors.schema import MetricSpec, Schema
from sensorium.serve import examples
from sensorium.serve import rules as rules_module
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World, world

RULES = "/api/analytics/rules"
HOT = examples.RULE_SPECS["threshold"]


async def alarmed(platform: World) -> tuple[str, str]:
    """A rule and the alarm that it has raised at a device."""
    rule_id: str = (await platform.http.post(RULES, json=HOT)).json()["rule_id"]
    await platform.registered()
    number = 0
    async with asyncio.timeout(10):
        while not platform.store.alarms:
            number += 1
            await platform.send({"temperature": 90.0, "timestamp": AT_MS + number})
    return rule_id, next(iter(platform.store.alarms))


async def until_cleared(platform: World, alarm_id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            alarm: dict[str, Any] = (await platform.http.get(f"/api/alarms/{alarm_id}")).json()
            if alarm["state"] == "CLEARED":
                return alarm
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "REFRESH_ROUNDS_S", (0.0, 0.05, 0.2))


async def test_a_rule_is_created_read_replaced_listed_and_deleted(platform: World) -> None:
    created = await platform.http.post(RULES, json=HOT)
    assert created.status_code == 201
    url = created.headers["Location"]
    shown = created.json()
    assert [warning["pointer"] for warning in shown.pop("warnings")] == ["#/scope"]
    assert (await platform.http.get(url)).json() == shown
    assert created.json()["version"] == 1
    assert created.json()["spec"]["scope"] == {
        "device_id": None,
        "device_type": "temperature",
        "metadata": {},
        "group": None,
    }
    replaced = await platform.http.put(url, json={**HOT, "severity": "minor"})
    assert (replaced.json()["version"], replaced.json()["spec"]["severity"]) == (2, "minor")
    listed = (await platform.http.get(RULES)).json()
    shown = replaced.json()
    del shown["warnings"]
    assert listed == {"items": [shown]}
    assert (await platform.http.delete(url)).status_code == 204
    for method, body in (("GET", None), ("PUT", HOT), ("DELETE", None)):
        assert_problem(await platform.http.request(method, url, json=body), 404, "not_found")


async def test_every_condition_has_an_example_that_is_taken(platform: World) -> None:
    shown = set()
    for example in examples.RULE_SPECS.values():
        created = await platform.http.post(RULES, json=example)
        assert created.status_code == 201, created.text
        assert msgspec.convert(created.json()["spec"], RuleSpec) == msgspec.convert(example, RuleSpec)
        shown.add(type(msgspec.convert(example, RuleSpec).condition))
    # Hours are a part of another condition.
    assert shown == set(Condition.__args__) - {Schedule}


async def test_a_rule_may_be_written_as_an_expression(platform: World) -> None:
    for example in examples.WRITTEN_RULES.values():
        created = await platform.http.post(RULES, json=example)
        assert created.status_code == 201, created.text
        spec = created.json()["spec"]
        assert (spec["name"], spec["expression"]) == (example["name"], example["expression"])
        again = await platform.http.put(created.headers["Location"], json=spec)
        assert (again.status_code, again.json()["spec"]) == (200, spec), "what was read can be written"
        changed = {**spec, "for_s": 7}
        problem = assert_problem(
            await platform.http.put(created.headers["Location"], json=changed), 422, "invalid"
        )
        assert [error["pointer"] for error in problem["errors"]] == ["#/expression"]


async def test_a_wrong_expression_points_at_the_column(platform: World) -> None:
    body = {"name": "x", "expression": "temperature >> 30"}
    problem = assert_problem(await platform.http.post(RULES, json=body), 422, "invalid")
    (error,) = problem["errors"]
    assert error["pointer"] == "#/expression"
    assert error["detail"].startswith("column 14: ")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": ""}, "#/name"),
        ({"name": "a\x00"}, "#/name"),
        ({"severity": "awful"}, "#/severity"),
        ({"colour": 1}, "#"),
        ({"description": "x" * 2001}, "#/description"),
        ({"scope": {"site": "a"}}, "#/scope"),
        ({"condition": {"type": "sometimes", "metric": "t"}}, "#/condition/type"),
        ({"condition": {**HOT["condition"], "operator": "~"}}, "#/condition/operator"),
        ({"condition": {**HOT["condition"], "value": "hot"}}, "#/condition/operator"),
        ({"condition": {"type": "range", "metric": "t", "low": 2, "high": 1}}, "#/condition/low"),
        (
            {"condition": {"type": "rate_of_change", "metric": "t", "value": 1, "direction": "x"}},
            "#/condition/direction",
        ),
        ({"condition": {"type": "z_score", "metric": "t", "value": -1}}, "#/condition/value"),
        (
            {"condition": {"type": "threshold", "metric": "t", "operator": "<", "value": {}}},
            "#/condition/value",
        ),
        ({"levels": [{"severity": "critical", "condition": HOT["condition"]}]}, "#/levels/0/severity"),
        (
            {"levels": [{"severity": "minor", "condition": {**HOT["condition"], "metric": "a\0"}}]},
            "#/levels/0/condition/metric",
        ),
    ],
)
async def test_a_bad_rule_says_where(platform: World, change: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(await platform.http.post(RULES, json={**HOT, **change}), 422, "invalid")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert not (await platform.http.get(RULES)).json()["items"]


async def test_an_alarm_is_listed_by_what_it_is(platform: World) -> None:
    rule_id, alarm_id = await alarmed(platform)
    alarm = (await platform.http.get(f"/api/alarms/{alarm_id}")).json()
    assert (alarm["state"], alarm["severity"], alarm["value"]) == ("ACTIVE", "critical", 90.0)
    for query, found in {
        "": True,
        "state=ACTIVE": True,
        "state=CLEARED": False,
        "severity=critical": True,
        "severity=info": False,
        "device_id=sensor-001": True,
        "device_type=pump": False,
        f"rule_id={rule_id}": True,
        f"start={AT_MS}&end={AT_MS + 60_000}": True,
        f"end={AT_MS}": False,
    }.items():
        listed = (await platform.http.get(f"/api/alarms?{query}")).json()["items"]
        assert listed == ([alarm] if found else []), query
    assert (await platform.http.get("/api/devices/sensor-001")).json()["active_alarms"] == 1
    assert_problem(await platform.http.get("/api/alarms/none"), 404, "not_found")
    assert_problem(await platform.http.get("/api/alarms?state=SLEEPING"), 422, "invalid")


async def test_a_deleted_rules_alarm_is_cleared_without_a_further_reading(platform: World) -> None:
    rule_id, alarm_id = await alarmed(platform)
    await platform.http.delete(f"{RULES}/{rule_id}")
    assert (await until_cleared(platform, alarm_id))["end_reason"] == "rule_removed"


async def test_a_rule_that_no_longer_watches_the_device_clears_its_alarm(platform: World) -> None:
    rule_id, alarm_id = await alarmed(platform)
    await platform.http.put(f"{RULES}/{rule_id}", json={**HOT, "scope": {"device_type": "pump"}})
    assert (await until_cleared(platform, alarm_id))["end_reason"] == "rule_removed"


async def test_dead_letters_are_listed_with_what_was_sent(platform: World) -> None:
    await platform.registered()
    url = "/api/devices/sensor-001/data"
    await platform.http.post(url, content=b"{")
    await platform.http.post(url, content=b"\xff")
    newest, oldest = (await platform.http.get("/api/dead-letters")).json()["items"]
    assert (oldest["payload"], oldest["payload_encoding"], oldest["reason"]) == (
        "{",
        "utf-8",
        "malformed_json",
    )
    assert (newest["payload"], newest["payload_encoding"]) == ("/w==", "base64")
    page = await platform.http.get("/api/dead-letters?limit=1&device_id=sensor-001")
    rest = await platform.http.get(page.links["next"]["url"])
    assert rest.json() == {"items": [oldest], "next": None}
    assert not (await platform.http.get("/api/dead-letters?reason=too_large")).json()["items"]


async def test_a_derived_metric_is_stored_with_the_reading(platform: World) -> None:
    rule = {
        "name": "double",
        "condition": {"type": "always"},
        "actions": [{"type": "derive", "metric": "double", "formula": "temperature * 2"}],
    }
    assert (await platform.http.post(RULES, json=rule)).status_code == 201
    await platform.registered()
    number = 0
    async with asyncio.timeout(10):
        while True:
            number += 1
            await platform.send({"temperature": 4.0, "timestamp": AT_MS + number})
            latest = (await platform.http.get("/api/devices/sensor-001/data/latest")).json()
            if "double" in latest["metrics"]:
                break
    assert latest["metrics"]["double"]["value"] == 8.0


async def test_a_metric_derived_from_itself_is_refused_with_the_way(platform: World) -> None:
    def derive(metric: str, formula: str) -> dict[str, Any]:
        actions = [{"type": "derive", "metric": metric, "formula": formula}]
        return {"name": metric, "condition": {"type": "always"}, "actions": actions}

    itself = assert_problem(await platform.http.post(RULES, json=derive("x", "x + 1")), 422, "invalid")
    assert "recursive: x from x" in itself["detail"]
    first = await platform.http.post(RULES, json=derive("x", "y + 1"))
    answer = await platform.http.post(RULES, json=derive("y", "x + 1"))
    problem = assert_problem(answer, 422, "invalid")
    assert "recursive through other rules: y from x from y" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "#/actions/0/formula"
    assert (await platform.http.post(RULES, json=derive("y", "z + 1"))).status_code == 201
    other = await platform.http.put(first.headers["Location"], json=derive("x", "x + y"))
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("rule", "pointer"),
    [
        ({"condition": {"type": "regex", "metric": "mode", "pattern": "(a+)+$"}}, "#/condition"),
        (
            {"condition": {"type": "threshold", "metric": "mode", "operator": "~", "value": "a"}},
            "#/condition/operator",
        ),
        (
            {"condition": {"type": "change", "metric": "mode", "pattern": "(a+)+$"}},
            "#/condition",
        ),
        ({"expression": "mode ~ '(a+)+$'"}, "#/expression"),
        ({"expression": "matches(mode, '(a+)+$')"}, "#/expression"),
        ({"expression": "temperature / 0 > 3"}, "#/expression"),
    ],
)
async def test_regular_expressions_and_what_divides_by_zero_are_refused(
    platform: World, rule: dict[str, Any], pointer: str
) -> None:
    problem = assert_problem(await platform.http.post(RULES, json={"name": "r", **rule}), 422, "invalid")
    assert problem["errors"][0]["pointer"].startswith(pointer)


async def warnings(platform: World, **rule: Any) -> list[tuple[str, str]]:
    answer = await platform.http.post(RULES, json={"name": "r", **rule})
    assert answer.status_code == 201, answer.text
    return [(warning["pointer"], warning["detail"]) for warning in answer.json()["warnings"]]


async def test_what_no_device_has_sent_is_a_warning(platform: World) -> None:
    scope = {"device_type": "temperature"}
    await platform.registered(metadata={"max_temperature": 80, "group": "hall 3"})
    assert await warnings(platform, expression="temprature > 3", scope=scope) == []
    await platform.send({"temperature": 20.0, "timestamp": AT_MS})
    assert await warnings(platform, expression="temperature > metadata.max_temperature", scope=scope) == []
    (first, second) = await warnings(
        platform, expression="temprature > 0.9 * metadata.max_temprature", scope=scope
    )
    assert first == (
        "#/expression",
        "no device of the scope (device_type temperature) has sent a metric temprature;"
        " was temperature meant?",
    )
    assert second[0] == "#/expression"
    assert second[1].endswith("has max_temprature in its metadata; was max_temperature meant?")
    ((pointer, _),) = await warnings(
        platform,
        condition={
            "type": "all",
            "conditions": [
                {"type": "threshold", "metric": "temperature", "operator": ">", "value": 3},
                {"type": "formula", "formula": "temperature / flow", "operator": ">", "value": 3},
            ],
        },
    )
    assert pointer == "#/condition/conditions/1/formula"
    derive = {"type": "derive", "metric": "flow", "formula": "temperature * 2"}
    assert await warnings(platform, condition={"type": "always"}, actions=[derive]) == []
    assert await warnings(platform, expression="flow > 3") == []
    again = {"type": "derive", "metric": "temperature", "formula": "flow2 * 2"}
    pointers = [p for p, _ in await warnings(platform, condition={"type": "always"}, actions=[again])]
    assert pointers == ["#/actions/0/formula", "#/actions/0/metric"]


async def test_where_not_all_devices_were_asked_the_warning_says_so(
    platform: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.serve.rule_warnings.SAMPLE_DEVICES", 1)
    for device_id in ("sensor-001", "sensor-002"):
        await platform.registered(device_id)
        await platform.send({"temperature": 20.0, "timestamp": AT_MS}, device_id)
    ((_, detail),) = await warnings(platform, expression="presure > 3")
    assert detail == "none of the first 1 devices of the scope (all devices) has sent a metric presure"


async def test_a_scope_may_be_a_group(platform: World) -> None:
    hot = {"expression": "temperature > 80"}
    assert (await warnings(platform, **hot, scope={"group": "hall 3"}))[0][0] == "#/scope"
    await platform.registered(metadata={"group": "hall 3"})
    await platform.registered("sensor-002", metadata={"groups": ["hall 3", "night"]})
    await platform.registered("sensor-003", metadata={"group": "hall 4"})
    assert await warnings(platform, **hot, scope={"group": "hall 3"}) == []
    number = 0
    async with asyncio.timeout(10):
        while len(platform.store.alarms) < 3:
            number += 1
            for device_id in ("sensor-001", "sensor-002", "sensor-003"):
                await platform.send({"temperature": 90.0, "timestamp": AT_MS + number}, device_id)
    watched = {alarm.device_id for alarm in platform.store.alarms.values()}
    assert watched == {"sensor-001", "sensor-002"}


async def test_what_a_profiles_schema_knows_is_no_mistake() -> None:
    schema = Schema({"pressure": MetricSpec(), "axis_*": MetricSpec()})
    async with world(profiles=Profiles(by_type={"temperature": Profile(schema=schema)})) as here:
        await here.registered()
        assert await warnings(here, expression="pressure > 3 and axis_7 > 1") == []
        ((pointer, detail),) = await warnings(here, expression="presure > 3")
        assert pointer == "#/expression"
        assert detail.endswith("presure, and the profile knows none; was pressure meant?")
