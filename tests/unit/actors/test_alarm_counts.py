"""How often an alarm's condition was met: exact, in few writes, and the same after a recovery."""

import random

import pytest

from sensorium.actors.messages import ActOnAlarm, RefreshRules
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import Level, NoData, Operator, RateOfChange, Severity, Threshold
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule

HOT = Threshold("t", Operator.GT, 30.0)


def driver(*rules):
    return Driver(around_of(*rules))


def counts(alarm):
    return alarm.met, alarm.readings, alarm.last_met_ms, alarm.last_reading_ms


def test_met_and_readings_at_the_end():
    d = driver(make_rule(HOT, clear=Threshold("t", Operator.LT, 20.0)))
    for second, value in enumerate((31.0, 25.0, 32.0, 26.0, 10.0)):
        d.read({"t": value}, second * 1000)
    assert counts(d.log.alarms[-1]) == (2, 5, T0_MS + 2000, T0_MS + 4000)
    assert d.log.alarms[-1].state == "CLEARED"


def test_a_row_a_minute_at_most():
    d = driver(make_rule(HOT))
    for second in range(301):
        d.read({"t": 31.0}, second * 1000)
    assert [alarm.readings for alarm in d.log.alarms] == [1, 61, 121, 181, 241, 301]
    assert [event.kind for event in d.log.events if event.kind.startswith("alarm")] == ["alarm_raised"]


def test_a_change_of_severity_and_what_people_do_write_what_was_counted():
    d = driver(make_rule(HOT, levels=(Level(Severity.CRITICAL, Threshold("t", Operator.GT, 90.0)),)))
    for second, value in enumerate((31.0, 31.0, 95.0)):
        d.read({"t": value}, second * 1000)
    alarm = d.log.alarms[-1]
    assert (alarm.severity, alarm.detail, alarm.met) == ("critical", "t > 90.0", 3)
    d.read({"t": 31.0}, 3000)
    assert d.log.alarms[-1].detail == "t > 30.0"
    d.read({"t": 31.0}, 4000)
    d.send(ActOnAlarm(DEVICE_ID, alarm.alarm_id, "ack", "ada"))
    assert d.log.alarms[-1].met == 5


def test_silence_is_met_once():
    d = driver(make_rule(NoData(60.0)))
    d.wait(100)
    d.read({"t": 1.0}, 100_000)
    assert counts(d.log.alarms[-1]) == (1, 0, T0_MS + 60_000, T0_MS + 60_000)


@pytest.mark.parametrize("seed", range(20))
def test_a_recovery_counts_on_where_it_was(seed):
    chance = random.Random(seed)
    rules = (
        make_rule(HOT, "hot", clear=Threshold("t", Operator.LT, 20.0)),
        make_rule(RateOfChange("t", 5.0), "fast"),
    )
    d = driver(*rules)
    second, snapshot = 0, None
    for _ in range(chance.randrange(5, 60)):
        second += chance.randrange(1, 40)
        d.read({"t": chance.uniform(10.0, 50.0)}, second * 1000 - chance.choice((0, 0, 0, 45_000)))
        if chance.random() < 0.1:
            snapshot = take_snapshot(d.device)
    other = d.recovered(snapshot)
    assert {i: t.dump() for i, t in other.device.watch.tallies.items()} == {
        i: t.dump() for i, t in d.device.watch.tallies.items()
    }
    assert len(other.log.alarms) == len(d.log.alarms)
    for each in (d, other):
        each.use()
        each.send(RefreshRules(DEVICE_ID))
    assert {counts(alarm) for alarm in d.log.alarms} == {counts(alarm) for alarm in other.log.alarms}


def test_readings_of_one_millisecond_count_alike_after_a_crash():
    d = Driver(around_of(make_rule(Threshold("a", Operator.GT, 5.0))))
    for value in (9.0, 9.0, 8.0):
        d.read({"a": value}, 0)
    again = d.recovered()
    for driver in (d, again):
        driver.read({"a": 1.0}, 1000)
    assert again.log.alarms[-1] == d.log.alarms[-1]
    assert (d.log.alarms[-1].readings, d.log.alarms[-1].met) == (2, 1)
