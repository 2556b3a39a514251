"""Rules at a device: alarms are raised once, cleared once, and never without a rule that could clear them."""

import math

import msgspec
import pytest

from sensorium.actors.conditions import describe, validate
from sensorium.actors.device import Device, Shard
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Decommission, GetDevice, Patch, Reading, RefreshRules, Register
from sensorium.actors.metrics import metric_set
from sensorium.actors.profile import Profile, WindowSpec
from sensorium.actors.records import Alarm, Commit
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import (
    Operator,
    Range,
    RateOfChange,
    RuleSpec,
    Scope,
    Severity,
    Threshold,
    ZScore,
)
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of, make_rule

HOT = Threshold("t", Operator.GT, 30.0)
RAISED = ("r1", "ACTIVE", None)
ENDED = ("r1", "CLEARED", "condition_ended")
REMOVED = ("r1", "CLEARED", "rule_removed")


def verdicts(condition, metrics, step_ms=1000, profile=None):
    """Whether the rule's alarm is active after each value of `m`, one each second."""
    d = Driver(around_of(make_rule(condition), profile=profile))
    said = []
    for n, value in enumerate(metrics):
        d.read({"m": value}, n * step_ms)
        said.append("r1" in d.device.alarms)
    return said


class TestConditions:
    @pytest.mark.parametrize(
        ("operator", "expected"),
        [(">", "001"), (">=", "011"), ("<", "100"), ("<=", "110"), ("==", "010"), ("!=", "101")],
    )
    def test_threshold_operators(self, operator, expected):
        said = verdicts(Threshold("m", Operator(operator), 2.0), [1.0, 2.0, 3.0])
        assert said == [c == "1" for c in expected]

    @pytest.mark.parametrize("limit", [True, False, "on"])
    def test_threshold_of_another_kind_is_never_met(self, limit):
        assert verdicts(Threshold("m", Operator.NE, limit), [0.0, 1.0]) == [False, False]

    def test_threshold_on_true_and_false(self):
        assert verdicts(Threshold("m", Operator.EQ, True), [False, True, False]) == [False, True, False]
        assert verdicts(Threshold("m", Operator.EQ, 1.0), [True]) == [False]

    def test_threshold_on_text(self):
        assert verdicts(Threshold("m", Operator.NE, "ok"), ["ok", "fault", "ok"]) == [False, True, False]

    def test_range(self):
        values = [9.9, 10.0, 20.0, 20.1]
        assert verdicts(Range("m", 10.0, 20.0), values) == [True, False, False, True]
        assert verdicts(Range("m", 10.0, 20.0, inside=True), values) == [False, True, True, False]

    @pytest.mark.parametrize(
        ("direction", "expected"),
        [
            ("any", [False, True, True, False]),
            ("up", [False, True, False, False]),
            ("down", [False, False, True, False]),
        ],
    )
    def test_rate_of_change(self, direction, expected):
        condition = RateOfChange("m", 1.0, direction=direction)
        assert verdicts(condition, [0.0, 3.0, 0.0, 2.0], step_ms=2000) == expected

    def test_rate_of_change_spans_readings_without_the_metric(self):
        d = Driver(around_of(make_rule(RateOfChange("m", 1.0))))
        d.read({"m": 0.0, "other": 1.0}, 0)
        d.read({"other": 1.0}, 9000)
        d.read({"m": 5.0}, 10_000)
        assert d.alarms == []

    def test_rate_of_change_cannot_tell_at_one_time(self):
        d = Driver(around_of(make_rule(RateOfChange("m", 1.0))))
        d.read({"m": 0.0}, 0)
        d.read({"m": 9.0}, 0)
        assert d.alarms == []
        d.read({"m": 99.0}, 1000)
        d.read({"m": 99.0}, 1000)
        assert d.alarms == [RAISED]
        d.read({"m": 99.0}, 2000)
        assert d.alarms == [RAISED, ENDED]

    def test_z_score_looks_at_the_window_before_the_reading(self):
        values = [10.0, 12.0] * 5
        assert verdicts(ZScore("m", 3.0, min_count=10), [*values, 14.1, 11.0]) == [False] * 10 + [True, False]
        assert verdicts(ZScore("m", 3.0, min_count=10), [*values, 13.9]) == [False] * 11

    def test_z_score_waits_for_its_count(self):
        assert verdicts(ZScore("m", 3.0, min_count=11), [10.0, 12.0] * 5 + [99.0]) == [False] * 11

    def test_z_score_counts_only_what_is_in_the_window_now(self):
        d = Driver(around_of(make_rule(ZScore("m", 3.0, min_count=10))))
        for n in range(30):
            d.read({"m": 10.0 + n % 2}, n * 1000)
        d.read({"m": 99.0}, 3_600_000)
        assert d.alarms == []

    def test_z_score_of_a_constant_is_any_departure(self):
        assert verdicts(ZScore("m", 3.0, min_count=3), [5.0, 5.0, 5.0, 5.0, 5.1])[-2:] == [False, True]

    def test_z_score_over_a_window_of_its_own(self):
        profile = Profile(windows=(WindowSpec(), WindowSpec(10.0, 1.0)))
        values = [0.0, 100.0] * 20 + [50.0, 51.0] * 6 + [60.0]
        assert verdicts(ZScore("m", 3.0, None, 5), values, profile=profile)[-1] is False
        assert verdicts(ZScore("m", 3.0, 10.0, 5), values, profile=profile)[-1] is True

    def test_z_score_over_a_window_that_the_profile_lacks_has_the_device_keep_it(self):
        values = [0.0, 100.0] * 20 + [50.0, 51.0] * 6 + [60.0]
        assert verdicts(ZScore("m", 3.0, 10.0, 5), values)[-1] is True

    @pytest.mark.parametrize(
        "condition", [Range("m", 0.0, 1.0), RateOfChange("m", 0.0), ZScore("m", min_count=2)]
    )
    def test_of_numbers_are_never_met_by_text(self, condition):
        assert not any(verdicts(condition, ["a", "b", "c", "d"]))

    @pytest.mark.parametrize(
        ("condition", "words"),
        [
            (Threshold("m", Operator.GT, True), r"condition\.operator"),
            (Threshold("m", Operator.LE, "a"), r"condition\.operator"),
            (Range("m", 2.0, 1.0), r"condition\.low"),
            (RateOfChange("m", 1.0, direction="sideways"), r"condition\.direction"),
        ],
    )
    def test_that_can_never_work_are_refused(self, condition, words):
        with pytest.raises(InvalidMessage, match=words):
            validate(RuleSpec(name="x", condition=condition))

    @pytest.mark.parametrize(
        ("condition", "words"),
        [
            (HOT, "t > 30.0"),
            (Range("m", 1.0, 2.0), "m outside 1.0 … 2.0"),
            (Range("m", 1.0, 2.0, inside=True), "m inside 1.0 … 2.0"),
            (RateOfChange("m", 1.0, direction="down"), "m changing down > 1.0 a second"),
            (RateOfChange("m", 1.0), "m changing > 1.0 a second"),
            (ZScore("m", 4.0), "m more than 4.0 standard deviations off its window's mean"),
        ],
    )
    def test_have_words(self, condition, words):
        spec = RuleSpec(name="x", condition=condition)
        validate(spec)
        assert describe(spec) == words


