"""Metrics that rules derive at a device: worked out in its turn, never at a replay."""

import pytest

from sensorium.actors.actions import DeriveAction, WebhookAction
from sensorium.actors.conditions import validate
from sensorium.actors.conditions.recursion import check_recursion, recursion
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import RefreshRules
from sensorium.actors.profile import Profile
from sensorium.actors.rules import (
    All,
    Always,
    Formula,
    NoData,
    Operator,
    RuleSpec,
    Scope,
    Threshold,
    WindowAggregate,
)
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule

ALWAYS = Always()


def derive(metric, formula, rule_id="d1", condition=ALWAYS, **spec):
    return make_rule(condition, rule_id, actions=(DeriveAction(metric=metric, formula=formula),), **spec)


def driver(*rules, profile=None):
    return Driver(around_of(*rules, profile=profile))


def rows(d):
    return [dict(zip(r.metric_set.names, r.values, strict=False)) for r in d.log.readings]


def failures(d):
    return [event for event in d.log.events if event.kind == "rule_failed"]


class TestStored:
    def test_with_the_reading_and_among_the_latest_values(self):
        d = driver(derive("efficiency", "out / into"))
        for second in range(3):
            d.read({"out": 3.0 + second, "into": 4.0}, second * 1000)
        assert rows(d) == [{"out": 3.0 + n, "into": 4.0, "efficiency": (3.0 + n) / 4.0} for n in range(3)]
        assert d.latest == {"out": 5.0, "into": 4.0, "efficiency": 1.25}
        assert d.alarms == []

    def test_used_by_rules_windows_and_other_derivations(self):
        mean = WindowAggregate("double", "mean", Operator.GT, 5.0)
        d = driver(
            derive("fourfold", "double * 2", "d2"),
            derive("double", "a * 2", "d1"),
            make_rule(Threshold("fourfold", Operator.GT, 15.0), "high"),
            make_rule(mean, "mean"),
        )
        d.read({"a": 2.0}, 0)
        assert d.alarms == []
        d.read({"a": 4.0}, 1000)
        assert d.alarms == [("high", "ACTIVE", None), ("mean", "ACTIVE", None)]
        assert d.device.window("fourfold").mean == 12.0

    def test_over_a_window(self):
        d = driver(derive("mean", "avg(a, '1m') - before(a)"))
        d.read({"a": 2.0}, 0)
        d.read({"a": 4.0}, 1000)
        assert [row.get("mean") for row in rows(d)] == [None, 1.0]

    def test_while_the_condition_holds(self):
        rule = derive("loss", "a - 10", condition=Threshold("a", Operator.GT, 10.0))
        d = driver(rule)
        for n, a in enumerate((5.0, 12.0, 9.0)):
            d.read({"a": a}, n * 1000)
        assert [row["loss"] for row in rows(d)] == [None, 2.0, None]
        assert [state for _, state, _ in d.alarms] == ["ACTIVE", "CLEARED"]

    def test_a_metric_that_the_device_sends_stays_as_sent(self):
        d = driver(derive("sum", "a + b"))
        d.read({"a": 1.0, "b": 2.0}, 0)
        d.read({"a": 1.0, "b": 2.0, "sum": 99.0}, 1000)
        assert [row["sum"] for row in rows(d)] == [3.0, 99.0]

    def test_a_reading_with_part_of_it_goes_with_the_newest_values(self):
        d = driver(derive("sum", "a + b"))
        d.read({"a": 1.0}, 0)
        d.read({"b": 2.0}, 1000)
        d.read({"c": 9.0}, 2000)
        d.read({"a": 5.0}, 3000)
        assert [row.get("sum") for row in rows(d)] == [None, 3.0, None, 7.0]

    def test_a_late_reading_goes_with_its_own_values_only(self):
        d = driver(derive("sum", "a + b"), derive("mean", "avg(a)", "d2"))
        d.read({"a": 1.0, "b": 2.0}, 10_000)
        d.read({"a": 5.0, "b": 5.0}, 9_000)
        d.read({"a": 7.0}, 8_000)
        assert [(row.get("sum"), row.get("mean")) for row in rows(d)] == [
            (3.0, 1.0),
            (10.0, None),
            (None, None),
        ]

    def test_a_rule_that_is_taken_away_derives_no_more(self):
        d = driver(derive("double", "a * 2"))
        for n in range(2):
            d.read({"a": 1.0}, n * 1000)
        d.use()
        for n in range(2, 4):
            d.read({"a": 1.0}, n * 1000)
        d.use(derive("double", "a * 3"))
        d.send(RefreshRules(DEVICE_ID))
        d.read({"a": 1.0}, 4000)
        d.read({"a": 1.0, "new": 1.0}, 5000)
        d.read({"a": 1.0}, 6000)
        assert [row["double"] for row in rows(d)] == [2.0, 2.0, None, None, 3.0, 3.0, 3.0]

    def test_off_and_out_of_scope_it_derives_nothing(self):
        d = driver(derive("x", "a", enabled=False), derive("y", "a", "d2", scope=Scope(device_type="other")))
        d.read({"a": 1.0}, 0)
        assert rows(d) == [{"a": 1.0}]


