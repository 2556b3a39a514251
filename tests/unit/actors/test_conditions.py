"""Conditions beyond a value and a limit: windows, references, fences, hours, several times, levels."""

import datetime
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.conditions import describe, validate
from sensorium.actors.conditions.hours import opening
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import ChangeTwin, Patch, RefreshRules
from sensorium.actors.profile import Profile, WindowSpec
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import (
    All,
    Changed,
    Circle,
    Geofence,
    Level,
    NoData,
    Not,
    Operator,
    Reference,
    RuleSpec,
    Schedule,
    Severity,
    Threshold,
    Times,
    WindowAggregate,
)
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule
from tests.unit.actors.test_device_alarms import verdicts

HOT = Threshold("t", Operator.GT, 30.0)
RAISED = ("r1", "ACTIVE", None)
ENDED = ("r1", "CLEARED", "condition_ended")


class TestWindowAggregate:
    @pytest.mark.parametrize("function", ["mean", "min", "max", "sum", "count", "stddev"])
    @given(values=st.lists(st.floats(-1e3, 1e3).map(lambda v: round(v, 3)), min_size=1, max_size=8))
    def test_is_the_figure_of_the_window_with_the_reading(self, function, values):
        figures = {
            "mean": statistics.fmean,
            "min": min,
            "max": max,
            "sum": sum,
            "count": len,
            "stddev": statistics.pstdev,
        }
        expected = [figures[function](values[: n + 1]) for n in range(len(values))]
        for limit in {expected[-1] - 1e-3, expected[-1] + 1e-3}:
            condition = WindowAggregate("m", function, Operator.GT, limit)
            said = verdicts(condition, values)
            assert [said[-1]] == [expected[-1] > limit]

    def test_counts_only_what_is_in_the_window(self):
        d = Driver(around_of(make_rule(WindowAggregate("m", "count", Operator.GE, 3.0, 30.0))))
        for second in (0, 20, 60, 70):
            d.read({"m": 1.0}, second * 1000)
        assert d.alarms == []
        d.read({"m": 1.0}, 75_000)
        assert d.alarms == [RAISED]

    def test_waits_for_its_count(self):
        condition = WindowAggregate("m", "mean", Operator.GT, 0.0, min_count=3)
        assert verdicts(condition, [1.0, 1.0, 1.0]) == [False, False, True]

    def test_a_window_of_the_profiles_length_is_the_profiles(self):
        profile = Profile(windows=(WindowSpec(60.0, 20.0),))
        d = Driver(around_of(make_rule(WindowAggregate("m", "max", Operator.GT, 9.0, 60.0)), profile=profile))
        d.read({"m": 1.0}, 0)
        assert [w.spec for w in d.device.windows] == [WindowSpec(60.0, 20.0)]

    def test_its_window_lives_through_a_crash_and_goes_with_the_rule(self):
        d = Driver(around_of(make_rule(WindowAggregate("m", "count", Operator.GE, 4.0, 600.0))))
        for second in range(2):
            d.read({"m": 1.0}, second * 1000)
        snapshot = take_snapshot(d.device)
        d.read({"m": 1.0}, 2000)
        other = d.recovered(snapshot)
        other.read({"m": 1.0}, 3000)
        assert other.alarms == [RAISED]
        other.use()
        other.send(RefreshRules(DEVICE_ID))
        assert [w.spec for w in other.device.windows] == [WindowSpec()]

    def test_two_devices_alike_keep_their_windows_in_one_order(self):
        """What is compiled for one is used for the other, by the windows' places."""
        short = make_rule(WindowAggregate("m", "count", Operator.GE, 2.0, 30.0), "short")
        long = make_rule(WindowAggregate("m", "count", Operator.GE, 2.0, 600.0), "long")
        d = Driver(around_of(long))
        d.read({"m": 1.0}, 0)
        d.use(short, long)
        d.read({"m": 1.0}, 100_000)
        assert d.alarms == [("long", "ACTIVE", None)]


