"""A fork's devices: like the real ones, under a clock of their own, and leading nowhere."""

from inspect import signature
from typing import Any

import pytest

from sensorium.actors import sandbox as sandbox_module
from sensorium.actors.cloning import Clones
from sensorium.actors.errors import DeviceConflict, DeviceNotFound, InvalidMessage
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Decommission, GetLatest, GetWindow, Patch, Reading, Register
from sensorium.actors.placement import SHARDS
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.recovery import as_stored
from sensorium.actors.rules import NoData, Operator, RuleSpec, Scope, Threshold, ZScore
from sensorium.actors.sandbox import Ingested, Sandbox
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of, make_rule, observed

HOT = make_rule(Threshold("a", Operator.GT, 5.0), "hot")
HELD = make_rule(Threshold("a", Operator.GT, 5.0), "held", for_s=60)
SILENT = make_rule(NoData(300), "silent")
ODD = make_rule(ZScore("a", 2.0, min_count=5), "odd")


def forked(driver: Driver, *rules: Any) -> Sandbox:
    sandbox = Sandbox("what-if", driver.now_ms)
    sandbox.load(Clones([as_stored(driver.device)], Profiles(), list(rules)))
    return sandbox


def said(sandbox: Sandbox) -> list[tuple[str, str, int]]:
    return [(a.rule_id, a.state, a.start_ms - T0_MS) for a in sandbox.alarms()]


def test_a_copy_goes_on_as_the_real_device_does() -> None:
    real = Driver(around_of(HOT, ODD))
    for n in range(40):
        real.read({"a": float(n % 3)}, n * 1000)
    sandbox = forked(real, HOT, ODD)
    rows = [(DEVICE_ID, T0_MS + 40_000 + n * 1000, {"a": float(n % 4 * 3)}) for n in range(20)]
    for _, time_ms, metrics in rows:
        real.read(metrics, time_ms - T0_MS)
    assert sandbox.ingest(rows) == Ingested(accepted=20)
    assert sandbox.answer(GetLatest(DEVICE_ID)) == real.device.newest_values()
    assert sandbox.answer(GetWindow(DEVICE_ID, "a")) == real.device.window("a")
    assert sandbox.alarms() == sorted(
        {alarm.alarm_id: alarm for alarm in real.log.alarms}.values(), key=lambda a: (a.start_ms, a.alarm_id)
    )
    assert any(alarm.rule_id == "odd" for alarm in sandbox.alarms())


def test_the_real_device_never_hears_of_it() -> None:
    real = Driver(around_of(HOT))
    real.read({"a": 1.0}, 0)
    before = observed(real.device)
    sandbox = forked(real, HOT)
    sandbox.ingest([(DEVICE_ID, T0_MS + 1000, {"a": 9.0})])
    sandbox.answer(Patch(DEVICE_ID, metadata={"site": "b"}))
    sandbox.answer(Decommission(DEVICE_ID))
    assert observed(real.device) == before


def test_timers_fire_by_event_time_and_by_hand() -> None:
    sandbox = forked(Driver(around_of(HELD, SILENT)), HELD, SILENT)
    sandbox.ingest([(DEVICE_ID, T0_MS + 1000, {"a": 9.0})])
    assert sandbox.advance(T0_MS + 60_999) == T0_MS + 60_999
    assert said(sandbox) == []
    sandbox.advance(T0_MS + 61_000)
    assert said(sandbox) == [("held", "ACTIVE", 61_000)]
    sandbox.advance(T0_MS + 302_000)
    assert said(sandbox)[1:] == [("silent", "ACTIVE", 301_000)]
    sandbox.ingest([(DEVICE_ID, T0_MS + 400_000, {"a": 1.0})])
    assert [state for _, state, _ in said(sandbox)] == ["CLEARED", "CLEARED"]
    assert sandbox.advance(0) == T0_MS + 400_000, "the clock never goes back"


def test_one_devices_reading_moves_the_clock_of_all() -> None:
    sandbox = forked(Driver(around_of(SILENT)), SILENT)
    sandbox.answer(Register("other", TYPE))
    sandbox.ingest([("other", T0_MS + 500_000, {"a": 1.0})])
    assert [a.device_id for a in sandbox.alarms() if a.state == "ACTIVE"] == [DEVICE_ID]


def test_rows_are_told_apart() -> None:
    real = Driver(around_of())
    real.read({"a": 1.0}, 1_000_000)
    sandbox = forked(real)
    row = (DEVICE_ID, T0_MS + 1_001_000, {"a": 2})
    done = sandbox.ingest(
        [row, row, (DEVICE_ID, T0_MS, {"a": 3.0}), ("nobody", T0_MS, {"a": 1.0}), (*row[:2], {"a": "text"})]
    )
    assert done == Ingested(2, late=1, duplicates=1, refused={"unregistered": 1, "wrong_type": 1})
    assert done + done == Ingested(4, 2, 2, {"unregistered": 2, "wrong_type": 2})