class TestAlarms:
    def test_one_is_raised_and_cleared_once(self):
        d = Driver(around_of(make_rule(HOT, severity=Severity.MAJOR, version=3)))
        for n, value in enumerate([20.0, 31.0, 32.0, 33.0, 29.0, 28.0]):
            d.read({"t": value}, n)
        assert d.alarms == [RAISED, ENDED]
        raised, cleared = d.log.alarms
        assert raised == Alarm(
            raised.alarm_id,
            DEVICE_ID,
            TYPE,
            "r1",
            "rule r1",
            3,
            "major",
            "ACTIVE",
            "t",
            31.0,
            "t > 30.0",
            T0_MS + 1,
            last_met_ms=T0_MS + 1,
            last_reading_ms=T0_MS + 1,
        )
        assert cleared == msgspec.structs.replace(
            raised,
            state="CLEARED",
            end_ms=T0_MS + 4,
            end_value=29.0,
            end_reason="condition_ended",
            met=3,
            readings=4,
            last_met_ms=T0_MS + 3,
            last_reading_ms=T0_MS + 4,
        )
        events = [(e.kind, e.time_ms - T0_MS) for e in d.log.events[1:]]
        assert events == [("alarm_raised", 1), ("alarm_cleared", 4)]
        assert msgspec.json.decode(d.log.events[1].body, type=Alarm) == raised

    def test_follows_its_reading_in_the_shard(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"t": 31.0}, 0)
        assert d.log.events[-1].offset == d.log.readings[-1].offset + 1

    def test_ids_are_the_same_wherever_they_are_made(self):
        ids = []
        for head in (0, 99):
            d = Driver(around_of(make_rule(HOT)), head=head)
            for n, value in enumerate([31.0, 20.0, 31.0]):
                d.read({"t": value}, n)
            ids.append([a.alarm_id for a in d.log.alarms])
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 2

    def test_every_rule_has_its_own(self):
        d = Driver(around_of(make_rule(HOT), make_rule(Threshold("t", Operator.GT, 40.0), "r2")))
        for n, value in enumerate([35.0, 45.0, 35.0, 25.0]):
            d.read({"t": value}, n)
        assert [a[:2] for a in d.alarms] == [
            ("r1", "ACTIVE"),
            ("r2", "ACTIVE"),
            ("r2", "CLEARED"),
            ("r1", "CLEARED"),
        ]

    def test_are_counted_in_the_info(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"t": 31.0}, 0)
        assert d.send(GetDevice(DEVICE_ID)).value.active_alarms == 1

    def test_only_the_newest_readings_are_judged(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"t": 20.0}, 1000)
        d.read({"t": 99.0}, 999)
        d.read({"t": 99.0}, -10_000_000)
        assert d.alarms == []
        d.read({"t": 99.0}, 1000)
        d.read({"t": 1.0}, 0)
        assert d.alarms == [RAISED]

    def test_a_reading_without_the_metric_says_nothing(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"t": 31.0, "h": 1.0}, 0)
        d.read({"h": 1.0}, 1)
        assert d.alarms == [RAISED]

    def test_a_metric_that_comes_later_is_watched(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"h": 1.0}, 0)
        d.read({"t": 31.0}, 1)
        assert d.alarms == [RAISED]

    def test_a_duplicate_raises_nothing_again(self):
        d = Driver(around_of(make_rule(HOT)))
        for time_ms, value, key in ((0, 31.0, 1), (1, 20.0, 2), (0, 31.0, 1), (1, 20.0, 2)):
            d.read({"t": value}, time_ms, key=key)
        assert d.alarms == [RAISED, ENDED]

    def test_infinities_of_the_window_raise_nothing(self):
        d = Driver(around_of(make_rule(ZScore("m", min_count=2))))
        for n, value in enumerate([1.7e308, -1.7e308] * 40):
            d.read({"m": value}, n * 20_000)
        assert all(math.isfinite(a.value) for a in d.log.alarms)