class TestReference:
    def test_to_metadata_that_changes(self):
        rule = make_rule(Threshold("t", Operator.GT, Reference(metadata="limit", factor=2.0, offset=1.0)))
        d = Driver(around_of(rule))
        d.read({"t": 1e6}, 0)
        assert d.alarms == [], "it cannot tell without a limit"
        d.read({"t": 1.0}, 500)
        d.send(Patch(DEVICE_ID, metadata={"limit": 10}))
        d.read({"t": 21.0}, 1000)
        assert d.alarms == []
        d.read({"t": 21.5}, 2000)
        assert d.alarms == [RAISED]
        d.send(Patch(DEVICE_ID, metadata={"limit": "high"}))
        d.read({"t": 0.0}, 3000)
        assert d.alarms == [RAISED], "a text is no limit: it cannot tell"

    def test_to_another_metric_that_the_reading_lacks(self):
        d = Driver(around_of(make_rule(Threshold("a", Operator.GT, Reference(metric="b")))))
        d.read({"b": 5.0}, 0)
        d.read({"a": 4.0}, 1000)
        assert d.alarms == []
        d.read({"a": 6.0}, 2000)
        assert d.alarms == [RAISED]
        d.read({"a": 6.0, "b": 7.0}, 3000)
        assert d.alarms == [RAISED, ENDED]

    def test_to_the_twin(self):
        limit = Reference(twin="desired.limits.high", offset=1.0)
        mode = Threshold("mode", Operator.NE, Reference(twin="reported.mode"))
        rules = [make_rule(Threshold("t", Operator.GT, limit)), make_rule(mode, "r2")]
        d = Driver(around_of(*rules))
        d.read({"t": 1e6, "mode": "x"}, 0)
        assert d.alarms == [], "nothing is desired or reported yet"
        d.read({"t": 1.0, "mode": "eco"}, 500)
        d.send(ChangeTwin(DEVICE_ID, {"limits": {"high": 10}}, {"mode": "eco"}))
        d.read({"t": 11.0, "mode": "eco"}, 1000)
        assert d.alarms == []
        d = d.recovered()
        d.read({"t": 11.5, "mode": "eco"}, 2000)
        assert d.alarms == [RAISED]
        d.read({"t": 11.0, "mode": "full"}, 3000)
        assert d.alarms == [RAISED, ENDED, ("r2", "ACTIVE", None)]
        d.send(ChangeTwin(DEVICE_ID, {"limits": 5}))
        d.read({"t": 1e6, "mode": "full"}, 4000)
        assert len(d.alarms) == 3, "what is not there is no limit"
        assert d.log.alarms[0].detail == "t > twin.desired.limits.high + 1"

    @pytest.mark.parametrize("twin", ["desired", "desired.", "wanted.a", "desired..a"])
    def test_to_no_field_of_the_twin(self, twin):
        rule = make_rule(Threshold("t", Operator.GT, Reference(twin=twin)))
        with pytest.raises(InvalidMessage, match="named as desired"):
            validate(rule.spec)

    def test_of_text(self):
        d = Driver(around_of(make_rule(Threshold("mode", Operator.NE, Reference(metadata="mode")))))
        d.send(Patch(DEVICE_ID, metadata={"mode": "auto"}))
        d.read({"mode": "auto"}, 0)
        assert d.alarms == []
        d.read({"mode": "manual"}, 1000)
        assert d.alarms == [RAISED]

    @pytest.mark.parametrize("value", [True, [1], {"a": 1}, None])
    def test_what_is_no_number_cannot_tell(self, value):
        d = Driver(around_of(make_rule(Threshold("t", Operator.GT, Reference(metadata="limit")))))
        d.send(Patch(DEVICE_ID, metadata={"limit": value}))
        d.read({"t": 1e9}, 0)
        assert d.alarms == []


