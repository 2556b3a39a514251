"""Registry, alarms, dead letters and rules, read back from PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from storage_rows import NOON_MS, alarm, registration

from sensorium.actors.actions import DeriveAction
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import DeadLetter
from sensorium.actors.placement import SHARDS, device_key, shard_of
from sensorium.actors.ports import Filter, Registry
from sensorium.actors.records import AlarmNote, Commit, EventRow, Registration
from sensorium.actors.rules import Always, Operator, RuleSpec, Scope, Severity, Threshold, ZScore
from sensorium.actors.testing import MemoryStore
from sensorium.storage import Alarms, DeadLetters, PgLog, PgMembership, PgRegistry, PgRules
from sensorium.storage.database import Pool, acquired

pytestmark = pytest.mark.database


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


DEVICES = [
    registration("a1", "pump", site="north", tags=["x", "y"]),
    registration("a2", "pump", site="south", rack={"row": 1, "slot": 2}),
    registration("b1", "valve", site="north"),
    Registration("z9", "pump", "decommissioned", None, {"site": "north"}, 1, 2),
    registration("ä", "valve"),
]

FILTERS = [
    Filter(),
    Filter(status=None),
    Filter(device_type="pump"),
    Filter(device_type="pump", status="decommissioned"),
    Filter(metadata={"site": "north"}),
    Filter(metadata={"tags": ["y"]}),
    Filter(metadata={"rack": {"row": 1}}),
    Filter(metadata={"rack": {"row": 1.0}}),
    Filter(metadata={"rack": {"row": True}}),
    Filter(device_ids=["a2", "b1", "nobody"]),
    Filter(device_ids=[]),
]


@pytest.mark.parametrize("which", FILTERS, ids=str)
async def test_memory_and_database_select_the_same(log: PgLog, pool: Pool, which: Filter) -> None:
    await log.commit(Commit(registrations=DEVICES))
    memory = MemoryStore()
    memory.registrations = {r.device_id: r for r in DEVICES}
    database: Registry = PgRegistry(pool)
    for shards in (None, range(SHARDS), [shard_of("a1"), shard_of("b1")], []):
        assert await database.select(which, shards) == await memory.select(which, shards)


async def test_a_device_with_a_dedicated_shard_is_selected_by_that(log: PgLog, pool: Pool) -> None:
    await log.commit(Commit(registrations=DEVICES))
    async with acquired(pool) as connection:
        await connection.execute("UPDATE assignments SET device_id = 'a1' WHERE shard = 1024")
    memory = MemoryStore()
    memory.registrations = {r.device_id: r for r in DEVICES}
    memory.homes = {"a1": 1024}
    database: Registry = PgRegistry(pool)
    a1 = shard_of("a1")
    for shards in ([a1], [1024], [a1, 1024], [1025], range(SHARDS), None):
        assert await database.select(Filter(), shards) == await memory.select(Filter(), shards)
    assert await database.select(Filter(), [a1]) == []
    assert await database.select(Filter(), [1024]) == ["a1"]


async def test_registrations_by_pages(log: PgLog, pool: Pool) -> None:
    await log.commit(Commit(registrations=DEVICES))
    registry = PgRegistry(pool)
    everything = Filter(status=None)
    first = await registry.page(everything, None, 3)
    rest = await registry.page(everything, first.next, 3)
    assert [r.device_id for r in first.items + rest.items] == ["a1", "a2", "b1", "z9", "ä"]
    assert (first.next, rest.next) == ("b1", None)
    assert await registry.get("z9") == DEVICES[3]
    assert await registry.get("nobody") is None
    assert await registry.get("\0") is None
    assert await registry.counts() == {
        ("pump", "active"): 2,
        ("pump", "decommissioned"): 1,
        ("valve", "active"): 2,
    }
    for bad in (0, 10_001):
        with pytest.raises(InvalidMessage):
            await registry.page(everything, None, bad)


async def test_alarms_newest_first_by_pages_and_filters(log: PgLog, pool: Pool) -> None:
    stored = [
        alarm("x1", "d1", start_ms=NOON_MS),
        alarm("x2", "d1", start_ms=NOON_MS + 5, rule_id="r2", severity="critical"),
        alarm("x3", "d2", start_ms=NOON_MS + 5, device_type="valve"),
        alarm("x4", "d2", "CLEARED", start_ms=NOON_MS + 9, end_ms=NOON_MS + 10, end_value=1.0),
    ]
    await log.commit(Commit(alarms=stored))
    alarms = Alarms(pool)

    async def ids(**which: object) -> list[str]:
        page = await alarms.page(**which)  # type: ignore[arg-type]
        return [a.alarm_id for a in page.items]

    assert await ids() == ["x4", "x3", "x2", "x1"]
    assert await ids(state="ACTIVE") == ["x3", "x2", "x1"]
    assert await ids(severity="critical") == ["x2"]
    assert await ids(device_id="d2", state="ACTIVE") == ["x3"]
    assert await ids(device_type="valve") == ["x3"]
    assert await ids(rule_id="r1", start_ms=NOON_MS, end_ms=NOON_MS + 9) == ["x3", "x1"]
    seen, after = [], None
    while True:
        page = await alarms.page(after=after, limit=1)
        seen += [a.alarm_id for a in page.items]
        if (after := page.next) is None:
            break
    assert seen == ["x4", "x3", "x2", "x1"]
    assert await alarms.get("x4") == stored[3]
    assert await alarms.get("none") is None
    assert await alarms.active_devices("r1") == ["d1", "d2"]
    assert await alarms.counts() == {"critical": 1, "major": 2}
    for bad in ("x", [1], [2**70, "x"], {"a": 1}):
        with pytest.raises(InvalidMessage):
            await alarms.page(after=bad)


async def test_what_people_did_to_alarms(log: PgLog, pool: Pool) -> None:
    far_ms = 2**42
    stored = [
        alarm(
            "x1", "d1", start_ms=NOON_MS, acknowledged=True, acknowledged_ms=NOON_MS + 1, acknowledged_by="a"
        ),
        alarm("x2", "d1", start_ms=NOON_MS + 5, shelved_until_ms=far_ms, escalated=2, changed_ms=NOON_MS + 6),
        alarm("x3", "d2", "CLEARED", start_ms=NOON_MS + 9, end_ms=NOON_MS + 10, assignee="eve"),
    ]
    await log.commit(Commit(alarms=stored))
    alarms = Alarms(pool)
    for expected in stored:
        assert await alarms.get(expected.alarm_id) == expected

    async def ids(**which: object) -> list[str]:
        page = await alarms.page(**which)  # type: ignore[arg-type]
        return [a.alarm_id for a in page.items]

    assert await ids(acknowledged=True) == ["x1"]
    assert await ids(acknowledged=False) == ["x3", "x2"]
    assert (await ids(shelved=True), await ids(shelved=False)) == (["x2"], ["x3", "x1"])
    assert await ids(assignee="eve") == ["x3"]

    notes = [
        AlarmNote("d2", "x3", NOON_MS + 20, "ada", acknowledged=True),
        AlarmNote("d2", "x3", NOON_MS + 21, "bob", acknowledged=True),
        AlarmNote("d2", "x3", NOON_MS + 22, "bob", assignee=""),
        AlarmNote("d9", "x1", NOON_MS + 22, "bob", acknowledged=False),
    ]
    await log.commit(Commit(alarm_notes=notes))
    noted = stored[2]
    for note in notes[:3]:
        noted = note.applied(noted)
    assert noted.acknowledged_by == "ada"
    assert await alarms.get("x3") == noted
    assert await alarms.get("x1") == stored[0], "of another device"
    await log.commit(Commit(alarm_notes=[AlarmNote("d2", "x3", NOON_MS, "eve", acknowledged=False)]))
    assert (await alarms.get("x3")) == AlarmNote("d2", "x3", 0, "", acknowledged=False).applied(noted)


async def test_an_alarms_life(log: PgLog, pool: Pool) -> None:
    one = alarm("x1", "d1", start_ms=NOON_MS)
    shard = shard_of("d1")
    bodies = [("alarm_raised", "x1"), ("alarm_comment", "x2"), ("registered", "x1"), ("alarm_ack", "x1")]
    events = [
        EventRow(shard, n + 1, device_key("d1"), NOON_MS + n, kind, b'{"alarm_id": "%s"}' % of.encode())
        for n, (kind, of) in enumerate(bodies)
    ]
    await log.commit(Commit(alarms=[one], events=events))
    life = await Alarms(pool).life(one)
    assert life == [
        (NOON_MS, "alarm_raised", {"alarm_id": "x1"}),
        (NOON_MS + 3, "alarm_ack", {"alarm_id": "x1"}),
    ]


async def test_dead_letters_newest_first(log: PgLog, pool: Pool) -> None:
    letters = [
        DeadLetter(
            f"d{n}", "mqtt", "t", "late" if n % 2 else "bad", "why\0", b"\0\xff", 9, NOON_MS + n, "cbor"
        )
        for n in range(5)
    ]
    await log.commit(Commit(dead_letters=letters))
    stored = DeadLetters(pool)
    first = await stored.page(limit=3)
    rest = await stored.page(after=first.next, limit=3)
    assert [item.device_id for item in first.items + rest.items] == ["d4", "d3", "d2", "d1", "d0"]
    assert rest.next is None
    one = first.items[0]
    assert (one.payload, one.size_bytes, one.received_ms, one.detail, one.content) == (
        b"\0\xff",
        9,
        NOON_MS + 4,
        "why\ufffd",
        "cbor",
    )
    assert [i.device_id for i in (await stored.page(reason="late", device_id="d3")).items] == ["d3"]
    assert await stored.counts() == {"bad": 3, "late": 2}
    assert await stored.prune(0) == 0
    assert await stored.prune(NOON_MS * 3) == 5
    with pytest.raises(InvalidMessage):
        await stored.page(after="x")


HOT = RuleSpec(name="hot", condition=Threshold("temperature", Operator.GT, 90.0), severity=Severity.MAJOR)
ODD = RuleSpec(
    name="odd", condition=ZScore("t", window_s=60.0), scope=Scope(device_type="pump"), enabled=False
)
OFF = RuleSpec(name="off", condition=Threshold("door", Operator.EQ, False))


async def test_rules_are_kept_and_counted(pool: Pool) -> None:
    rules = PgRules(pool)
    hot = await rules.create(HOT)
    assert (hot.version, hot.spec, hot.created_ms) == (1, HOT, hot.updated_ms)
    odd, off = await rules.create(ODD), await rules.create(OFF)
    assert sorted(r.rule_id for r in await rules.load()) == sorted([hot.rule_id, odd.rule_id, off.rule_id])
    assert await rules.get(off.rule_id) == off
    changed = await rules.replace(hot.rule_id, ODD)
    assert changed is not None
    assert (changed.version, changed.spec, changed.created_ms) == (2, ODD, hot.created_ms)
    assert await rules.replace("none", HOT) is None
    assert (await rules.delete(hot.rule_id), await rules.delete(hot.rule_id)) == (True, False)
    assert await rules.get(hot.rule_id) is None


async def test_no_metric_is_derived_from_itself_through_stored_rules(pool: Pool) -> None:
    rules = PgRules(pool)

    def derive(metric: str, formula: str) -> RuleSpec:
        actions = (DeriveAction(metric=metric, formula=formula),)
        return RuleSpec(name=metric, condition=Always(), actions=actions)

    x = await rules.create(derive("x", "y + 1"))
    tried = await asyncio.gather(
        rules.create(derive("y", "z + 1")), rules.create(derive("z", "x + 1")), return_exceptions=True
    )
    (refused,) = (found for found in tried if isinstance(found, InvalidMessage))
    assert "recursive through other rules" in str(refused)
    assert await rules.replace(x.rule_id, derive("x", "a + 1")) is not None
    await rules.create(derive("z", "x + 1") if "z from" in str(refused) else derive("y", "z + 1"))
    with pytest.raises(InvalidMessage):
        await rules.replace(x.rule_id, derive("x", "y + 1"))


async def test_changes_of_rules_are_told_also_after_a_break(dsn: str, pool: Pool) -> None:
    rules = PgRules(pool, dsn)
    changes = rules.changes()

    async def told() -> None:
        await asyncio.wait_for(anext(changes), 10)

    await told()
    await rules.create(HOT)
    await told()
    async with acquired(pool) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%-rules'"
        )
    await told()
    [rule] = await rules.load()
    await rules.delete(rule.rule_id)
    await told()
    await changes.aclose()  # type: ignore[attr-defined]
