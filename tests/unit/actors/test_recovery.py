"""Recovery: whatever a device went through, it goes on after an activation as if it had never stopped."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.messages import ACCEPTED, DUPLICATE, Decommission, Patch, RefreshRules, Register
from sensorium.actors.profile import DetectorSpec, Profile, Profiles, WindowSpec
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import Operator, RateOfChange, Threshold, ZScore
from tests.unit.actors.driving import (
    DEVICE_ID,
    LATE,
    REDELIVERED,
    T0_MS,
    TYPE,
    Driver,
    around_of,
    make_rule,
    observed,
)

PROFILE = Profile(
    windows=(WindowSpec(60.0, 10.0), WindowSpec(300.0, 60.0)),
    lateness_s=90.0,
    max_metrics=4,
    offline_after_s=30.0,
    detectors=(DetectorSpec("zscore", ("a",)), DetectorSpec("level_shift")),
)
# The rules' windows are all in the profiles: one that a rule brings begins when the device hears of the rule.
TANK = Profile(windows=(WindowSpec(), WindowSpec(60.0, 10.0)), max_metrics=3)
RULES = (
    make_rule(Threshold("a", Operator.GT, 5.0), "above"),
    make_rule(RateOfChange("b", 1.0), "rate"),
    make_rule(ZScore("a", 1.5, 60.0, 3), "score"),
    make_rule(Threshold("on", Operator.EQ, True), "on"),
)
AROUND = replace(around_of(*RULES, auto=TYPE), profiles=Profiles(PROFILE, {"tank": TANK}))

KINDS = {
    "a": st.floats(-10, 10),
    "b": st.floats(-10, 10),
    "on": st.booleans(),
    "mode": st.sampled_from(["x", "y"]),
}
METRICS = st.fixed_dictionaries({}, optional=KINDS)
STEPS_MS = st.one_of(
    st.integers(0, 3000), st.just(0), st.integers(-120_000, 60_000), st.sampled_from([400_000, -400_000])
)


@st.composite
def readings(draw):
    return (
        "read",
        draw(METRICS),
        draw(STEPS_MS),
        draw(st.integers(0, 40)),
        draw(st.sampled_from([0, 0, REDELIVERED])),
    )


@st.composite
def bad_readings(draw):
    metrics = draw(
        st.one_of(
            METRICS.map(lambda m: {**m, "a": "text"}),
            METRICS.map(lambda m: {**m, "on": 1.0}),
            METRICS.map(lambda m: {**m, "c": 1.0, "d": 1.0, "e": 1.0, "f": 1.0, "g": 1.0}),
        )
    )
    return ("read", metrics, draw(STEPS_MS), draw(st.integers(0, 40)), 0)


MESSAGES = st.sampled_from(
    [
        Register(DEVICE_ID, TYPE),
        Register(DEVICE_ID, "tank"),
        Patch(DEVICE_ID, metadata={"a": 1}),
        Patch(DEVICE_ID, "tank"),
        Patch(DEVICE_ID, TYPE),
        Decommission(DEVICE_ID),
        RefreshRules(DEVICE_ID),
    ]
)
RULE_CHANGES = st.lists(st.sampled_from(RULES), unique_by=lambda rule: rule.rule_id).map(
    lambda rules: ("rules", *rules)
)


class Clocked:
    """Runs turns on a driver, event time and the clock going on together."""

    def __init__(self, driver: Driver, time_ms: int = 0) -> None:
        self.driver = driver
        self.time_ms = time_ms

    def turn(self, step) -> object:
        if not isinstance(step, tuple):
            return self.driver.send(step)
        if step[0] == "rules":
            return self.driver.use(*step[1:])
        if step[0] == "again":
            rows = self.driver.log.readings
            if not rows:
                return None
            row = rows[-1 - step[1] % len(rows)]
            values = {n: v for n, v in zip(row.metric_set.names, row.values, strict=True) if v is not None}
            return self.driver.read(values, row.time_ms - T0_MS, row.key, step[2])
        _, metrics, step_ms, key, flags = step
        self.time_ms += step_ms
        self.driver.now_ms += max(step_ms, 0)
        return self.driver.read(metrics, self.time_ms, key, flags)


def visible(driver: Driver) -> dict[str, object]:
    """What anyone can see of a device, but for when it was last heard of, which the log does not keep."""
    device = driver.device
    windows = {
        (metric, spec.length_s): info
        for metric in device.metrics.names
        for spec in (w.spec for w in device.windows)
        # A metric that came only in late readings is not known again: it has no value in any window.
        if (info := device.window(metric, spec.length_s)) is not None and info.count
    }
    detection = device.detection.dump() if device.detection is not None else []
    return {
        "detection": {(s.metric, s.spec): s for s in detection if s.metric in driver.latest},
        "registration": device.registration,
        "latest": device.newest_values(),
        "newest_ms": device.newest_ms,
        "windows": windows,
        "alarms": dict(device.alarms),
        "head": device.shard.head,
    }


AGAIN = st.tuples(st.just("again"), st.integers(0, 40), st.sampled_from([0, REDELIVERED]))


@st.composite
def interrupted(draw):
    """Steps with a snapshot before one of them (or none at all), and the steps after the activation."""
    before = draw(st.lists(st.one_of(readings(), readings(), readings(), RULE_CHANGES), max_size=40))
    stop = draw(st.one_of(st.none(), st.integers(0, len(before))))
    after = draw(st.lists(st.one_of(readings(), AGAIN, RULE_CHANGES, st.just(RefreshRules(DEVICE_ID)))))
    return before, stop, after[:15]


@given(interrupted())
def test_goes_on_as_if_it_had_never_stopped(history):
    before, stop, after = history
    whole = Clocked(Driver(AROUND))
    snapshot = None
    for number, step in enumerate(before):
        if number == stop:
            snapshot = take_snapshot(whole.driver.device)
        whole.turn(step)
    if stop == len(before):
        snapshot = take_snapshot(whole.driver.device)
    again = Clocked(whole.driver.recovered(snapshot), whole.time_ms)
    assert visible(again.driver) == visible(whole.driver)
    for step in after:
        assert again.turn(step) == whole.turn(step)
        assert visible(again.driver) == visible(whole.driver)
    assert again.driver.log.alarms == whole.driver.log.alarms
    assert [r[:6] for r in again.driver.log.readings] == [r[:6] for r in whole.driver.log.readings]


@given(st.lists(st.one_of(readings(), readings(), MESSAGES, RULE_CHANGES), max_size=30))
def test_a_snapshot_alone_gives_the_whole_state(steps):
    run = Clocked(Driver(AROUND, register=False))
    for step in steps:
        run.turn(step)
    # As in the log: only registered devices have snapshots.
    if run.driver.device.registration is not None:
        snapshot = take_snapshot(run.driver.device)
        again = run.driver.recovered(snapshot)
        assert visible(again) == visible(run.driver)
        assert again.device.last_seen_ms == run.driver.device.last_seen_ms
        assert take_snapshot(again.device)._replace(state=b"") == snapshot._replace(state=b"")


@given(st.lists(st.one_of(readings(), bad_readings(), bad_readings(), MESSAGES, RULE_CHANGES), max_size=40))
def test_a_refused_turn_leaves_no_trace(steps):
    """`Driver` checks it: the state is as before, nothing but a dead letter is added, no offset is lost."""
    for auto in (None, TYPE):
        run = Clocked(Driver(replace(AROUND, auto_register_as=auto), register=False))
        for step in steps:
            if step != ("rules",):
                run.turn(step)


def test_activation_emits_nothing():
    d = Driver(AROUND)
    d.read({"a": 9.0}, 0)
    again = d.recovered()
    assert len(again.log.alarms) == len(d.log.alarms) == 1
    assert again.device.alarms == d.device.alarms
    again.read({"a": 8.0}, 1)
    assert len(again.log.alarms) == 1, "the alarm stands, so it is not raised again"
    again.read({"a": 1.0}, 2)
    assert [a.state for a in again.log.alarms] == ["ACTIVE", "CLEARED"]


def test_an_unknown_device_has_no_state():
    d = Driver(AROUND, register=False)
    assert observed(d.recovered().device) == observed(d.device)


def test_late_readings_after_the_snapshot_are_asked_of_the_log():
    d = Driver(AROUND)
    d.read({"a": 1.0}, 1_000_000, key=1)
    snapshot = take_snapshot(d.device)
    d.read({"a": 2.0}, 0, key=2)
    assert d.log.readings[-1].flags == LATE
    assert d.stored(snapshot).tail == [], "too old to change the state, so recovery is not given it"
    again = d.recovered(snapshot)
    assert again.read({"a": 2.0}, 0, key=2) is DUPLICATE
    assert again.read({"a": 2.0}, 0, key=3) is ACCEPTED


def test_a_stored_reading_stays_late_whatever_the_profile_says_now():
    d = Driver(AROUND)
    for time_ms in (0, 200_000, 50_000):
        d.read({"a": 1.0}, time_ms)
    lenient = replace(AROUND, profiles=Profiles(Profile(windows=PROFILE.windows, lateness_s=3600.0)))
    assert (
        d.recovered(None, lenient).device.window("a", 300.0).count == d.device.window("a", 300.0).count == 2
    )


def test_replayed_readings_are_known_again_without_asking():
    d = Driver(AROUND)
    d.read({"a": 1.0}, 0, key=1)
    again = d.recovered()
    assert again.device.seen.holds(T0_MS, 1)
    assert again.read({"a": 1.0}, 0, key=1) is DUPLICATE


def test_readings_within_the_bound_are_replayed_though_older_than_the_snapshot():
    d = Driver(AROUND)
    d.read({"a": 1.0}, 90_000)
    snapshot = take_snapshot(d.device)
    d.read({"a": 2.0}, 0)
    again = d.recovered(snapshot)
    assert again.device.window("a", 300.0) == d.device.window("a", 300.0)
    assert again.device.window("a", 300.0).count == 2


class TestProfileChangedMeanwhile:
    @pytest.mark.parametrize("replayed", [False, True])
    def test_windows_that_stay_keep_their_readings_and_new_ones_start(self, replayed):
        d = Driver(AROUND)
        snapshot = take_snapshot(d.device)
        for time_ms in range(0, 50_000, 10_000):
            d.read({"a": 1.0}, time_ms)
        if not replayed:
            snapshot = take_snapshot(d.device)
        changed = Profile(windows=(WindowSpec(3600.0, 60.0), WindowSpec(60.0, 10.0)), lateness_s=1.0)
        again = d.recovered(snapshot, replace(AROUND, profiles=Profiles(changed)))
        counts = {
            w.spec.length_s: again.device.window("a", w.spec.length_s).count for w in again.device.windows
        }
        assert counts == {3600.0: 5 if replayed else 0, 60.0: 5}
        assert again.device.lateness_ms == 1000
        again.read({"a": 2.0}, 50_000)
        assert again.device.window("a", 60.0).count == 6

    def test_a_lower_bound_of_metrics_keeps_those_that_are(self):
        d = Driver(AROUND)
        d.read({"a": 1.0, "b": 2.0, "on": True}, 0)
        again = d.recovered(
            take_snapshot(d.device), replace(AROUND, profiles=Profiles(Profile(max_metrics=1)))
        )
        assert again.read({"a": 2.0, "b": 3.0, "on": False}, 1) is ACCEPTED