class TestChanged:
    def test_from_reading_to_reading(self):
        assert verdicts(Changed("m"), ["a", "a", "b", "b"]) == [False, False, True, False]
        assert verdicts(Changed("m"), [False, True, True]) == [False, True, False]

    def test_from_and_to(self):
        assert verdicts(Changed("m", before="a", after="c"), ["a", "b", "c", "a", "c"]) == [False] * 4 + [
            True
        ]


BERLIN = Circle(52.52, 13.405, 1000.0)
FIJI = ((-17.0, 179.5), (-17.0, -179.5), (-18.0, -179.5), (-18.0, 179.5))


def along(condition, *places):
    d = Driver(around_of(make_rule(condition)))
    said = []
    for n, (latitude, longitude) in enumerate(places):
        d.read({"latitude": latitude, "longitude": longitude}, n * 1000)
        said.append(bool(d.device.alarms))
    return said


class TestGeofence:
    # 0.009 degrees of latitude are 1,000.8 m; at this latitude, 0.0148 of longitude are 1,001.4 m.
    NEAR = ((52.52, 13.405), (52.5289, 13.405), (52.52, 13.4196))
    FAR = ((52.52901, 13.405), (52.52, 13.4199), (-52.52, 13.405))

    def test_circle(self):
        assert along(Geofence(BERLIN), *self.NEAR, *self.FAR) == [True] * 3 + [False] * 3
        assert along(Geofence(BERLIN, when="outside"), *self.NEAR, *self.FAR) == [False] * 3 + [True] * 3

    def test_enter_and_leave_hold_at_the_crossing_only(self):
        way = (self.FAR[0], self.NEAR[0], self.NEAR[1], self.FAR[0], self.FAR[1])
        assert along(Geofence(BERLIN, when="enter"), *way) == [False, True, False, False, False]
        assert along(Geofence(BERLIN, when="leave"), *way) == [False, False, False, True, False]

    def test_polygon_across_the_180th_meridian(self):
        inside = ((-17.5, 179.9), (-17.5, -179.9), (-17.01, 180.0))
        outside = ((-17.5, 179.4), (-17.5, -179.4), (-16.9, 180.0), (-17.5, 0.0))
        assert along(Geofence(polygon=FIJI), *inside, *outside) == [True] * 3 + [False] * 4

    def test_a_hollow_is_outside(self):
        corners = (
            (0.0, 0.0),
            (0.0, 3.0),
            (3.0, 3.0),
            (3.0, 2.0),
            (1.0, 2.0),
            (1.0, 1.0),
            (3.0, 1.0),
            (3.0, 0.0),
        )
        assert along(Geofence(polygon=corners), (0.5, 1.5), (2.0, 1.5), (2.0, 2.5)) == [True, False, True]

    def test_a_place_that_is_none_cannot_tell(self):
        assert along(Geofence(BERLIN), self.NEAR[0], (952.0, 13.4)) == [True, True]


