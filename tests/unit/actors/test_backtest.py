"""A draft rule over the past: the same devices, the same alarms, at the readings' own times."""

import random
from typing import Any

import pytest

from sensorium.actors import backtest as backtest_module
from sensorium.actors.actions import DeriveAction
from sensorium.actors.alarm_matching import match
from sensorium.actors.backtest import Gathering, Order, Trial, check_range, warm_up_ms
from sensorium.actors.backtesting import Asked, prepare, relive
from sensorium.actors.conditions.recursion import needed_derivations
from sensorium.actors.errors import InvalidMessage, NoHistory, RuleNotFound
from sensorium.actors.messages import ChangeTwin, TimerFired
from sensorium.actors.metrics import kind_of, metric_set
from sensorium.actors.past import MAX_TWIN_CHANGES, TwinThen
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.records import Alarm, Registration, TailReading
from sensorium.actors.rules import (
    All,
    Always,
    AnomalyScore,
    Condition,
    Formula,
    Level,
    NoData,
    Operator,
    RateOfChange,
    Reference,
    Rule,
    RuleSpec,
    Scope,
    Severity,
    Threshold,
    Times,
    WindowAggregate,
    ZScore,
)
from sensorium.actors.testing import MemoryPast, MemoryStore
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of, make_rule

HOUR_MS = 3_600_000
REGISTERED = Registration(
    DEVICE_ID, TYPE, "active", None, {"limit": 5.0}, T0_MS - HOUR_MS, T0_MS + 9 * HOUR_MS
)
HOT = Threshold("a", Operator.GT, 5.0)


def rows(*readings: tuple[int, dict[str, Any]]) -> list[TailReading]:
    """Times count from T0_MS, in seconds."""
    return [
        TailReading(
            n,
            T0_MS + second * 1000,
            n,
            0,
            metric_set(tuple(values), "".join("n" if v is None else kind_of(v) for v in values.values())),
            list(values.values()),
        )
        for n, (second, values) in enumerate(readings, 1)
    ]


def order(
    condition: Condition, end_s: int, present: Rule | None = None, start_s: int = 0, **spec: Any
) -> Order:
    draft = RuleSpec(name="draft", condition=condition, **spec)
    return Order(draft, T0_MS + start_s * 1000, T0_MS + end_s * 1000, present)


