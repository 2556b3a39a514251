"""GraphQL over what was: the history of twins, why there is an alarm, and bulk jobs. All as REST has it."""

from typing import Any

import pytest

from sensorium.storage.bulk_jobs import BulkItem
from tests.unit.serve.test_actions_api import acting as acting
from tests.unit.serve.test_graphql_api import data, refused
from tests.unit.serve.test_rules_api import alarmed
from tests.unit.serve.world import AT_MS, NOW_MS, World

WHY = """query($id: String!) { alarmWhy(alarmId: $id) {
    alarm { alarmId state device { deviceId } } rule { ruleId version spec changedBy }
    decoder { wayIn format codec version } readings { timeMs values late quality }
    windows { metric function windowS value } events { kind timeMs body }
    actions { deliveryId state queue action content } commands { commandId state steps { state } } } }"""


async def test_a_twin_as_it_was_and_how_it_changed(platform: World) -> None:
    await platform.registered("ab")
    path = "/api/devices/ab/twin"
    for n in range(3):
        await platform.http.patch(f"{path}/desired?by=p{n}", json={"n": n})
    await platform.http.patch(f"{path}/reported", json={"n": 1})
    at = """query($at: EpochMs!) { twinAt(deviceId: "ab", atMs: $at) { deviceId atMs delta
            desired { version values fields changedMs } reported { version values } } }"""
    then = (await data(platform, at, at=NOW_MS))["twinAt"]
    rest = (await platform.http.get(path, params={"at": NOW_MS})).json()
    assert then == {
        "deviceId": "ab",
        "atMs": NOW_MS,
        "delta": {"n": 2},
        "desired": {
            **{name: rest["desired"][name] for name in ("version", "values", "fields")},
            "changedMs": NOW_MS,
        },
        "reported": {"version": 1, "values": {"n": 1}},
    }
    before = (await data(platform, at, at=NOW_MS - 1))["twinAt"]
    assert (before["desired"]["version"], before["desired"]["changedMs"], before["delta"]) == (0, None, {})
    changes = """query($after: String, $first: Int! = 2, $document: DocumentName = DESIRED) {
                 twinChanges(deviceId: "ab", document: $document, first: $first, after: $after)
                 { items { document version timeMs by patch } next } }"""
    page = (await data(platform, changes))["twinChanges"]
    listed = (await platform.http.get(f"{path}/changes", params={"document": "desired", "limit": 2})).json()
    assert page["next"] == listed["next"]
    assert page["items"] == [
        {"document": "desired", "version": n + 1, "timeMs": NOW_MS, "by": f"p{n}", "patch": {"n": n}}
        for n in range(2)
    ]
    rest_of = (await data(platform, changes, after=page["next"]))["twinChanges"]
    assert ([change["version"] for change in rest_of["items"]], rest_of["next"]) == ([3], None)
    both = (await data(platform, changes, document=None, first=10))["twinChanges"]["items"]
    assert {change["document"] for change in both} == {"desired", "reported"}
    error = await refused(platform, changes, after="x")
    assert (error["extensions"]["code"], error["extensions"]["status"]) == ("invalid", 422)
    error = await refused(platform, changes, first=1_001)
    assert error["message"].startswith("first:")


async def test_why_there_is_an_alarm(platform: World) -> None:
    rule_id, alarm_id = await alarmed(platform)
    await platform.send({"temperature": 20.0, "timestamp": AT_MS + 50_000})
    await platform.http.post(f"/api/alarms/{alarm_id}/ack", json={"by": "ada"})
    why = (await data(platform, WHY, id=alarm_id))["alarmWhy"]
    rest = (await platform.http.get(f"/api/alarms/{alarm_id}/why")).json()
    assert why["alarm"] == {
        "alarmId": alarm_id,
        "state": rest["alarm"]["state"],
        "device": {"deviceId": "sensor-001"},
    }
    assert why["rule"] == {
        "ruleId": rule_id,
        "version": 1,
        "spec": rest["rule"]["spec"],
        "changedBy": rest["rule"]["changed_by"],
    }
    assert why["decoder"] == {"wayIn": "direct", "format": "telemetry", "codec": None, "version": None}
    assert why["readings"][-1]["values"] == {"temperature": 90.0}
    assert [event["kind"] for event in why["events"]] == ["alarm_raised", "alarm_cleared", "alarm_ack"]
    assert why["events"] == [
        {"kind": event["kind"], "timeMs": event["time_ms"], "body": event["body"]} for event in rest["events"]
    ]
    assert (why["windows"], why["actions"], why["commands"]) == ([], [], [])