class TestSchedule:
    def at(self, schedule, text):
        return opening(schedule)(round(datetime.datetime.fromisoformat(text).timestamp() * 1000))

    def test_weekly_hours_by_the_clock_of_the_zone(self):
        office = Schedule("Europe/Berlin", ("mon", "tue", "wed", "thu", "fri"), "08:00", "17:30")
        assert self.at(office, "2026-11-23T08:00:00+01:00")
        assert not self.at(office, "2026-11-23T07:59:59+01:00")
        assert not self.at(office, "2026-11-23T17:30:00+01:00")
        assert not self.at(office, "2026-11-22T12:00:00+01:00"), "a Sunday"
        assert self.at(office, "2026-07-01T06:00:00+00:00"), "summer time"

    def test_hours_over_midnight_belong_to_the_day_they_begin(self):
        night = Schedule("UTC", ("fri",), "22:00", "06:00", ("2026-12-25",))
        assert self.at(night, "2026-11-27T22:00:00+00:00")
        assert self.at(night, "2026-11-28T05:59:00+00:00")
        assert not self.at(night, "2026-11-28T06:00:00+00:00")
        assert not self.at(night, "2026-11-28T22:30:00+00:00")
        assert not self.at(night, "2026-12-26T03:00:00+00:00"), "it began on a holiday"

    def test_a_whole_day(self):
        day = Schedule("UTC", ("mon",))
        assert self.at(day, "2026-11-23T00:00:00+00:00")
        assert self.at(day, "2026-11-23T23:59:59+00:00")
        assert not self.at(day, "2026-11-24T00:00:00+00:00")

    def test_as_a_part(self):
        closed = Not(Schedule("UTC", start="08:00", end="17:00"))
        d = Driver(around_of(make_rule(All([HOT, closed]))))
        night_ms = 86_400_000 - T0_MS % 86_400_000
        d.read({"t": 31.0}, night_ms + 12 * 3_600_000)
        assert d.alarms == []
        d.read({"t": 31.0}, night_ms + 20 * 3_600_000)
        assert d.alarms == [RAISED]

    @pytest.mark.parametrize("time_ms", [-(10**17), 10**17])
    def test_beyond_the_calendar_it_cannot_tell(self, time_ms):
        assert opening(Schedule("Asia/Tokyo"))(time_ms) is None


class TestTimes:
    RULE = make_rule(HOT, times=Times(3, 60.0))

    def test_so_many_within_the_time(self):
        d = Driver(around_of(self.RULE))
        for second, value in ((0, 31.0), (10, 31.0), (20, 29.0), (59, 31.0)):
            d.read({"t": value}, second * 1000)
        assert d.alarms == [RAISED]
        assert d.timers == {}, "what was counted is forgotten"
        d.read({"t": 29.0}, 60_000)
        assert d.alarms == [RAISED, ENDED]

    def test_not_when_they_are_farther_apart(self):
        d = Driver(around_of(self.RULE))
        for second in (0, 31, 62, 93):
            d.now_ms = T0_MS + second * 1000
            d.wait(0)
            d.read({"t": 31.0}, second * 1000)
        assert d.alarms == []
        assert len(d.timers) == 2, "only those within the time are kept"

    def test_it_goes_on_after_a_crash(self):
        d = Driver(around_of(self.RULE))
        d.read({"t": 31.0}, 0)
        d.read({"t": 31.0}, 1000)
        other = d.recovered()
        other.read({"t": 31.0}, 2000)
        assert other.alarms == [RAISED]

    def test_a_rule_that_is_gone_takes_its_count_with_it(self):
        d = Driver(around_of(self.RULE))
        d.read({"t": 31.0}, 0)
        d.use(make_rule(HOT, version=2))
        d.send(RefreshRules(DEVICE_ID))
        assert d.timers == {}


