"""Rules that compare with the twin or the metadata, judged by their changes: no reading is waited for."""

import pytest

from sensorium.actors.conditions.standing import own_named
from sensorium.actors.expressions import parse_expression
from sensorium.actors.messages import ChangeTwin, Decommission, Patch
from sensorium.actors.profile import Profile
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import (
    All,
    Changed,
    Either,
    Formula,
    Level,
    Not,
    Operator,
    RateOfChange,
    Reference,
    Schedule,
    Severity,
    Threshold,
    Times,
    WindowAggregate,
    ZScore,
)
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule

LIMIT = Reference(twin="desired.limit")
HOT = Threshold("t", Operator.GT, LIMIT)
RAISED, ENDED = ("r1", "ACTIVE", None), ("r1", "CLEARED", "condition_ended")


def desire(d, after_ms=1000, **values):
    d.now_ms += after_ms
    d.send(ChangeTwin(DEVICE_ID, desired=values))


def driven(condition=HOT, **spec):
    d = Driver(around_of(make_rule(condition, **spec)))
    desire(d, 0, limit=10)
    d.read({"t": 8.0, "u": 1.0}, 0)
    assert d.alarms == []
    return d


def test_an_alarm_begins_and_ends_with_the_change():
    d = driven()
    desire(d, limit=5)
    alarm = d.log.alarms[-1]
    assert (alarm.start_ms, alarm.value, alarm.state) == (T0_MS + 1000, 8.0, "ACTIVE")
    assert (alarm.readings, alarm.met, alarm.last_reading_ms, alarm.last_met_ms) == (0, 0, None, None)
    d.read({"t": 9.0}, 1500)
    assert d.alarms == [RAISED]
    d = d.recovered(take_snapshot(d.device))
    desire(d, limit=9)
    alarm = d.log.alarms[-1]
    assert (alarm.end_ms, alarm.end_value, alarm.readings, alarm.met) == (T0_MS + 2000, 9.0, 1, 1)
    assert [row.kind for row in d.log.events if row.kind.startswith("alarm")] == [
        "alarm_raised",
        "alarm_cleared",
    ]


def test_a_change_that_changes_nothing_or_is_refused_is_none():
    d = driven()
    desire(d, limit=10)
    d.send(ChangeTwin(DEVICE_ID, desired={"limit": 5}, matching=["d9"]))
    assert d.alarms == []


def test_a_device_whose_clock_is_ahead():
    d = Driver(around_of(make_rule(HOT)))
    d.read({"t": 8.0}, 60_000)
    desire(d, limit=5)
    assert d.log.alarms[-1].start_ms == T0_MS + 60_000


def test_rules_that_are_new_are_taken_first():
    d = driven()
    d.use(make_rule(Threshold("t", Operator.LT, LIMIT), "r2"))
    desire(d, limit=20)
    assert d.alarms == [("r2", "ACTIVE", None)]


def test_what_must_hold_for_a_while_begins_and_ends_with_changes():
    d = driven(for_s=30.0)
    desire(d, limit=5)
    d.wait(10)
    desire(d, limit=50)
    d.wait(60)
    assert d.alarms == []
    desire(d, limit=5)
    began_ms = d.now_ms
    d.wait(31)
    assert d.alarms == [RAISED]
    assert d.log.alarms[-1].start_ms == began_ms + 30_000


def test_an_end_of_its_own():
    clear = Threshold("t", Operator.LT, Reference(twin="desired.limit", factor=0.5))
    d = driven(clear=clear)
    desire(d, limit=5)
    desire(d, limit=10)
    assert d.alarms == [RAISED]
    desire(d, limit=17)
    assert d.alarms == [RAISED, ENDED]


def test_severities():
    worse = Threshold("t", Operator.GT, Reference(twin="desired.limit", offset=5.0))
    d = driven(levels=(Level(Severity.CRITICAL, worse),))
    desire(d, limit=2)
    desire(d, limit=5)
    desire(d, limit=1)
    assert [a.severity for a in d.log.alarms] == ["critical", "warning", "critical"]
    rated = driven(levels=(Level(Severity.CRITICAL, RateOfChange("t", 5.0)),))
    rated.now_ms += 1000
    rated.read({"t": 20.0}, 1000)
    desire(rated, limit=15)
    assert [a.severity for a in rated.log.alarms] == ["critical"], "no reading, so there is no rate"


def test_times_are_counted_by_readings():
    d = driven(times=Times(2, 60.0))
    for limit in (5, 6, 7):
        desire(d, limit=limit)
    assert d.alarms == []