def test_rules_change_here_only_and_at_once() -> None:
    real = Driver(around_of(HOT))
    real.read({"a": 9.0}, 0)
    sandbox = forked(real, HOT)
    assert said(sandbox) == [("hot", "ACTIVE", 0)], "what stood when it was forked"
    draft = sandbox.create_rule(RuleSpec(name="draft", condition=NoData(10), scope=Scope(device_type=TYPE)))
    sandbox.advance(T0_MS + 10_000)
    assert said(sandbox)[1:] == [(draft.rule_id, "ACTIVE", 10_000)]
    looser = sandbox.replace_rule("hot", RuleSpec(name="hot", condition=Threshold("a", Operator.GT, 20.0)))
    assert looser is not None
    assert looser.version == 2
    assert sandbox.delete_rule(draft.rule_id)
    assert not sandbox.delete_rule(draft.rule_id)
    assert sandbox.replace_rule("none", looser.spec) is None
    assert {a.rule_id: a.end_reason for a in sandbox.alarms()} == {draft.rule_id: "rule_removed", "hot": None}
    assert [entry["rule"].version for entry in sandbox.rules_of(DEVICE_ID)] == [2]
    with pytest.raises(InvalidMessage):
        sandbox.create_rule(RuleSpec(name="never", condition=Threshold("a", Operator.GT, True)))
    assert list(real.around.rules.rules.values()) == [HOT]


def test_it_answers_and_refuses_as_a_host_does() -> None:
    sandbox = forked(Driver(around_of()))
    with pytest.raises(DeviceNotFound):
        sandbox.answer(GetLatest("nobody"))
    with pytest.raises(DeviceConflict):
        sandbox.answer(Register(DEVICE_ID, TYPE))
    sandbox.answer(Reading(DEVICE_ID, T0_MS + 5, 0, 1, 0, [2.5]), ("a",))
    assert sandbox.map(Filter(TYPE), lambda view: view.values) == {DEVICE_ID: {"a": 2.5}}
    assert sandbox.map(Filter("pump"), lambda view: view.values) == {}
    failed = sandbox.map(Filter(), lambda view: view.metadata["none"])
    assert isinstance(failed[DEVICE_ID], KeyError)
    assert sandbox.statistics()["readings"] == 1


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "MAX_DEVICES", 1)
    monkeypatch.setattr(sandbox_module, "MAX_ALARMS", 20)
    sandbox = forked(Driver(around_of(HOT)), HOT)
    with pytest.raises(InvalidMessage):
        sandbox.answer(Register("one-more", TYPE))
    with pytest.raises(InvalidMessage):
        sandbox.load(*[sandbox.clone(Filter(), 1)] * 2)
    with pytest.raises(InvalidMessage):
        sandbox.clone(Filter(), 0)
    for n in range(100):
        sandbox.ingest([(DEVICE_ID, T0_MS + n * 1000, {"a": 9.0 * (n % 2)})])
    alarms = sandbox.alarms()
    assert len(alarms) + sandbox.statistics()["alarms_forgotten"] == 50
    assert len(alarms) <= 20
    assert alarms[-1].start_ms == T0_MS + 99_000, "the newest stay"


async def test_hosts_copy_devices_without_a_trace() -> None:
    store = MemoryStore(lambda: T0_MS)
    await store.join("host-0")
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, HostSettings(), lambda: T0_MS)
    await host.start()
    try:
        for n in range(3):
            await host.answer(Register(f"d{n}", TYPE, metadata={"n": n}))
            await host.answer(Reading(f"d{n}", T0_MS + n, T0_MS, n, 0, [float(n)]), ("a",))
        host._compartments[0].activations.devices.pop("d1")  # as if it had been passivated

        def counted() -> Any:
            told = {name: value for name, value in host.statistics().items() if name != "lease_age_s"}
            return told, store.commits, dict(store.snapshots)

        before = counted()
        clones = await host.clone(Filter(TYPE), 3)
        assert counted() == before
        with pytest.raises(InvalidMessage):
            await host.clone(Filter(TYPE), 2)
    finally:
        await host.stop()
    sandbox = Sandbox("copy", T0_MS)
    assert sandbox.load(clones) == 3
    assert sandbox.map(Filter(), lambda view: (view.values, view.metadata)) == {
        f"d{n}": ({"a": float(n)}, {"n": n}) for n in range(3)
    }


def test_a_fleet_may_call_it_as_it_calls_a_host() -> None:
    for name in ("create_rule", "replace_rule", "delete_rule"):
        here, there = (signature(getattr(thing, name)) for thing in (Sandbox, DeviceHost))
        assert here == there, name