async def test_what_was_sent_about_an_alarm(acting: World) -> None:
    _, alarm_id = await alarmed(acting)
    why = (await data(acting, WHY, id=alarm_id))["alarmWhy"]
    (told,) = why["actions"]
    (rest,) = (await acting.http.get(f"/api/alarms/{alarm_id}/why")).json()["actions"]
    assert (told["deliveryId"], told["content"]) == (rest["delivery_id"], rest["content"])
    assert (told["action"], why["rule"]) == (rest["action"], None)


async def test_bulk_jobs_are_listed_with_their_devices(platform: World) -> None:
    ids = [f"m{n}" for n in range(3)]
    for device_id in ids:
        await platform.registered(device_id)
    many = {"select": {"device_type": "temperature"}, "per_second": 50}
    wishes = (
        ("commands", {"command": "blink"}),
        ("commands", {"command": "beep"}),
        ("twins", {"desired": {"a": 1}}),
    )
    sent = []
    for name, wish in wishes:
        made = await platform.http.post(f"/api/{name}/bulk", json={**wish, **many})
        sent.append(made.json()["job_id"])
    listed = """query($kind: BulkKind! = COMMAND, $after: String) {
                bulkJobs(kind: $kind, first: 1, after: $after) {
                    items { jobId kind state createdMs perSecond spec total } next } }"""
    page = (await data(platform, listed))["bulkJobs"]
    rest = (await platform.http.get("/api/commands/bulk?limit=1")).json()
    first = rest["items"][0]
    assert page == {
        "items": [
            {
                "jobId": first["job_id"],
                "kind": "command",
                "state": "RUNNING",
                "createdMs": NOW_MS,
                "perSecond": 50.0,
                "spec": first["spec"],
                "total": 3,
            }
        ],
        "next": rest["next"],
    }
    last = (await data(platform, listed, after=page["next"]))["bulkJobs"]
    assert {page["items"][0]["jobId"], last["items"][0]["jobId"]} == set(sent[:2])
    assert last["next"] is None
    twins = (await data(platform, listed, kind="TWIN"))["bulkJobs"]["items"]
    assert [(job["jobId"], job["kind"]) for job in twins] == [(sent[2], "twin")]
    one = """query($id: String!) { bulkJob(jobId: $id, kind: TWIN) { jobId kind total pending commands }
             bulkJobDevices(jobId: $id, kind: TWIN, first: 2)
             { items { deviceId state reason commandId commandState } next } }"""
    found = await data(platform, one, id=sent[2])
    assert found["bulkJob"] == {"jobId": sent[2], "kind": "twin", "total": 3, "pending": 3, "commands": {}}
    nothing = {"state": "pending", "reason": None, "commandId": None, "commandState": None}
    assert found["bulkJobDevices"]["items"] == [{"deviceId": name, **nothing} for name in ids[:2]]
    await platform.jobs.mark(sent[2], [BulkItem("m0", "refused", "twin_too_large")])
    chosen = """query($id: String!) { bulkJobDevices(jobId: $id, kind: TWIN, state: REFUSED)
                { items { deviceId reason } next } }"""
    assert (await data(platform, chosen, id=sent[2]))["bulkJobDevices"] == {
        "items": [{"deviceId": "m0", "reason": "twin_too_large"}],
        "next": None,
    }
    cancel = "mutation($id: String!) { cancelBulkJob(jobId: $id, kind: TWIN) { state } }"
    assert (await data(platform, cancel, id=sent[2]))["cancelBulkJob"] == {"state": "CANCELLING"}


@pytest.mark.parametrize(
    ("query", "code", "status"),
    [
        ('{ twinAt(deviceId: "nobody", atMs: 5) { delta } }', "not_found", 404),
        ('{ twinAt(deviceId: "a/b", atMs: 5) { delta } }', "not_found", 404),
        ('{ twinAt(deviceId: "ab", atMs: 999999999999999) { delta } }', "invalid", 422),
        ('{ twinChanges(deviceId: "nobody") { next } }', "not_found", 404),
        ('{ twinChanges(deviceId: "ab", startMs: 2, endMs: 1) { next } }', "invalid", 422),
        ('{ alarmWhy(alarmId: "nobody") { alarm { state } } }', "not_found", 404),
        ('{ alarmWhy(alarmId: "") { alarm { state } } }', "not_found", 404),
        ('{ bulkJob(jobId: "") { state } }', "not_found", 404),
        ('{ bulkJobDevices(jobId: "00") { next } }', "not_found", 404),
        ('{ bulkJobDevices(jobId: "XY") { next } }', "invalid", 422),
        ('{ bulkJobDevices(jobId: "00", first: 0) { next } }', "invalid", 422),
        ("{ bulkJobs(first: -1) { next } }", "invalid", 422),
    ],
)
async def test_refusals_are_those_of_rest(platform: World, query: str, code: str, status: int) -> None:
    await platform.registered("ab")
    extensions: dict[str, Any] = (await refused(platform, query))["extensions"]
    assert (extensions["code"], extensions["status"]) == (code, status)