class TestReplay:
    def test_gives_the_same_state_and_works_nothing_out(self):
        d = driver(derive("ratio", "a / b"), make_rule(Threshold("ratio", Operator.GT, 2.0), "high"))
        for n, b in enumerate((4.0, 0.0, 2.0, 8.0)):
            d.read({"a": 8.0, "b": b}, n * 1000)
        # Another rule by now: what is stored counts.
        other = d.recovered(around=around_of(derive("ratio", "a * b")))
        assert other.latest == d.latest
        assert other.device.window("ratio") == d.device.window("ratio")
        assert len(other.log.events) == len(d.log.events)

    def test_goes_on_after_a_crash(self):
        d = driver(derive("ratio", "a / b"))
        for n in range(3):
            d.read({"a": 8.0, "b": 2.0}, n * 1000)
        other = d.recovered()
        other.read({"a": 8.0, "b": 4.0}, 4000)
        assert rows(other)[-1] == {"a": 8.0, "b": 4.0, "ratio": 2.0}


class TestContained:
    def test_a_division_by_zero_is_told_once_an_hour_and_others_go_on(self):
        d = driver(derive("ratio", "a / b"), derive("double", "a * 2", "d2"))
        for second in range(5):
            d.read({"a": 1.0, "b": 0.0}, second * 1000)
        assert [row.get("ratio") for row in rows(d)] == [None] * 5
        assert [row["double"] for row in rows(d)] == [2.0] * 5
        (event,) = failures(d)
        assert event.time_ms == T0_MS
        assert b'"rule_id":"d1"' in event.body
        assert b"division by zero" in event.body
        other = d.recovered()
        other.read({"a": 1.0, "b": 0.0}, 5000)
        assert len(failures(other)) == 1
        d.wait(3600)
        d.read({"a": 1.0, "b": 0.0}, 6000)
        assert len(failures(d)) == 2

    def test_a_new_version_that_fails_is_told_anew(self):
        d = driver(derive("ratio", "a / b"))
        d.read({"a": 1.0, "b": 0.0}, 0)
        d.use(make_rule(ALWAYS, "d1", 2, actions=(DeriveAction(metric="ratio", formula="2 * a / b"),)))
        d.read({"a": 1.0, "b": 0.0}, 1000)
        assert len(failures(d)) == 2

    def test_numbers_without_bounds_are_not_stored(self):
        d = driver(derive("huge", "a * a"))
        d.read({"a": 1e200}, 0)
        assert rows(d) == [{"a": 1e200, "huge": None}]
        assert b"no finite number" in failures(d)[0].body

    def test_a_condition_that_fails_leaves_its_alarm_as_it_is(self):
        fraction = Formula("a / b", Operator.GT, 1.0)
        d = driver(make_rule(fraction, "f"), make_rule(Threshold("a", Operator.GT, 3.0), "t"))
        d.read({"a": 2.0, "b": 1.0}, 0)
        d.read({"a": 4.0, "b": 0.0}, 1000)
        assert d.alarms == [("f", "ACTIVE", None), ("t", "ACTIVE", None)]
        assert len(failures(d)) == 1
        d.read({"a": 4.0, "b": 8.0}, 2000)
        assert d.alarms[-1] == ("f", "CLEARED", "condition_ended")

    def test_a_part_that_fails_fails_the_whole(self):
        whole = All([Threshold("a", Operator.GT, 0.0), Formula("a / b", Operator.GT, 1.0)])
        d = driver(make_rule(whole, "w"))
        d.read({"a": 2.0, "b": 0.0}, 0)
        assert (d.alarms, len(failures(d))) == ([], 1)

    def test_metrics_derived_from_each_other_in_spite_of_all_are_left_out(self):
        d = driver(derive("x", "y + a"), derive("y", "x + a", "d2"), derive("z", "a", "d3"))
        d.read({"a": 1.0}, 0)
        d.read({"a": 1.0, "x": 1.0}, 1000)
        assert [row.get("y") for row in rows(d)] == [None, None]
        assert rows(d)[1]["z"] == 1.0
        assert len(failures(d)) == 2

    def test_the_profiles_bound_on_metrics_holds(self):
        d = driver(derive("x", "a"), profile=Profile(max_metrics=1))
        d.read({"a": 1.0}, 0)
        assert rows(d) == [{"a": 1.0}]
        d.read({"a": 1.0}, 1000)
        assert b"more than 1 metrics" in failures(d)[0].body

    def test_a_text_of_the_same_name_is_none_of_its_business(self):
        d = driver(derive("x", "a"))
        d.read({"a": 1.0, "x": "on"}, 0)
        assert rows(d) == [{"a": 1.0, "x": "on"}]
        assert b"no number" in failures(d)[0].body


