"""An alarm's life with people: acknowledged, assigned, shelved, escalated; and through a crash."""

import pytest

from sensorium.actors.conditions import validate
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import ACCEPTED, ActOnAlarm, RefreshRules, Refusal
from sensorium.actors.rules import Escalation, Level, NoData, Operator, RuleSpec, Severity, Threshold
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule

HOT = Threshold("t", Operator.GT, 30.0)
STEPS = (Escalation(60.0, Severity.MAJOR), Escalation(120.0, Severity.CRITICAL))
ESCALATING = make_rule(HOT, escalation=STEPS)


def hot(rule=ESCALATING):
    d = Driver(around_of(rule))
    d.read({"t": 31.0}, 0)
    return d


def act(d, action, **more):
    (alarm,) = d.device.alarms.values()
    return d.send(ActOnAlarm(DEVICE_ID, alarm.alarm_id, action, **more))


def severity(d):
    return d.log.alarms[-1].severity


def test_an_alarm_that_nobody_acknowledges_escalates_step_by_step():
    d = hot()
    d.wait(59)
    assert severity(d) == "warning"
    d.wait(2)
    assert (severity(d), d.log.alarms[-1].escalated) == ("major", 1)
    d.wait(118)
    assert severity(d) == "major"
    d.wait(2)
    assert (severity(d), d.log.alarms[-1].escalated) == ("critical", 2)
    assert d.timers == {}
    assert len({alarm.alarm_id for alarm in d.log.alarms}) == 1


@pytest.mark.parametrize("action", ["ack", "clear"])
def test_an_acknowledged_or_ended_one_does_not(action):
    d = hot()
    if action == "ack":
        assert act(d, "ack", by="ada") is ACCEPTED
    else:
        d.read({"t": 20.0}, 1000)
    assert d.timers == {}
    d.wait(600)
    assert severity(d) == "warning"


def test_a_shelved_one_waits():
    d = hot()
    act(d, "shelve", until_ms=T0_MS + 100_000)
    d.wait(99)
    assert severity(d) == "warning"
    d.wait(2)
    assert severity(d) == "major"


def test_it_goes_on_after_a_crash_with_all_that_was_done():
    d = hot()
    act(d, "assign", by="ada", text="grace")
    d.wait(61)
    other = d.recovered()
    (alarm,) = other.device.alarms.values()
    assert (alarm.assignee, alarm.escalated) == ("grace", 1)
    other.wait(121)
    assert severity(other) == "critical"


def test_a_reading_never_makes_it_milder_than_its_step():
    rule = make_rule(
        HOT,
        levels=(Level(Severity.CRITICAL, Threshold("t", Operator.GT, 50.0)),),
        escalation=(Escalation(60.0, Severity.MAJOR),),
    )
    d = hot(rule)
    d.wait(61)
    for n, (value, expected) in enumerate(((31.0, "major"), (55.0, "critical"), (31.0, "major"))):
        d.read({"t": value}, 1000 + n)
        assert severity(d) == expected


def test_a_rule_without_steps_takes_the_timer_away():
    d = hot()
    d.use(make_rule(HOT, version=2))
    d.send(RefreshRules(DEVICE_ID))
    assert d.timers == {}
    assert severity(d) == "warning"


def test_silence_escalates_too():
    d = Driver(around_of(make_rule(NoData(30.0), escalation=STEPS)))
    d.wait(31)
    assert severity(d) == "warning"
    d.wait(61)
    assert severity(d) == "major"


def test_acting_twice_changes_nothing_but_is_told():
    d = hot(make_rule(HOT))
    act(d, "ack", by="ada")
    act(d, "ack", by="bob")
    assert [a.acknowledged_by for a in d.log.alarms] == [None, "ada"]
    assert [e.kind for e in d.log.events][-2:] == ["alarm_ack", "alarm_ack"]


def test_an_ended_alarm_is_noted_not_held():
    d = hot(make_rule(HOT))
    alarm_id = d.log.alarms[0].alarm_id
    d.read({"t": 20.0}, 1000)
    assert d.send(ActOnAlarm(DEVICE_ID, alarm_id, "ack", "ada")) is ACCEPTED
    (note,) = d.log.alarm_notes
    after = note.applied(d.log.alarms[-1])
    assert (after.acknowledged, after.acknowledged_by, after.state) == (True, "ada", "CLEARED")
    assert isinstance(d.send(ActOnAlarm(DEVICE_ID, alarm_id, "shelve", until_ms=1)), Refusal)


@pytest.mark.parametrize("steps", [(Escalation(1.0, Severity.WARNING),), STEPS[::-1]])
def test_each_step_is_worse_than_the_one_before(steps):
    with pytest.raises(InvalidMessage, match=r"escalation\[\d\]\.severity"):
        validate(RuleSpec(name="x", condition=HOT, escalation=steps))