class TestLevels:
    RULE = make_rule(
        HOT,
        severity=Severity.WARNING,
        levels=(
            Level(Severity.MAJOR, Threshold("t", Operator.GT, 40.0)),
            Level(Severity.CRITICAL, Threshold("t", Operator.GT, 50.0)),
        ),
    )

    def severities(self, driver):
        return [(alarm.state, alarm.severity, alarm.value) for alarm in driver.log.alarms]

    def test_the_worst_that_holds_counts_and_changes(self):
        d = Driver(around_of(self.RULE))
        for n, value in enumerate((31.0, 45.0, 46.0, 55.0, 35.0, 20.0)):
            d.read({"t": value}, n * 1000)
        assert self.severities(d) == [
            ("ACTIVE", "warning", 31.0),
            ("ACTIVE", "major", 45.0),
            ("ACTIVE", "critical", 55.0),
            ("ACTIVE", "warning", 35.0),
            ("CLEARED", "warning", 35.0),
        ]
        assert len({alarm.alarm_id for alarm in d.log.alarms}) == 1
        kinds = [event.kind for event in d.log.events if event.kind.startswith("alarm")]
        assert kinds == ["alarm_raised", "alarm_changed", "alarm_changed", "alarm_changed", "alarm_cleared"]

    def test_from_the_start(self):
        d = Driver(around_of(self.RULE))
        d.read({"t": 60.0}, 0)
        assert self.severities(d) == [("ACTIVE", "critical", 60.0)]

    def test_when_the_clock_tells(self):
        spec = self.RULE.spec
        d = Driver(around_of(make_rule(spec.condition, levels=spec.levels, for_s=30.0)))
        d.read({"t": 45.0}, 0)
        d.wait(31)
        assert self.severities(d) == [("ACTIVE", "major", 45.0)]


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"condition": Threshold("t", Operator.GT, Reference())}, "condition.value"),
        ({"condition": Threshold("t", Operator.GT, Reference("a", "b"))}, "condition.value"),
        ({"condition": WindowAggregate("t", "median", Operator.GT, 1.0)}, "condition.function"),
        ({"condition": WindowAggregate("t", "mean", Operator.GT, 1.0, 0.0)}, "condition.window_s"),
        ({"condition": Changed("t", 1.0, 1.0)}, "condition.after"),
        ({"condition": Geofence()}, "condition.circle"),
        ({"condition": Geofence(BERLIN, FIJI)}, "condition.circle"),
        ({"condition": Geofence(BERLIN, longitude="latitude")}, "condition.longitude"),
        ({"condition": Schedule()}, "condition"),
        ({"condition": All([Schedule(), HOT])}, "condition"),
        ({"condition": All([HOT, Schedule("Mars/Base")])}, "condition.conditions[1].timezone"),
        (
            {"condition": All([HOT, Schedule(holidays=("2026-02-30",))])},
            "condition.conditions[1].holidays[0]",
        ),
        ({"condition": All([HOT, Schedule(start="25:00")])}, "condition.conditions[1].start"),
        ({"condition": All([HOT, Not(NoData(5.0))])}, "condition.conditions[1].condition"),
        ({"condition": HOT, "times": Times(2, 5.0), "for_s": 1.0}, "times"),
        ({"condition": HOT, "times": Times(1, 5.0)}, "times.count"),
        ({"condition": NoData(5.0), "times": Times(2, 5.0)}, "times"),
        ({"condition": HOT, "levels": (Level(Severity.WARNING, HOT),)}, "levels[0].severity"),
        ({"condition": HOT, "levels": (Level(Severity.MAJOR, NoData(5.0)),)}, "levels[0].condition"),
    ],
)
def test_a_rule_that_can_never_work_is_refused_with_its_place(spec, place):
    with pytest.raises(InvalidMessage) as refused:
        validate(RuleSpec(name="x", **spec))
    assert str(refused.value).partition(": ")[0] == place


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"condition": WindowAggregate("t", "mean", Operator.GT, 4.0, 900.0)}, "mean of t over 900 s > 4.0"),
        (
            {"condition": Threshold("t", Operator.GT, Reference("limit", None, 2.0, -1.0))},
            "t > 2 * metadata.limit - 1",
        ),
        ({"condition": Threshold("t", Operator.GT, Reference(metric="u"))}, "t > u"),
        ({"condition": Changed("on", False, True)}, "on changed from False to True"),
        ({"condition": Geofence(BERLIN, when="leave")}, "device left 1000 m around 52.52, 13.405"),
        ({"condition": HOT, "times": Times(3, 60.0)}, "t > 30.0, 3 times within 60 s"),
        (
            {"condition": All([HOT, Schedule("UTC", ("sat", "sun"), "08:00", "17:00")])},
            "(t > 30.0 and between 08:00 and 17:00 UTC on sat, sun)",
        ),
    ],
)
def test_words(spec, words):
    spec = RuleSpec(name="x", **spec)
    validate(spec)
    assert describe(spec) == words
