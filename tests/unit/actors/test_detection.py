"""Detectors in a device: episodes, what is told of them, recovery, and rules that go by them."""

import math
import random

import msgspec
import pytest

from sensorium.actors.detectors import FlatlineDetector
from sensorium.actors.episodes import GAP_MS, QUIET
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Decommission, RefreshRules
from sensorium.actors.profile import DetectorSpec, Profile
from sensorium.actors.records import Anomaly
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import AnomalyScore
from tests.unit.actors.driving import DEVICE_ID, T0_MS, Driver, around_of, make_rule

ZSCORE = DetectorSpec("zscore", ("t",))


def driver(*specs: DetectorSpec, rules=()) -> Driver:
    return Driver(around_of(*rules, profile=Profile(detectors=specs)))


def usual(device: Driver, count: int = 100, start: int = 0, seed: int = 3) -> None:
    chance = random.Random(seed)
    for n in range(start, start + count):
        device.read({"t": 20.0 + chance.uniform(-1, 1), "u": float(n % 7)}, n * 1000)


def told(device: Driver) -> list[tuple[str, str | None]]:
    """What the log says of anomalies: kind of event and reason of the end."""
    return [
        (event.kind, msgspec.json.decode(event.body, type=Anomaly).end_reason)
        for event in device.log.events
        if event.kind.startswith("anomaly")
    ]


def test_an_episode_is_one_anomaly_with_beginning_peak_and_end() -> None:
    device = driver(ZSCORE)
    usual(device)
    for n, value in enumerate((24.0, 60.0, 40.0), 100):
        device.read({"t": value}, n * 1000)
    usual(device, QUIET, 103)
    assert told(device) == [("anomaly", None), ("anomaly_changed", None), ("anomaly_ended", "quiet")]
    assert len({a.anomaly_id for a in device.log.anomalies}) == 1
    last = device.log.anomalies[-1]
    assert (last.device_id, last.metric, last.detector) == (DEVICE_ID, "t", "zscore")
    assert last.severity == "critical"
    assert (last.start_ms, last.peak_ms, last.end_ms) == tuple(T0_MS + n * 1000 for n in (100, 101, 102))
    assert last.value == 60.0
    assert 19 < last.expected < 21
    assert last.score > 0.95
    assert last.readings == 3


def test_what_is_committed_with_the_reading_is_the_anomaly_and_its_event() -> None:
    device = driver(ZSCORE)
    usual(device)
    assert not device.log.anomalies
    device.read({"t": 60.0}, 100_000)
    event = device.log.events[-1]
    assert event.kind == "anomaly"
    assert event.time_ms == T0_MS + 100_000
    assert msgspec.json.decode(event.body, type=Anomaly) == device.log.anomalies[-1]
    assert device.log.readings[-1].offset == event.offset + 1 or device.log.readings[-1].offset < event.offset


def test_a_flood_of_odd_readings_is_few_rows() -> None:
    device = driver(DetectorSpec("zscore", ("t",), threshold=0.05))
    usual(device, 1000)
    assert len(device.log.anomalies) < 1000 * 4 / QUIET


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e200])
def test_values_that_cannot_be_judged_are_passed_over(value: float) -> None:
    device = driver(DetectorSpec(), ZSCORE, DetectorSpec("spectral"), DetectorSpec("robust"))
    usual(device)
    before = device.device.detection.dump()
    device.read({"t": value}, 100_000)
    assert [s.memory for s in device.device.detection.dump()] == [s.memory for s in before]


def test_every_detector_stands_extreme_values() -> None:
    names = ("ensemble", "zscore", "robust", "level_shift", "seasonal", "spectral", "flatline")
    device = driver(*(DetectorSpec(name) for name in names))
    chance = random.Random(1)
    for n in range(800):
        value = chance.choice((0.0, 1e99, -1e99, 1e-300, 5.0))
        device.read({"t": value}, n * 600_000)
    scores = [watcher.score for watcher in device.device.detection.watchers]
    assert all(0 <= score <= 1 for score in scores)


def test_late_readings_are_not_judged() -> None:
    device = driver(ZSCORE)
    usual(device)
    memory = device.device.detection.dump()
    device.read({"t": 500.0}, 98_500)
    assert device.device.detection.dump() == memory
    assert not device.log.anomalies


def test_after_a_gap_an_odd_reading_is_an_episode_of_its_own() -> None:
    device = driver(ZSCORE)
    usual(device)
    device.read({"t": 60.0}, 100_000)
    device.read({"t": 70.0}, 100_000 + GAP_MS + 1)
    assert told(device) == [("anomaly", None), ("anomaly_ended", "gap"), ("anomaly", None)]