def tried(asked: Order, past: list[TailReading]) -> list[tuple[str, int, int | None]]:
    trial = Trial(asked, Profiles(), REGISTERED)
    trial.take(row for row in past if trial.from_ms <= row.time_ms < asked.end_ms)
    return [
        (a.change, (a.start_ms - T0_MS) // 1000, None if a.end_ms is None else (a.end_ms - T0_MS) // 1000)
        for a in trial.finish().listed
    ]


@pytest.mark.parametrize(
    ("condition", "spec"),
    [
        (HOT, {}),
        (HOT, {"for_s": 12.0}),
        (HOT, {"times": Times(3, 60.0)}),
        (HOT, {"clear": Threshold("a", Operator.LT, 2.0)}),
        (ZScore("a", 1.5, min_count=5), {}),
        (RateOfChange("b", 0.2), {}),
        (AnomalyScore("a", 0.2, "zscore"), {}),
        (All([HOT, Threshold("b", Operator.LT, 5.0)]), {}),
    ],
)
def test_it_raises_what_the_device_raised(condition: Condition, spec: dict[str, Any]) -> None:
    rng = random.Random(7)
    rule = make_rule(condition, "r1", **spec)
    live = Driver(around_of(rule))
    past = []
    second = 0
    for _ in range(400):
        second += rng.choice([1, 5, 20])
        for name, timer in sorted(live.timers.items(), key=lambda item: item[1].due_ms):
            if timer.due_ms < T0_MS + second * 1000:
                live.now_ms = timer.due_ms
                live.send(TimerFired(DEVICE_ID, name, timer.due_ms))
        values = {"c": 1.0, "a": rng.uniform(0, 8), "b": rng.uniform(0, 10)}
        live.now_ms = T0_MS + second * 1000
        live.read(values, second * 1000)
        past.append((second, values))
    outcome = Trial(order(condition, second + 1, rule, **spec), Profiles(), REGISTERED)
    outcome.take(rows(*past))
    result = outcome.finish()
    raised = {alarm.alarm_id: alarm for alarm in live.log.alarms}
    assert len(raised) > 3
    assert (result.new, result.gone, result.stays) == (0, 0, len(raised))
    assert [(a.start_ms, a.end_ms, a.value) for a in result.listed] == [
        (a.start_ms, a.end_ms, a.value) for a in raised.values()
    ]
    assert result.draft == result.present


TWIN = Threshold("a", Operator.GT, Reference(twin="desired.limit"))


@pytest.mark.parametrize(
    ("condition", "spec"),
    [
        (TWIN, {}),
        (TWIN, {"for_s": 12.0}),
        (TWIN, {"times": Times(3, 60.0)}),
        (TWIN, {"clear": Threshold("a", Operator.LT, Reference(twin="desired.limit", factor=0.5))}),
        (WindowAggregate("a", "mean", Operator.GT, Reference(twin="reported.limit")), {}),
        (Formula("a + avg(b)", Operator.GT, "2 * twin.desired.limit"), {}),
    ],
)
async def test_the_twin_is_as_it_was(condition: Condition, spec: dict[str, Any]) -> None:
    rng = random.Random(8)
    rule = make_rule(condition, "r1", **spec)
    live = Driver(around_of(rule), register=False)
    live.device.registration = REGISTERED
    live.device.furnish(live.around)
    live.log.registrations.append(REGISTERED)
    for _ in range(400):
        live.wait(rng.choice([1, 5, 20]) + rng.randrange(1000) / 1000)
        if rng.random() < 0.4:
            part = rng.choice(["desired", "reported"])
            live.send(ChangeTwin(DEVICE_ID, **{part: {"limit": rng.choice([3, 5, 7, None])}}))
        else:
            live.read({"a": rng.uniform(0, 8), "b": rng.uniform(0, 10)}, live.now_ms - T0_MS)
    store = MemoryStore(lambda: T0_MS)
    await store.join("host")
    await store.log(1).commit(live.log)
    asked = Order(RuleSpec(name="draft", condition=condition, **spec), T0_MS, live.now_ms + 1, rule)
    [result] = await relive(MemoryPast(store), Profiles(), asked, [REGISTERED])
    raised = {alarm.alarm_id: alarm for alarm in live.log.alarms}
    assert len(raised) > 3
    assert (result.new, result.gone, result.stays) == (0, 0, len(raised))
    assert [(a.start_ms, a.end_ms, a.value) for a in result.listed] == [
        (a.start_ms, a.end_ms, a.value) for a in raised.values()
    ]


def test_a_twin_that_changed_too_often_is_refused() -> None:
    trial = Trial(order(TWIN, 10), Profiles(), REGISTERED)
    assert trial.looks_at_twin
    assert not Trial(order(HOT, 10), Profiles(), REGISTERED).looks_at_twin
    twins = [TwinThen(T0_MS + n, {"limit": n}, {}) for n in range(MAX_TWIN_CHANGES + 1)]
    trial.recall(twins[1:])
    with pytest.raises(InvalidMessage, match="since: the twin of device sensor-001 changed more than"):
        trial.recall(twins)


def test_event_time_drives_the_timers() -> None:
    past = rows((0, {"a": 9.0}), (10, {"a": 9.0}), (500, {"a": 1.0}))
    assert tried(order(HOT, 1000, for_s=60.0), past) == [("new", 60, 500)]
    assert tried(order(NoData(100), 1000), past) == [("new", 110, 500), ("new", 600, None)]
    assert tried(order(NoData(100), 550), past) == [("new", 110, 500)]
    assert tried(order(NoData(100), 200), []) == [("new", 0, None)], "silent since the warm-up's end"


def test_what_stood_when_the_range_began_is_known_by_the_warm_up() -> None:
    past = rows(*[(n * 10, {"a": 9.0 if n in (20, 21, 22, 40) else 1.0}) for n in range(60)])
    assert tried(order(HOT, 600, start_s=205, for_s=20.0), past) == [("new", 220, 230)]
    trial = Trial(order(ZScore("a", 3.0, 60.0, 5), 600, start_s=300), Profiles(), REGISTERED)
    assert trial.from_ms == T0_MS + 240_000
    trial.take(row for row in past if row.time_ms >= trial.from_ms)
    assert trial.finish().draft.alarms == 1
    assert trial.readings == 30, "those of the warm-up are not counted"


def test_warm_up_is_as_long_as_the_rules_look_back() -> None:
    profile = Profile()
    lengths = [
        (make_rule(HOT), 0),
        (make_rule(HOT, for_s=60), 60),
        (make_rule(HOT, times=Times(2, 90)), 90),
        (make_rule(NoData(30)), 30),
        (make_rule(ZScore("a")), 900),
        (make_rule(All([HOT, ZScore("a", window_s=1200.0)])), 1200),
        (make_rule(HOT, for_s=31_536_000), 31 * 86_400),
    ]
    assert [warm_up_ms([rule], profile) // 1000 for rule, _ in lengths] == [s for _, s in lengths]
    assert warm_up_ms([rule for rule, _ in lengths[:5]], profile) == 900_000


def test_readings_that_lack_the_metric_or_came_late_count_as_in_the_field() -> None:
    past = rows(
        (0, {"b": 1.0}),
        (10, {"a": 9.0, "b": None}),
        (20, {"a": None, "b": 2.0}),
        (15, {"a": 1.0}),
        (30, {"a": 1.0}),
    )
    assert tried(order(HOT, 40), past) == [("new", 10, 30)]


def test_figures_count_within_the_range_and_the_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest_module, "MAX_LISTED", 3)
    present = make_rule(Threshold("a", Operator.GT, 7.0), "present")
    past = rows(*[(n * 10, {"a": [1.0, 6.0, 9.0][n % 3]}) for n in range(31)])
    asked = order(HOT, 305, present)
    trial = Trial(asked, Profiles(), REGISTERED)
    trial.take(past)
    gathering = Gathering(asked)
    gathering.add([trial.finish()])
    result = gathering.result()
    assert (result.draft.alarms, result.draft.active_s) == (10, 200.0)
    assert result.present is not None
    assert (result.present.alarms, result.present.active_s) == (10, 100.0)
    assert (result.new, result.gone, result.stays) == (0, 0, 10)
    assert (len(result.alarms), result.more) == (3, True)
    assert result.by_device[0].device_id == DEVICE_ID


def test_a_device_has_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    past = rows(*[(n, {"a": 9.0 * (n % 2)}) for n in range(50)])
    monkeypatch.setattr(backtest_module, "MAX_DEVICE_ALARMS", 10)
    with pytest.raises(InvalidMessage, match="condition: draft raises more than 10 alarms"):
        Trial(order(HOT, 100), Profiles(), REGISTERED).take(past)
    monkeypatch.setattr(backtest_module, "MAX_DEVICE_READINGS", 10)
    with pytest.raises(InvalidMessage, match="since: device sensor-001 has more than 10 readings"):
        Trial(order(NoData(60), 100), Profiles(), REGISTERED).take(past)
    check_range(0, 366 * 24 * HOUR_MS, 100)
    with pytest.raises(InvalidMessage, match="device-days"):
        check_range(0, 366 * 24 * HOUR_MS, 101)


def alarm(start: int, end: int | None, device_id: str = "d", rule_id: str = "r") -> Alarm:
    fields: dict[str, Any] = dict.fromkeys(("device_type", "rule_name", "severity", "metric", "detail"), "")
    return Alarm(
        f"{device_id}{rule_id}{start}", device_id, rule_id=rule_id, rule_version=1, value=0.0,
        state="ACTIVE", start_ms=start, end_ms=end, **fields,
    )  # fmt: skip


def test_alarms_are_paired_once_by_overlap() -> None:
    before = [alarm(0, 10), alarm(20, 30), alarm(40, None), alarm(0, None, "other")]
    after = [alarm(5, 25), alarm(28, 29), alarm(35, 39), alarm(50, 60), alarm(55, None, rule_id="else")]
    matched = match(before, after)
    assert [(b.start_ms, a.start_ms) for b, a in matched.stays] == [(0, 5), (20, 28), (40, 50)]
    assert [a.start_ms for a in matched.new] == [35, 55]
    assert [a.device_id for a in matched.gone] == ["other"]


async def test_what_there_is_to_try_is_found_out_first() -> None:
    store = MemoryStore(lambda: T0_MS)
    await store.join("host")
    log = store.log(1)
    live = Driver()
    live.read({"a": 1.0}, 0)
    live.log.registrations.append(REGISTERED)
    await log.commit(live.log)
    stored = MemoryPast(store)
    spec = RuleSpec(name="draft", condition=HOT, scope=Scope(device_type=TYPE), enabled=False)
    asked = Asked(spec, T0_MS - HOUR_MS, T0_MS + HOUR_MS)
    found, devices = await prepare(stored, asked)
    assert devices == [REGISTERED]
    assert found.present is None
    assert [rule.spec.enabled for rule in found.rules] == [True]
    present = await store.create(RuleSpec(name="all", condition=HOT))
    elsewhere = Asked(
        RuleSpec(name="draft", condition=HOT, scope=Scope(device_type="pump")),
        *asked_range(asked),
        present.rule_id,
    )
    assert (await prepare(stored, elsewhere))[1] == [REGISTERED], "the present rule covers it"
    for wrong, error in [
        (Asked(elsewhere.draft, *asked_range(asked)), NoHistory),
        (Asked(spec, *asked_range(asked), which=Filter(device_ids=["nobody"])), NoHistory),
        (Asked(spec, T0_MS - HOUR_MS, T0_MS - 1), NoHistory),
        (Asked(spec, *asked_range(asked), "no-such-rule"), RuleNotFound),
        (Asked(spec, T0_MS, T0_MS), InvalidMessage),
        (
            Asked(RuleSpec(name="x", condition=Threshold("a", Operator.GT, True)), *asked_range(asked)),
            InvalidMessage,
        ),
    ]:
        with pytest.raises(error):
            await prepare(stored, wrong)


def asked_range(asked: Asked) -> tuple[int, int]:
    return asked.since_ms, asked.until_ms


class TestDerived:
    RATIO = Threshold("ratio", Operator.GT, 2.0)

    def derive(self, formula, rule_id="d"):
        action = DeriveAction(metric="ratio", formula=formula)
        return make_rule(Always(), rule_id, actions=(action,))

    def test_what_was_stored_counts_and_where_nothing_was_the_present_rules_derive_it(self):
        asked = Order(
            RuleSpec(name="draft", condition=self.RATIO), T0_MS, T0_MS + 60_000, None, (self.derive("a / b"),)
        )
        past = rows(
            (0, {"a": 9.0, "b": 1.0}),
            (1, {"a": 1.0, "b": 1.0}),
            (2, {"a": 1.0, "b": 1.0, "ratio": 5.0}),
            (3, {"a": 1.0, "b": 0.0}),
            (4, {"a": 1.0, "b": 1.0}),
        )
        trial = Trial(asked, Profiles(), REGISTERED)
        trial.take(past)
        outcome = trial.finish()
        assert (outcome.draft.alarms, outcome.draft.active_s) == (2, 3.0)

    def test_what_the_draft_derives_is_derived_anew(self):
        draft = RuleSpec(
            name="draft",
            condition=Threshold("a", Operator.GT, 0.0),
            levels=(Level(Severity.CRITICAL, self.RATIO),),
            actions=(DeriveAction(metric="ratio", formula="a / b"),),
        )
        present = self.derive("a * 100", "p")
        trial = Trial(Order(draft, T0_MS, T0_MS + 60_000, present), Profiles(), REGISTERED)
        trial.take(rows((0, {"a": 3.0, "b": 1.0, "ratio": 0.0})))
        assert [alarm.severity for alarm in trial.finish().listed] == ["critical"]

    async def test_only_rules_that_are_needed_are_asked(self):
        store = MemoryStore()
        store.registrations[DEVICE_ID] = REGISTERED
        needed = self.derive("c / b", "d")
        deeper = make_rule(Always(), "e", actions=(DeriveAction(metric="c", formula="a"),))
        other = make_rule(Always(), "f", actions=(DeriveAction(metric="other", formula="a"),))
        store.set_rules([needed, deeper, other])
        draft = RuleSpec(name="draft", condition=self.RATIO)
        with pytest.raises(NoHistory):
            await prepare(MemoryPast(store), Asked(draft, T0_MS, T0_MS + 1000))
        assert needed_derivations([draft], [other, deeper, needed]) == [needed, deeper]
