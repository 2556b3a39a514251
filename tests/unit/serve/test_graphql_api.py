"""GraphQL: what is asked, changed and followed, one question for many devices, and what is too much."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import websockets

from sensorium.actors import records
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import DeviceInfo, LatestValue, Quality, WindowInfo
from sensorium.actors.records import Alarm
from sensorium.actors.twin import TwinInfo
from sensorium.actors.twin_documents import Document
from sensorium.serve import feed as feeds
from sensorium.serve.bulk_models import BulkDevice, BulkStatus
from sensorium.serve.feed import LiveFeed
from sensorium.serve.graphql_schema import schema
from sensorium.serve.pages import (
    AlarmEventItem,
    PastTwin,
    ReadingItem,
    RuleVersionItem,
    SavedRule,
    TwinChangeItem,
)
from sensorium.serve.why import AlarmWhy, Decoder, WindowFigure
from sensorium.storage.bulk_jobs import BulkJob
from sensorium.storage.deliveries import StoredDelivery
from tests.unit.serve.feed_log import AT_MS, FeedLog, reading, served
from tests.unit.serve.world import World, world

DEADLINE_S = 5.0
RULE = {
    "name": "hot",
    "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 90},
    "severity": "critical",
}


@pytest.fixture
async def platform() -> AsyncIterator[World]:
    async with world() as there:
        yield there


async def ask(platform: World, query: str, **variables: Any) -> Any:
    response = await platform.http.post("/graphql", json={"query": query, "variables": variables})
    assert response.status_code == 200, response.text
    return response.json()


async def data(platform: World, query: str, **variables: Any) -> Any:
    said = await ask(platform, query, **variables)
    assert "errors" not in said, said
    return said["data"]


async def refused(platform: World, query: str, **variables: Any) -> dict[str, Any]:
    said = await ask(platform, query, **variables)
    error: dict[str, Any] = said["errors"][0]
    return error


async def some(platform: World, count: int) -> list[str]:
    ids = [f"sensor-{n:03}" for n in range(count)]
    await data(
        platform,
        'mutation { createRule(spec: {name: "hot", condition: {type: "threshold", metric: "temperature",'
        ' operator: ">", value: 90}, severity: "critical"}) { ruleId version enabled } }',
    )
    for device_id in ids:
        await platform.registered(device_id)
        await platform.send({"temperature": 95.0, "humidity": 40.0}, device_id)
    return ids


async def test_devices_with_all_that_is_beside_them(platform: World) -> None:
    ids = await some(platform, 5)
    found = await data(
        platform,
        """query($first: Int!) { devices(first: $first) { next items {
            deviceId deviceType status registeredMs metadata connectivity
            latest(metrics: ["temperature"]) { metric value timeMs }
            readings(first: 1) { values late }
            alarms(state: "ACTIVE") { ruleName severity value device { deviceId } }
            commands { commandId }
        } } }""",
        first=4,
    )
    page = found["devices"]
    assert [item["deviceId"] for item in page["items"]] == ids[:4]
    first = page["items"][0]
    assert (first["connectivity"], first["latest"][0]["value"]) == ("online", 95.0)
    assert first["readings"] == [{"values": {"temperature": 95.0, "humidity": 40.0}, "late": False}]
    (alarm,) = first["alarms"]
    assert (alarm["ruleName"], alarm["severity"], alarm["device"]) == (
        "hot",
        "critical",
        {"deviceId": "sensor-000"},
    )
    rest = await data(
        platform,
        "query($after: String) { devices(after: $after) { items { deviceId } } }",
        after=page["next"],
    )
    assert rest["devices"]["items"] == [{"deviceId": "sensor-004"}]
    # One question of each kind, however many devices there are.
    assert sorted(asked[0] for asked in platform.batched.asked) == [
        "alarms",
        "commands",
        "readings",
        "registrations",
    ]


async def test_alarms_commands_rules_and_history(platform: World) -> None:
    await some(platform, 2)
    found = await data(
        platform,
        """{ alarms(severity: CRITICAL, deviceId: "sensor-001") { items { alarmId device { status } } }
             rules { ruleId name spec }
             readings(deviceId: "sensor-001", order: DESC) { items { timeMs values } next }
             aggregate(deviceId: "sensor-001", aggregation: P95, interval: "1h") { startMs values }
             aggregated(deviceType: "temperature", metric: "temperature") { value devices }
             device(deviceId: "nobody") { deviceId } alarm(alarmId: "none") { state } }""",
    )
    (alarm,) = found["alarms"]["items"]
    assert alarm["device"] == {"status": "active"}
    assert found["rules"][0]["spec"]["condition"]["type"] == "threshold"
    assert found["readings"]["items"][0]["values"]["temperature"] == 95.0
    assert found["aggregate"] == [{"startMs": AT_MS, "values": {"temperature": 23.5}}]
    assert found["aggregated"] == [{"value": 23.5, "devices": 2}]
    assert (found["device"], found["alarm"]) == (None, None)
    acted = await data(
        platform,
        'mutation($id: String!) { actOnAlarm(alarmId: $id, action: ACK, by: "ann") { acknowledgedBy } }',
        id=alarm["alarmId"],
    )
    assert acted["actOnAlarm"] == {"acknowledgedBy": "ann"}


async def test_changes_are_those_of_the_rest_api(platform: World) -> None:
    made = await data(
        platform,
        """mutation { registerDevice(deviceId: "a/b", deviceType: "t") { deviceId } }""".replace("a/b", "ab"),
    )
    assert made["registerDevice"] == {"deviceId": "ab"}
    changed = await data(
        platform,
        'mutation { updateDevice(deviceId: "ab", patch: {metadata: {floor: 3}}) { metadata } }',
    )
    assert changed["updateDevice"] == {"metadata": {"floor": 3}}
    sent = await data(
        platform,
        'mutation { sendCommand(deviceId: "ab", command: "reboot", parameters: {hard: true}) '
        "{ commandId state parameters steps { state timeMs } } }",
    )
    command = sent["sendCommand"]
    assert (command["state"], command["parameters"]) == ("QUEUED", {"hard": True})
    assert [step["state"] for step in command["steps"]] == ["QUEUED"]
    listed = await data(
        platform,
        '{ commands(deviceId: "ab") { items { commandId } } device(deviceId: "ab") { commands { state } } }',
    )
    assert listed["commands"]["items"] == [{"commandId": command["commandId"]}]
    assert listed["device"]["commands"] == [{"state": "QUEUED"}]
    cancelled = await data(
        platform,
        'mutation($id: String!) { cancelCommand(deviceId: "ab", commandId: $id) { state } }',
        id=command["commandId"],
    )
    assert cancelled["cancelCommand"] == {"state": "CANCELLED"}
    rule = await data(platform, "mutation($spec: JSON!) { createRule(spec: $spec) { ruleId } }", spec=RULE)
    rule_id = rule["createRule"]["ruleId"]
    replaced = await data(
        platform,
        "mutation($id: String!, $spec: JSON!) { replaceRule(ruleId: $id, spec: $spec) { version severity } }",
        id=rule_id,
        spec={**RULE, "severity": "minor"},
    )
    assert replaced["replaceRule"] == {"version": 2, "severity": "minor"}
    assert (await data(platform, f'mutation {{ deleteRule(ruleId: "{rule_id}") }}'))["deleteRule"] == rule_id
    gone = await data(platform, 'mutation { decommissionDevice(deviceId: "ab") { status } }')
    assert gone["decommissionDevice"] == {"status": "decommissioned"}


@pytest.mark.parametrize(
    ("record", "shown", "elsewhere"),
    [
        (DeviceInfo, "Device", set()),
        (records.Alarm, "Alarm", set()),
        (records.Command, "Command", set()),
        (records.CommandStep, "CommandStep", set()),
        (records.Anomaly, "Anomaly", set()),
        (SavedRule, "Rule", set()),
        (RuleVersionItem, "RuleVersion", set()),
        (BulkStatus, "BulkJob", set()),
        (BulkJob, "ListedBulkJob", set()),
        (BulkDevice, "BulkDevice", set()),
        (AlarmWhy, "AlarmWhy", set()),
        (Decoder, "Decoder", set()),
        (WindowFigure, "WindowFigure", set()),
        (StoredDelivery, "Delivery", set()),
        (WindowInfo, "Window", {"device_id"}),
        (TwinInfo, "Twin", {"device_id"}),
        (PastTwin, "PastTwin", set()),
        (TwinChangeItem, "TwinChange", set()),
        (Document, "TwinDocument", set()),
        (ReadingItem, "Reading", set()),
        (AlarmEventItem, "Event", set()),
        (LatestValue, "MetricValue", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_of_rest_is_shown(record: type, shown: str, elsewhere: set[str]) -> None:
    """`elsewhere`: what the field around it says."""
    kind: Any = schema.get_type_by_name(shown)
    fields = {name.python_name for name in kind.fields}
    assert {field.name for field in msgspec.structs.fields(record)} - elsewhere <= fields


async def test_what_a_device_says_of_itself(platform: World) -> None:
    await some(platform, 3)
    await data(
        platform,
        'mutation { registerDevice(deviceId: "own", deviceType: "t", isolation: "process") { deviceId } }',
    )
    found = await data(
        platform,
        """{ devices { items { deviceId isolation isolationBy process lastSeenMs activeAlarms
             window(metric: "temperature") { count mean }
             other: window(metric: "temperature", lengthS: 17) { count }
             good: readings(quality: GOOD) { quality }
             suspect: readings(quality: SUSPECT) { quality } } } }""",
    )
    own, first, *_ = found["devices"]["items"]
    assert (own["isolation"], own["isolationBy"], own["process"]) == ("process", "device", None)
    assert (own["lastSeenMs"], own["activeAlarms"], own["window"]) == (None, 0, None)
    assert (first["isolation"], first["isolationBy"]) == ("shared", "profile")
    assert (first["lastSeenMs"] >= AT_MS, first["activeAlarms"]) == (True, 1)
    assert (first["window"], first["other"]) == ({"count": 1, "mean": 95.0}, None)
    assert (first["good"], first["suspect"]) == ([{"quality": "good"}], [])


async def test_events_and_the_life_of_an_alarm(platform: World) -> None:
    await some(platform, 1)
    found = await data(
        platform,
        """{ events(deviceId: "sensor-000", kinds: ["registered", "alarm_*"], order: ASC)
             { items { kind timeMs } }
             alarms { items { alarmId } } ruleVersions(ruleId: "none") { version } }""",
    )
    assert [event["kind"] for event in found["events"]["items"]] == ["registered", "alarm_raised"]
    (alarm,) = found["alarms"]["items"]
    life = await data(
        platform, "query($id: String!) { alarmLife(alarmId: $id) { kind body } }", id=alarm["alarmId"]
    )
    assert isinstance(life["alarmLife"], list)
    error = await refused(platform, '{ alarmLife(alarmId: "none") { kind } }')
    assert error["extensions"]["status"] == 404
    error = await refused(platform, '{ events(deviceId: "sensor-000", kinds: ["a b"]) { next } }')
    assert error["extensions"]["status"] == 422


async def test_commands_to_many(platform: World) -> None:
    for n in range(3):
        await platform.registered(f"m{n}", device_type="many")
    send = """mutation($key: String) { sendCommands(command: "blink", deviceType: "many",
              timeoutS: 5, perSecond: 50, idempotencyKey: $key) { jobId kind state total pending spec } }"""
    job = (await data(platform, send, key="k"))["sendCommands"]
    assert (job["kind"], job["state"], job["total"]) == ("command", "RUNNING", 3)
    assert (await data(platform, send, key="k"))["sendCommands"]["jobId"] == job["jobId"]
    asked = "query($id: String!) { bulkJob(jobId: $id) { jobId finished failures } }"
    assert (await data(platform, asked, id=job["jobId"]))["bulkJob"]["jobId"] == job["jobId"]
    cancel = "mutation($id: String!) { cancelBulkJob(jobId: $id) { state } }"
    assert (await data(platform, cancel, id=job["jobId"]))["cancelBulkJob"]["state"].startswith("CANCELL")
    assert (await refused(platform, asked, id="0" * 32))["extensions"]["status"] == 404


async def test_a_command_expires_and_a_rule_says_who_wrote_it(platform: World) -> None:
    await platform.registered("ab", device_type="t")
    at_ms = AT_MS + 600_000
    send = """mutation($at: String!) { sendCommand(deviceId: "ab", command: "x", expiresAt: $at)
              { expiresMs timeoutMs number downlink ready dueMs } }"""
    sent = (await data(platform, send, at=str(at_ms)))["sendCommand"]
    assert (sent["expiresMs"], sent["timeoutMs"], sent["number"] > 0) == (at_ms, 30_000, True)
    assert (sent["downlink"], sent["ready"], sent["dueMs"]) == ("mqtt", True, None)
    await platform.send({"humidity": 40.0}, "ab")
    create = """mutation($spec: JSON!) { createRule(spec: $spec, by: "ada l")
                { ruleId warnings { detail pointer } } }"""
    made = (await data(platform, create, spec=RULE))["createRule"]
    assert [warning["pointer"] for warning in made["warnings"]] == ["#/condition/metric"]


async def test_twins_are_shown_and_desired(platform: World) -> None:
    await platform.registered("ab", device_type="t")
    desire = (
        "mutation($values: JSON!, $version: Int, $replace: Boolean! = false) {"
        ' desire(deviceId: "ab", by: "a b", values: $values, version: $version, replace: $replace)'
        " { desired { version values fields changedMs } delta toldVersion } }"
    )
    made = (await data(platform, desire, values={"a": {"b": 1}, "c": 2}))["desire"]
    assert (made["desired"]["version"], made["delta"], made["toldVersion"]) == (1, {"a": {"b": 1}, "c": 2}, 0)
    assert made["desired"]["fields"]["/c"]["by"] == "a b"
    changed = (await data(platform, desire, values={"c": None}, version=1))["desire"]
    assert changed["desired"]["values"] == {"a": {"b": 1}}
    error = await refused(platform, desire, values={"c": 3}, version=1)
    assert (error["extensions"]["code"], error["extensions"]["status"]) == ("precondition_failed", 412)
    whole = (await data(platform, desire, values={"d": 1}, replace=True))["desire"]
    assert whole["desired"]["values"] == {"d": 1}
    found = await data(
        platform, "{ devices { items { twin { desired { version } reported { values } delta } } } }"
    )
    twin = {"desired": {"version": 3}, "reported": {"values": {}}, "delta": {"d": 1}}
    assert found["devices"]["items"] == [{"twin": twin}]
    error = await refused(platform, 'mutation { desire(deviceId: "no", values: {a: 1}) { delta } }')
    assert error["extensions"]["status"] == 404


async def test_refusals_say_why(platform: World) -> None:
    error = await refused(platform, 'mutation { sendCommand(deviceId: "no", command: "x") { state } }')
    assert error["extensions"]["status"] == 404
    error = await refused(platform, "mutation { createRule(spec: {name: 3}) { ruleId } }")
    assert (error["extensions"]["status"], error["extensions"]["errors"][0]["pointer"]) == (422, "#/name")
    error = await refused(platform, "{ devices(first: 0) { next } }")
    assert error["extensions"] == {"code": "invalid", "status": 422}
    error = await refused(platform, '{ devices(after: "x") { next } }')
    assert error["extensions"]["code"] == "invalid"


async def test_a_fault_of_ours_is_not_told(platform: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(platform.batched, "registrations", broken)
    error = await refused(platform, '{ device(deviceId: "a") { status } }')
    assert error["extensions"] == {"code": "internal", "status": 500}
    assert "secret" not in str(error)

    async def away(*_: Any) -> Any:
        raise LogUnavailable("the database cannot be reached")

    monkeypatch.setattr(platform.batched, "registrations", away)
    error = await refused(platform, '{ device(deviceId: "a") { status } }')
    assert error["extensions"] == {"code": "unavailable", "status": 503}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{ devices(first: 1000) { items { alarms(first: 100) { state } } } }", "would cost"),
        (
            "query($n: Int = 900) { devices(first: $n) { items { readings(first: 90) { late } } } }",
            "would cost",
        ),
        (
            "{ devices { items { ...a } } } fragment a on Device { alarms(first: 300) { state detail } }",
            "would cost",
        ),
        (
            "{ devices(first: 1) { items { alarms(first: 1) "
            + "{ device { alarms(first: 1) " * 5
            + "{ state }"
            + " } }" * 5
            + " } } }",
            "depth",
        ),
        (
            '{ anomalies(deviceId: "a", first: 900) { items { device { alarms(first: 90) { state } } } } }',
            "would cost",
        ),
        (
            "{"
            + " ".join(f'a{n}: bulkJobDevices(jobId: "a", first: 900) {{ next }}' for n in range(25))
            + "}",
            "would cost",
        ),
        ("{" + " ".join(f"a{n}: rules {{ name }}" for n in range(40)) + "}", "aliases"),
        ("{ rules { " + "name " * 3_000 + "} }", "tokens"),
        ("{ nothing }", "nothing"),
        ("{ rules { name ", "Syntax"),
    ],
)
async def test_what_is_too_much_is_refused_before_it_is_read(platform: World, query: str, said: str) -> None:
    error = await refused(platform, query)
    assert said.lower() in error["message"].lower()
    assert platform.batched.asked == []


async def test_the_explorer_needs_no_other_server(platform: World) -> None:
    response = await platform.http.get("/graphql", headers={"Accept": "text/html"})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in response.text.replace("http://www.w3.org", "")
    schema = await data(platform, "{ __schema { types { name fields { name type { name } } } } }")
    names = {kind["name"] for kind in schema["__schema"]["types"]}
    assert {"Device", "Alarm", "Command", "Rule", "Reading", "LiveMessage"} <= names


class NoAlarms:
    async def get(self, alarm_id: str) -> Alarm | None:
        return None


async def test_subscriptions_follow_the_live_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "SHORTEST_PAUSE_S", 0.005)
    log = FeedLog()
    feed = LiveFeed(log.opened, NoAlarms(), lambda: AT_MS + 1_000)
    async with world(feed=feed) as there:
        app = there.http._transport.app  # type: ignore[attr-defined]
        async with served(app) as address:
            async with websockets.connect(
                f"ws://{address}/graphql",
                subprotocols=[websockets.Subprotocol("graphql-transport-ws")],
                compression=None,
            ) as socket:

                async def say(**message: Any) -> None:
                    await socket.send(msgspec.json.encode(message).decode())

                async def hear() -> Any:
                    async with asyncio.timeout(DEADLINE_S):
                        return msgspec.json.decode(await socket.recv())

                await say(type="connection_init")
                assert (await hear())["type"] == "connection_ack"
                which = 'topics: ["readings"], deviceIds: ["one"], qualities: [GOOD]'
                live = f"subscription {{ live({which}) {{ kind items {{ id values }} }} }}"
                await say(id="1", type="subscribe", payload={"query": live})
                async with asyncio.timeout(DEADLINE_S):
                    while not feed.statistics()["subscribers"]:
                        await asyncio.sleep(0.001)
                odd = reading("one", 4)._replace(quality=Quality.SUSPECT)
                log.commit(reading("two"), odd, reading("one", 5, temperature=1.5))
                message = (await hear())["payload"]["data"]["live"]
                assert (message["kind"], message["items"]) == (
                    "changes",
                    [{"id": "1-5", "values": {"temperature": 1.5}}],
                )
                await say(id="1", type="complete")
                async with asyncio.timeout(DEADLINE_S):
                    while feed.statistics()["subscribers"]:
                        await asyncio.sleep(0.001)
                wrong = 'subscription { live(topics: ["weather"]) { kind } }'
                await say(id="2", type="subscribe", payload={"query": wrong})
                error = await hear()
                assert (error["type"], error["id"]) == ("next", "2")
                assert error["payload"]["errors"][0]["extensions"]["status"] == 422
            await feed.close()