class TestRuleChanges:
    def hot(self) -> Driver:
        d = Driver(around_of(make_rule(HOT)))
        d.now_ms += 500
        d.read({"t": 31.0, "h": 1.0}, 0)
        assert d.alarms == [RAISED]
        return d

    @pytest.mark.parametrize(
        "rules",
        [
            [],
            [make_rule(HOT, enabled=False, version=2)],
            [make_rule(HOT, scope=Scope(device_type="tank"), version=2)],
            [make_rule(HOT, scope=Scope(device_id="other"), version=2)],
            [make_rule(Threshold("h", Operator.LT, 30.0), version=2)],
            [make_rule(Threshold("nothing", Operator.LT, 30.0), version=2)],
            [make_rule(Threshold("t", Operator.EQ, "text"), version=2)],
        ],
        ids=["removed", "disabled", "type", "device", "metric", "no metric", "kind"],
    )
    @pytest.mark.parametrize("at", ["refresh", "reading"])
    def test_an_alarm_ends_with_the_rule_that_could_clear_it(self, rules, at):
        d = self.hot()
        d.use(*rules)
        if at == "refresh":
            d.send(RefreshRules(DEVICE_ID))
        else:
            d.read({"t": 31.0}, 1)
        assert d.alarms[:2] == [RAISED, REMOVED]
        assert d.log.alarms[1].end_ms == d.now_ms
        assert d.log.alarms[1].end_value is None
        d.send(RefreshRules(DEVICE_ID))
        assert len([a for a in d.alarms if a == REMOVED]) == 1

    def test_a_replaced_rule_goes_on_with_its_alarm(self):
        d = self.hot()
        d.use(make_rule(Threshold("t", Operator.GT, 25.0), version=2))
        d.send(RefreshRules(DEVICE_ID))
        d.read({"t": 28.0}, 1)
        assert d.alarms == [RAISED]
        d.read({"t": 24.0}, 2)
        assert d.alarms == [RAISED, ENDED]

    def test_a_new_book_with_the_same_rule_changes_nothing(self):
        d = self.hot()
        d.use(make_rule(HOT))
        d.read({"t": 32.0}, 1)
        assert d.alarms == [RAISED]

    def test_an_alarm_never_ends_before_its_start(self):
        d = Driver(around_of(make_rule(HOT)))
        d.read({"t": 31.0}, 60_000)  # the device's clock runs ahead of ours
        d.use()
        d.send(RefreshRules(DEVICE_ID))
        assert d.log.alarms[-1].end_ms == d.log.alarms[-1].start_ms

    def test_a_new_type_takes_its_rules(self):
        d = Driver(
            around_of(
                make_rule(HOT, scope=Scope(device_type=TYPE)),
                make_rule(HOT, "r2", scope=Scope(device_type="tank")),
            )
        )
        d.read({"t": 31.0}, 0)
        d.send(Patch(DEVICE_ID, "tank"))
        assert d.alarms == [RAISED, REMOVED]
        d.read({"t": 31.0}, 1)
        assert d.alarms[-1] == ("r2", "ACTIVE", None)

    def test_decommissioning_clears_and_reviving_watches_again(self):
        d = self.hot()
        d.send(Decommission(DEVICE_ID))
        assert d.alarms[-1] == ("r1", "CLEARED", "device_decommissioned")
        d.send(RefreshRules(DEVICE_ID))
        d.send(Register(DEVICE_ID, TYPE))
        d.read({"t": 31.0}, 1)
        assert d.alarms[-1] == RAISED