@pytest.mark.parametrize(
    ("condition", "limit", "raised"),
    [
        (WindowAggregate("t", "mean", Operator.GT, LIMIT), 5, True),
        (WindowAggregate("t", "count", Operator.GE, LIMIT), 2, False),
        (Formula("avg(t) + t", Operator.GT, "2 * twin.desired.limit"), 7, True),
        (Formula("t - before(t)", Operator.LT, "twin.desired.limit"), 1, False),
        (All([HOT, Threshold("u", Operator.EQ, 1.0)]), 5, True),
        (All([HOT, Threshold("v", Operator.EQ, 1.0)]), 5, False),
        (All([HOT, Changed("u")]), 5, False),
        (Either([Changed("u"), HOT]), 5, True),
        (Not(Threshold("t", Operator.LT, LIMIT)), 5, True),
        (All([ZScore("t"), HOT]), 5, False),
        (parse_expression("t > twin.desired.limit and u between 0 and 2").condition, 5, True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | bool) else str(value),
)
def test_conditions_go_by_the_newest_values(condition, limit, raised):
    d = driven(condition)
    desire(d, limit=limit)
    assert d.alarms == ([RAISED] if raised else [])


def test_parts_of_a_moment_end_nothing():
    d = driven(Either([Changed("u"), HOT]))
    d.read({"t": 8.0, "u": 2.0}, 500)
    desire(d, limit=11)
    assert d.alarms == [RAISED]


def test_a_formula_that_fails_is_told_and_raises_nothing():
    d = driven(Formula("t / twin.desired.limit", Operator.GT, 2.0))
    desire(d, limit=0)
    assert d.alarms == []
    assert [row.kind for row in d.log.events][-1] == "rule_failed"


def test_what_it_reports_counts_too():
    d = Driver(around_of(make_rule(Threshold("mode", Operator.NE, Reference(twin="reported.mode")))))
    d.read({"mode": "eco"}, 0)
    d.send(ChangeTwin(DEVICE_ID, reported={"mode": "full"}))
    d.send(ChangeTwin(DEVICE_ID, reported={"mode": "eco"}))
    assert d.alarms == [RAISED, ENDED]


def test_what_a_device_reports_by_its_metrics():
    rule = make_rule(Threshold("t", Operator.NE, Reference(twin="reported.t")))
    d = Driver(around_of(rule, profile=Profile()))
    d.send(Patch(DEVICE_ID, metadata={"sparkplug": {"group": "g", "node": "n"}}))
    d.send(ChangeTwin(DEVICE_ID, {"t": 5.0}, {"t": 4.0}))
    d.read({"t": 5.0}, 0)
    assert d.alarms == [RAISED, ENDED], "it has taken what was desired, so it is reported"


def test_a_decommissioned_device_is_not_judged():
    d = driven()
    d.send(Decommission(DEVICE_ID))
    desire(d, limit=5)
    assert d.alarms == []


def test_metadata_that_changes_is_judged_at_once():
    by_metadata = make_rule(Threshold("t", Operator.GT, Reference(metadata="limit")), "r2")
    d = Driver(around_of(make_rule(HOT), by_metadata))
    d.read({"t": 8.0}, 0)
    d.now_ms += 1000
    d.send(Patch(DEVICE_ID, metadata={"limit": 5, "note": "x"}))
    assert d.alarms == [("r2", "ACTIVE", None)]
    assert d.log.alarms[-1].start_ms == T0_MS + 1000
    assert [row.kind for row in d.log.events][-2:] == ["updated", "alarm_raised"]
    d.send(Patch(DEVICE_ID, metadata={"limit": 9}))
    assert d.alarms[-1] == ("r2", "CLEARED", "condition_ended")
    d.send(Patch(DEVICE_ID, metadata={"limit": None}))
    assert len(d.alarms) == 2, "what is not there is no limit"


def test_what_did_not_change_is_not_judged():
    """Hours that are over end an alarm at the next reading, and not by what else happens to the device."""
    hours = Schedule(start="00:00", end="23:00")
    limit = Threshold("t", Operator.GT, Reference(metadata="limit"))
    d = Driver(around_of(make_rule(All([limit, hours]))))
    d.send(Patch(DEVICE_ID, metadata={"limit": 5}))
    d.read({"t": 8.0}, 0)
    desire(d, 3_600_000, limit=1)
    assert d.alarms == [RAISED]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("t > twin.desired.limit", ("twin",)),
        ("avg(t, '5m') > twin.reported.limit", ("twin",)),
        ("t * 2 > twin.desired.limit + metadata.more", ("twin", "metadata")),
        ("t > metadata.limit", ("metadata",)),
        ("t > `twin.limit`", ()),
        ("t > 5 and (u < 2 or t != twin.desired.x)", ("twin",)),
        ("t * 2 > 5", ()),
    ],
    ids=str,
)
def test_which_rules_those_are(expression, names):
    assert own_named(parse_expression(expression).condition) == set(names)
