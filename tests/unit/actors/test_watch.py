"""Rules over time: conditions that must hold for a while, hysteresis, silence; and the timers behind them."""

import pytest

from sensorium.actors.conditions import describe, validate
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Decommission, GetDevice, Patch, RefreshRules, TimerFired
from sensorium.actors.records import TimerRow
from sensorium.actors.rules import All, Either, NoData, Not, Operator, Range, RuleSpec, Threshold
from sensorium.actors.timers import TimerQueue
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of, make_rule

HOT = Threshold("t", Operator.GT, 30.0)
RAISED = ("r1", "ACTIVE", None)
ENDED = ("r1", "CLEARED", "condition_ended")
REMOVED = ("r1", "CLEARED", "rule_removed")


def driver(*rules):
    return Driver(around_of(*rules))


class TestHeldFor:
    def test_the_readings_times_tell_how_long(self):
        d = driver(make_rule(HOT, for_s=60.0))
        for second in (0, 30, 59):
            d.read({"t": 31.0}, second * 1000)
        assert d.alarms == []
        d.read({"t": 31.0}, 60_000)
        assert d.alarms == [RAISED]
        assert d.timers == {}

    def test_the_clock_tells_when_no_reading_does(self):
        d = driver(make_rule(HOT, for_s=60.0))
        d.read({"t": 31.0}, 0)
        d.wait(59.9)
        assert d.alarms == []
        d.wait(0.2)
        assert d.alarms == [RAISED]
        assert d.log.alarms[0].start_ms == T0_MS + 60_000
        assert d.log.alarms[0].value == 31.0

    def test_one_reading_to_the_contrary_starts_it_anew(self):
        d = driver(make_rule(HOT, for_s=60.0))
        d.read({"t": 31.0}, 0)
        d.read({"t": 29.0}, 50_000)
        assert d.timers == {}
        d.read({"t": 31.0}, 55_000)
        d.read({"t": 31.0}, 100_000)
        assert d.alarms == []
        d.read({"t": 31.0}, 115_000)
        assert d.alarms == [RAISED]
        d.read({"t": 29.0}, 116_000)
        assert d.alarms == [RAISED, ENDED]

    def test_it_goes_on_after_a_crash(self):
        d = driver(make_rule(HOT, for_s=60.0))
        d.read({"t": 31.0}, 0)
        other = d.recovered()
        other.wait(61)
        assert other.alarms == [RAISED]

    def test_a_timer_set_anew_or_cancelled_means_nothing_when_it_comes(self):
        d = driver(make_rule(HOT, for_s=60.0))
        d.read({"t": 31.0}, 0)
        due_ms = d.timers["held/r1"].due_ms
        d.read({"t": 29.0}, 1000)
        d.send(TimerFired(DEVICE_ID, "held/r1", due_ms))
        assert d.alarms == []
        d.now_ms += 5000
        d.read({"t": 31.0}, 6000)
        d.send(TimerFired(DEVICE_ID, "held/r1", due_ms))
        assert d.alarms == []

    def test_a_rule_that_is_gone_takes_its_timer_with_it(self):
        d = driver(make_rule(HOT, for_s=60.0))
        d.read({"t": 31.0}, 0)
        d.use()
        d.send(RefreshRules(DEVICE_ID))
        assert d.timers == {}
        d.wait(100)
        assert d.alarms == []