class TestRefused:
    @pytest.mark.parametrize(
        ("condition", "metric", "formula", "place"),
        [
            (ALWAYS, "x", "a /", "actions[0].formula: column 4"),
            (ALWAYS, "x", "a / 0", "actions[0].formula: column 3: divides by zero"),
            (ALWAYS, "x", "3 + 4", "actions[0].formula: names no metric"),
            (ALWAYS, "x", "avg(a, '90d')", "actions[0].formula: a window is of"),
            (ALWAYS, "x", "x * 0.9 + a", "actions[0].formula: recursive: x from x"),
            (Threshold("x", Operator.GT, 1.0), "x", "a", "actions[0].formula: recursive: x from x"),
            (NoData(60.0), "x", "a", "condition: no_data holds at no reading"),
        ],
    )
    def test_what_can_never_work(self, condition, metric, formula, place):
        with pytest.raises(InvalidMessage) as refused:
            validate(derive(metric, formula, condition=condition).spec)
        assert str(refused.value).startswith(place)

    def test_always_derives_and_does_nothing_else(self):
        for spec in (
            {},
            {"actions": (WebhookAction(target="x"),)},
            {"actions": (DeriveAction(metric="x", formula="a"),), "for_s": 3.0},
        ):
            with pytest.raises(InvalidMessage, match="raises no alarm"):
                validate(RuleSpec(name="n", condition=ALWAYS, **spec))
        with pytest.raises(InvalidMessage, match=r"conditions\[1\]: always is a rule's whole condition"):
            validate(RuleSpec(name="n", condition=All([Threshold("a", Operator.GT, 1.0), ALWAYS])))

    def test_recursion_through_other_rules(self):
        x, y, z = derive("x", "y + 1"), derive("y", "z * 2"), derive("z", "x / 3")
        assert recursion(x.spec, [y.spec]) is None
        assert recursion(z.spec, [x.spec, y.spec]) == ["z", "x", "y", "z"]
        with pytest.raises(
            InvalidMessage, match=r"^actions\[0\].formula: recursive through other rules: z from x"
        ):
            check_recursion(z.spec, [x.spec, y.spec])

    def test_rules_that_are_off_or_watch_other_devices_do_not_count(self):
        y = derive("y", "x", scope=Scope(device_type="pump"))
        assert recursion(derive("x", "y", scope=Scope(device_type="fan")).spec, [y.spec]) is None
        assert recursion(derive("x", "y", enabled=False).spec, [y.spec]) is None
        assert recursion(derive("x", "y").spec, [derive("y", "x", enabled=False).spec]) is None
        assert recursion(derive("x", "y").spec, [y.spec]) is not None
