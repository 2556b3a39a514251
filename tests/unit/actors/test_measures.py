"""Trends, data quality and uptime, as pure functions."""

import random

import pytest

from sensorium.actors.data_quality import HOUR_MS, Arrivals, Hour, data_quality
from sensorium.actors.trend import DAY_MS, MAX_POINTS, days_left, line_through, since_renewal, thinned
from sensorium.actors.uptime import from_buckets, from_presence

T0 = 1_704_067_200_000
GOOD = Arrivals(1000, 0, 0, 0.1, 0.5)


def falling(days: int = 30, slope: float = -0.5, noise: float = 0.2, seed: int = 1):
    chance = random.Random(seed)
    return [(T0 + n * DAY_MS, 80.0 + slope * n + chance.gauss(0, noise)) for n in range(days)]


def test_a_line_is_found_through_noise_and_outliers_and_says_how_sure_it_is() -> None:
    points = falling()
    for n in (3, 11, 20, 27):
        points[n] = (points[n][0], 500.0)
    line = line_through(points)
    assert line is not None
    assert line.slope_low < -0.5 < line.slope_high
    assert line.slope_a_day == pytest.approx(-0.5, abs=0.05)
    assert line.value == pytest.approx(80 - 0.5 * 29, abs=0.5)
    left = days_left(line, 10.0)
    assert left is not None
    assert left.low <= left.expected <= left.high
    assert left.expected == pytest.approx((80 - 14.5 - 10) / 0.5, rel=0.15)


def test_the_interval_holds_the_slope_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        line = line_through(falling(20, -0.2, 1.0, seed))
        held += line.slope_low <= -0.2 <= line.slope_high
    assert 88 <= held <= 100


def test_days_left_are_only_told_where_the_limit_is_ahead() -> None:
    down, up = line_through(falling()), line_through(falling(slope=0.5))
    assert days_left(up, 10.0) is None
    assert days_left(down, 90.0).expected == 0.0
    assert days_left(up, 100.0, falling=False).expected > 0
    unsure = line_through(falling(8, -0.05, 2.0, 3))
    left = days_left(unsure, 10.0)
    assert left is None or left.high is None
    assert line_through(falling(4)) is None
    assert line_through([(T0, 1.0)] * 9) is None


def test_a_line_begins_where_the_battery_was_charged() -> None:
    charged = [*falling(10, -3), *[(t + 10 * DAY_MS, v + 20) for t, v in falling(10, -3, seed=2)]]
    assert list(since_renewal(charged)) == charged[10:]
    assert since_renewal(falling()) == falling()
    assert since_renewal([(T0, 5.0)] * 3) == [(T0, 5.0)] * 3


def test_long_lines_are_thinned_with_their_ends() -> None:
    points = falling(2000)
    few = thinned(points)
    assert len(few) <= MAX_POINTS
    assert few[-1] == points[-1]


def hours(count: int = 72, metric=lambda n: 20.0, spread: float = 1.0, readings: int = 60) -> list[Hour]:
    return [
        Hour(T0 + n * HOUR_MS, readings, metric(n) - spread, metric(n) + spread, metric(n))
        for n in range(count)
    ]


def judged(those: list[Hour], span: int = 72, arrivals: Arrivals = GOOD):
    return data_quality({"t": those}, {h.start_ms: h.count for h in those}, span, arrivals)


def test_good_data_is_near_one() -> None:
    chance = random.Random(4)
    found = judged(hours(metric=lambda n: 20 + chance.gauss(0, 0.3)))
    assert found.score > 0.97
    assert (found.completeness, found.timeliness, found.flatline, found.missing_hours) == (1.0, 1.0, 1.0, 0)
    assert found.usual_readings_an_hour == 60


def test_each_fault_lowers_its_own_part() -> None:
    missing = judged(hours(54))
    assert missing.completeness == pytest.approx(0.75)
    assert missing.missing_hours == 18
    thin = judged([*hours(36), *hours(72, readings=30)[36:]], 72)
    assert 0.6 < thin.completeness < 1.0
    assert judged(hours(), arrivals=Arrivals(100, 25, 0, 9.0, 4000.0)).timeliness == 0.75
    assert judged(hours(), arrivals=Arrivals(100, 0, 10, 0.1, 0.1)).range == pytest.approx(0.9)
    wild = hours()
    wild[5] = Hour(wild[5].start_ms, 60, -999.0, 999.0, 20.0)
    assert judged(wild).range == pytest.approx(71 / 72)
    stuck = [*hours(54), *(Hour(h.start_ms, 60, 20.0, 20.0, 20.0) for h in hours()[54:])]
    assert judged(stuck).flatline == pytest.approx(0.75)
    chance = random.Random(5)
    drifting = judged(hours(metric=lambda n: 20 + n / 10 + chance.gauss(0, 0.3)))
    assert drifting.drift < 0.2
    assert drifting.metrics["t"].change == pytest.approx(7.1, abs=0.5)


def test_set_points_are_not_flat_and_nothing_is_known_of_nothing() -> None:
    assert judged(hours(spread=0.0)).flatline is None
    nothing = data_quality({}, {}, 72, Arrivals(0, 0, 0, None, None))
    assert nothing.completeness == 0.0
    assert nothing.score == 0.0
    assert nothing.timeliness is None


def test_uptime_by_what_the_device_said() -> None:
    found = from_presence([(300, False), (400, True), (900, False)], True, 0, 1000)
    assert (found.uptime, found.known_s, found.outages) == (0.8, 1.0, 2)
    assert [(o.start_ms, o.end_ms) for o in found.history] == [(900, None), (300, 400)]
    assert (found.longest_outage_s, found.to_repair_s, found.between_failures_s) == (0.1, 0.1, 0.4)
    unknown = from_presence([(500, True), (500, True)], None, 0, 1000)
    assert (unknown.uptime, unknown.known_s, unknown.outages) == (1.0, 0.5, 0)
    assert from_presence([], None, 0, 1000).uptime is None
    assert from_presence([], False, 0, 1000).uptime == 0.0


def test_uptime_by_hours_with_readings() -> None:
    busy = [n * HOUR_MS for n in (2, 3, 4, 8)]
    found = from_buckets(busy, HOUR_MS, 0, 10 * HOUR_MS)
    assert found.uptime == pytest.approx(4 / 8)
    assert [(o.start_ms // HOUR_MS, o.end_ms) for o in found.history] == [(9, None), (5, 8 * HOUR_MS)]
    assert from_buckets([], HOUR_MS, 0, HOUR_MS).uptime is None