class TestCompound:
    def said(self, condition, readings):
        """Whether the alarm is active after each reading, one a second."""
        d = driver(make_rule(condition))
        said = ""
        for n, metrics in enumerate(readings):
            d.read(metrics, n * 1000)
            said += "x" if "r1" in d.device.alarms else "."
        return said

    def test_all_and_any_and_not(self):
        hot, damp = HOT, Threshold("h", Operator.GT, 80.0)
        readings = [{"t": t, "h": h} for t, h in ((20.0, 90.0), (31.0, 90.0), (31.0, 50.0), (20.0, 50.0))]
        assert self.said(All([hot, damp]), readings) == ".x.."
        assert self.said(Either([hot, damp]), readings) == "xxx."
        assert self.said(Not(hot), readings) == "x..x"
        assert self.said(All([Not(damp), Either([hot, Not(hot)])]), readings) == "..xx"

    def test_a_metric_that_a_reading_lacks_counts_with_its_latest_value(self):
        both = All([HOT, Threshold("door", Operator.EQ, True)])
        readings = [{"t": 31.0}, {"door": True}, {"t": 29.0}, {"t": 32.0}, {"door": False}]
        assert self.said(both, readings) == ".x.x."

    def test_what_was_never_sent_cannot_tell(self):
        assert self.said(Either([HOT, Threshold("u", Operator.GT, 0.0)]), [{"t": 31.0}, {"t": 20.0}]) == "xx"
        assert self.said(All([HOT, Threshold("u", Operator.GT, 0.0)]), [{"t": 31.0}, {"t": 20.0}]) == ".."
        assert self.said(All([Threshold("u", Operator.GT, 0.0), HOT]), [{"t": 31.0}]) == "."

    def test_the_alarm_tells_the_first_metrics_value(self):
        d = driver(make_rule(All([HOT, Threshold("h", Operator.GT, 80.0)])))
        d.read({"t": 31.0, "h": 50.0}, 0)
        d.read({"h": 90.0}, 1000)
        assert [(a.metric, a.value, a.detail) for a in d.log.alarms] == [
            ("t", 31.0, "(t > 30.0 and h > 80.0)")
        ]

    def test_held_for_a_while(self):
        d = driver(make_rule(All([HOT, Threshold("h", Operator.GT, 80.0)]), for_s=60.0))
        d.read({"t": 31.0, "h": 90.0}, 0)
        d.read({"h": 91.0}, 59_000)
        assert d.alarms == []
        d.read({"h": 92.0}, 60_000)
        assert d.alarms == [RAISED]


class TestHysteresis:
    def test_the_alarm_ends_only_by_its_own_condition(self):
        d = driver(make_rule(HOT, clear=Threshold("t", Operator.LT, 25.0)))
        said = []
        for n, value in enumerate([29.0, 31.0, 29.0, 26.0, 31.0, 24.0, 29.0]):
            d.read({"t": value}, n * 1000)
            said.append("r1" in d.device.alarms)
        assert said == [False, True, True, True, True, False, False]
        assert d.alarms == [RAISED, ENDED]


class TestSilence:
    def test_it_is_noticed_without_a_reading_ever(self):
        d = driver(make_rule(NoData(600.0)))
        d.wait(599)
        assert d.alarms == []
        d.wait(2)
        assert d.alarms == [RAISED]
        assert d.log.alarms[0].metric == ""
        assert d.log.alarms[0].start_ms == T0_MS + 600_000

    def test_readings_put_it_off_without_a_write_each(self):
        d = driver(make_rule(NoData(600.0)))
        for minute in range(60):
            d.read({"t": 1.0}, minute * 60_000)
            d.wait(60)
        assert d.alarms == []
        assert len(d.log.timers) <= 2 * 7 + 1
        d.wait(541)
        assert d.alarms == [RAISED]

    def test_the_next_reading_ends_it_and_it_can_come_again(self):
        d = driver(make_rule(NoData(600.0)))
        d.wait(601)
        d.read({"t": 1.0}, 601_000)
        assert d.alarms == [RAISED, ENDED]
        d.wait(601)
        assert d.alarms == [RAISED, ENDED, RAISED]

    def test_an_old_recording_is_data_too(self):
        d = driver(make_rule(NoData(600.0)))
        d.wait(500)
        d.read({"t": 1.0}, -3_000_000_000)
        d.wait(200)
        assert d.alarms == []

    def test_it_goes_on_after_a_crash_and_a_pause(self):
        d = driver(make_rule(NoData(600.0)))
        other = d.recovered()
        other.wait(3600)
        assert other.alarms == [RAISED]

    def test_a_rule_made_later_counts_from_when_the_device_was_last_heard(self):
        d = driver()
        d.read({"t": 1.0}, 0)
        d.wait(500)
        d.use(make_rule(NoData(600.0)))
        d.send(RefreshRules(DEVICE_ID))
        d.wait(99)
        assert d.alarms == []
        d.wait(2)
        assert d.alarms == [RAISED]

    def test_a_rule_that_is_gone_ends_its_alarm(self):
        d = driver(make_rule(NoData(600.0)))
        d.wait(601)
        d.use()
        d.read({"t": 1.0}, 700_000)
        assert d.alarms == [RAISED, REMOVED]
        assert d.timers == {}

    def test_a_device_of_another_type_or_retired_is_not_watched(self):
        d = driver(make_rule(NoData(600.0)))
        d.send(Decommission(DEVICE_ID))
        assert d.timers == {}
        d.wait(1000)
        assert d.alarms == []
        scoped = make_rule(NoData(600.0)).spec
        assert scoped.scope.covers(DEVICE_ID, TYPE)
        assert d.send(GetDevice(DEVICE_ID)).value.active_alarms == 0

    def test_a_changed_registration_counts_as_a_sign_of_life(self):
        d = driver(make_rule(NoData(600.0)))
        d.wait(300)
        d.send(Patch(DEVICE_ID, metadata={"a": 1}))
        d.wait(301)
        assert d.alarms == []
        d.wait(300)
        assert d.alarms == [RAISED]