class TestScopes:
    @pytest.mark.parametrize(
        ("scope", "covered"),
        [
            (Scope(), True),
            (Scope(device_id=DEVICE_ID), True),
            (Scope(device_id="sensor-002"), False),
            (Scope(device_type=TYPE), True),
            (Scope(device_type="tank"), False),
            (Scope(device_id=DEVICE_ID, device_type=TYPE), True),
            (Scope(device_id=DEVICE_ID, device_type="tank"), False),
        ],
    )
    def test_watch_whom_they_name(self, scope, covered):
        d = Driver(around_of(make_rule(HOT, scope=scope)))
        d.read({"t": 31.0}, 0)
        assert bool(d.alarms) is covered
        assert bool(d.device.covering(d.around)) is covered

    def test_rules_of_one_device_do_not_reach_its_siblings(self):
        around = around_of(make_rule(HOT, scope=Scope(device_id=DEVICE_ID)), make_rule(HOT, "all"))
        d = Driver(around)
        sibling = Device("sensor-002", Shard(0, 0))
        effects = Commit()
        sibling.handle(Register("sensor-002", TYPE), T0_MS, around, effects)
        d.read({"t": 31.0}, 0)
        reading = Reading("sensor-002", T0_MS, T0_MS, 1, 0, [31.0])
        sibling.read(reading, ("t",), T0_MS, around, effects)
        assert {a.rule_id for a in d.log.alarms} == {"r1", "all"}
        assert {a.rule_id for a in effects.alarms} == {"all"}

    def test_metadata_chooses_and_its_change_counts_at_once(self):
        scope = Scope(device_type=TYPE, metadata={"group": {"hall": 3}})
        d = Driver(around_of(make_rule(HOT, scope=scope)))
        d.read({"t": 31.0}, 0)
        assert not d.alarms
        d.send(Patch(DEVICE_ID, metadata={"group": {"hall": 3, "side": "left"}}))
        d.read({"t": 31.0}, 60_000)
        assert set(d.device.alarms) == {"r1"}
        d.send(Patch(DEVICE_ID, metadata={"group": None}))
        assert not d.device.alarms
        assert d.log.alarms[-1].end_reason == "rule_removed"

    def test_devices_alike_share_what_is_compiled_for_their_metadata(self):
        scope = Scope(metadata={"group": "a"})
        book = RuleBook([make_rule(HOT, scope=scope), make_rule(HOT, "all")])
        metrics = metric_set(("t",), "n")
        grouped = book.checks("a", TYPE, metrics, (), {"group": "a", "x": 1})
        assert grouped is book.checks("b", TYPE, metrics, (), {"group": "a", "x": 2})
        assert [check.rule_id for check in grouped.each] == ["r1", "all"]
        assert [c.rule_id for c in book.checks("c", TYPE, metrics, (), {"group": "b"}).each] == ["all"]

    def test_a_scope_is_bounded(self):
        spec = make_rule(HOT, scope=Scope(metadata={"x": "y" * 5_000})).spec
        with pytest.raises(InvalidMessage, match=r"scope\.metadata"):
            validate(spec)


def test_a_book_compiles_once_for_devices_alike():
    book = RuleBook([make_rule(HOT)])
    metrics = metric_set(("t",), "n")
    assert book.checks("a", TYPE, metrics, ()) is book.checks("b", TYPE, metrics, ())
    assert book.checks("a", "tank", metrics, ()) is not book.checks("b", TYPE, metrics, ())