@pytest.mark.parametrize("stop", [0, 60, 101, 104, 130])
def test_recovery_tells_nothing_and_scores_the_same(stop: int) -> None:
    others = (DetectorSpec(name) for name in ("robust", "flatline", "seasonal"))
    device = driver(DetectorSpec(), ZSCORE, *others)
    snapshot = take_snapshot(device.device) if stop == 0 else None
    chance = random.Random(9)
    for n in range(140):
        value = 20.0 + chance.uniform(-1, 1) + (30.0 if 100 <= n < 106 else 0.0)
        device.read({"t": value} if n < 50 else {"t": value, "later": value / 2}, n * 60_000)
        if n == stop:
            snapshot = take_snapshot(device.device)
    written = len(device.log.events), len(device.log.anomalies)
    other = device.recovered(snapshot)
    assert (len(other.log.events), len(other.log.anomalies)) == written
    assert other.device.detection.dump() == device.device.detection.dump()
    for n in range(140, 200):
        values = {"t": 20.0 + chance.uniform(-1, 1) + (n == 150) * 99}
        device.read(values, n * 60_000)
        other.read(values, n * 60_000)
    assert other.log.anomalies == device.log.anomalies
    assert len(device.log.anomalies) > written[1]


def test_a_changed_threshold_keeps_what_the_detector_knows() -> None:
    device = driver(ZSCORE)
    usual(device)
    memory = device.device.detection.dump()[0].memory
    profile = Profile(detectors=(DetectorSpec("zscore", ("t",), threshold=0.9),))
    other = device.recovered(take_snapshot(device.device), around_of(profile=profile))
    assert other.device.detection.dump()[0].memory == memory
    other.read({"t": 25.0}, 100_000)
    assert not other.log.anomalies


def test_an_open_episode_ends_with_its_detector() -> None:
    device = driver(ZSCORE)
    usual(device)
    device.read({"t": 60.0}, 100_000)
    other = device.recovered(take_snapshot(device.device), around_of(profile=Profile()))
    other.send(RefreshRules(DEVICE_ID))
    assert told(other)[-1] == ("anomaly_ended", "detector_removed")
    other.read({"t": 60.0}, 101_000)
    again = other.recovered(take_snapshot(other.device))
    assert again.device.detection is None


def test_decommissioning_ends_what_goes_on() -> None:
    device = driver(ZSCORE)
    usual(device)
    device.read({"t": 60.0}, 100_000)
    device.send(Decommission(DEVICE_ID))
    assert told(device)[-1] == ("anomaly_ended", "device_decommissioned")


def test_a_device_nobody_watches_has_no_detection() -> None:
    device = driver(DetectorSpec("zscore", ("other",)))
    usual(device, 5)
    assert device.device.detection is None


def test_rules_go_by_scores_and_episodes() -> None:
    rule = make_rule(AnomalyScore("t", 0.9), "odd")
    device = driver(rules=(rule,))
    usual(device)
    assert [w.spec.detector for w in device.device.detection.watchers] == ["ensemble"]
    device.read({"t": 60.0}, 100_000)
    assert device.alarms == [("odd", "ACTIVE", None)]
    assert device.log.alarms[-1].value == 60.0
    usual(device, QUIET, 101)
    assert device.alarms[-1] == ("odd", "CLEARED", "condition_ended")
    assert len(device.alarms) == 2


def test_a_rule_names_the_detector_that_it_goes_by() -> None:
    rules = (
        make_rule(AnomalyScore("t", 0.5, "flatline"), "stuck"),
        make_rule(AnomalyScore("u", 0.5, "zscore"), "other"),
    )
    device = driver(rules=rules)
    usual(device)
    for n in range(100, 140):
        device.read({"t": 20.0, "u": 3.0}, n * 1000)
    assert device.alarms == [("stuck", "ACTIVE", None)]
    device.use()
    device.send(RefreshRules(DEVICE_ID))
    assert device.device.detection is None
    assert told(device)[-1] == ("anomaly_ended", "detector_removed")
    assert {a.end_reason for a in {a.anomaly_id: a for a in device.log.anomalies}.values()} == {
        "detector_removed"
    }


def test_a_flatline_is_one_that_is_longer_than_usual() -> None:
    stuck, steady = FlatlineDetector(), FlatlineDetector()
    chance = random.Random(2)
    for n in range(600):
        stuck.update(n, chance.gauss(0, 1))
        assert steady.update(n, float(n // 200)).value == 0.0, "what hardly ever moves is never stuck"
    scores = [stuck.update(600 + n, 1.0).value for n in range(60)]
    assert max(scores[:20]) < 0.5 <= scores[-1]
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    "settings",
    [
        {"detector": "magic"},
        {"limit": 3.0},
        {"detector": "zscore", "limit": -1.0},
        {"threshold": 0.0},
        {"period": "week"},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InvalidMessage):
        DetectorSpec(**settings)