class TestValidation:
    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            (RuleSpec(name="x", condition=NoData(60.0), for_s=5.0), "for_s"),
            (RuleSpec(name="x", condition=NoData(60.0), clear=HOT), "clear"),
            (RuleSpec(name="x", condition=HOT, clear=NoData(60.0)), "clear.metric"),
            (RuleSpec(name="x", condition=HOT, clear=Threshold("u", Operator.LT, 1.0)), "clear.metric"),
            (RuleSpec(name="x", condition=HOT, clear=Range("t", 5.0, 1.0)), "clear.low"),
            (RuleSpec(name="x", condition=All([HOT, NoData(60.0)])), r"conditions\[1\]: no_data"),
            (RuleSpec(name="x", condition=Not(Range("t", 5.0, 1.0))), "condition.condition.low"),
            (RuleSpec(name="x", condition=Not(Not(Not(Not(HOT))))), "nested 4 deep"),
        ],
    )
    def test_what_can_never_work_is_refused(self, spec, says):
        with pytest.raises(InvalidMessage, match=says):
            validate(spec)

    def test_words(self):
        assert describe(RuleSpec(name="x", condition=HOT, for_s=90.0)) == "t > 30.0 for 90 s"
        assert describe(RuleSpec(name="x", condition=NoData(60.0))) == "no data for 60 s"


class TestTimerQueue:
    def test_gives_what_is_due_in_order_once(self):
        queue = TimerQueue()
        rows = [TimerRow(1, f"d{n}", "x", 100 - n, 0) for n in range(5)]
        queue.extend(rows, 1000)
        queue.add(rows)
        assert queue.take_due(97, 10) == [(96, "d4", "x"), (97, "d3", "x")]
        assert queue.take_due(97, 10) == []
        assert [due for due, _, _ in queue.take_due(1000, 2)] == [98, 99]
        assert len(queue) == 1

    def test_leaves_what_lies_beyond_the_horizon_to_the_log(self):
        queue = TimerQueue()
        queue.extend([], 100)
        queue.add(
            [TimerRow(1, "d", "x", 100, 0), TimerRow(1, "d", "y", None, 0), TimerRow(1, "d", "z", 99, 0)]
        )
        assert queue.take_due(1000, 10) == [(99, "d", "z")]

    def test_takes_back_what_had_no_turn(self):
        queue = TimerQueue()
        queue.extend([TimerRow(1, "d", "x", 5, 0)], 100)
        taken = queue.take_due(10, 10)
        queue.put_back(taken)
        queue.put_back(taken)
        assert queue.take_due(10, 10) == taken
