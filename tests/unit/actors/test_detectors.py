import math
import random
from collections.abc import Iterable

import pytest

from sensorium.actors.detectors import (
    DAY_MS,
    Detector,
    EnsembleDetector,
    LevelShiftDetector,
    P2Quantile,
    RobustDetector,
    Score,
    SeasonalDetector,
    SpectralDetector,
    ZScoreDetector,
    compare_peers,
)

ALL = (
    EnsembleDetector,
    LevelShiftDetector,
    RobustDetector,
    SeasonalDetector,
    SpectralDetector,
    ZScoreDetector,
)


@pytest.mark.parametrize("kind", ALL)
def test_a_restored_detector_goes_on_as_the_one_that_was_dumped(kind: type[Detector]) -> None:
    chance = random.Random(7)
    series = [(i * 300_000, chance.gauss(20, 1) + (9 if i % 97 == 0 else 0)) for i in range(2000)]
    first, second = kind(), kind()
    for time_ms, value in series[:1500]:
        first.update(time_ms, value)
    second.restore(first.dump())
    assert [first.update(*reading) for reading in series[1500:]] == [
        second.update(*reading) for reading in series[1500:]
    ]
    with pytest.raises(ValueError, match="a state of 1 numbers"):
        kind().restore([1.0])


@pytest.mark.parametrize("kind", [EnsembleDetector, RobustDetector, ZScoreDetector])
def test_a_spike_is_odd_and_what_came_before_is_not(kind: type[Detector]) -> None:
    detector = kind()
    usual = [detector.update(i * 1000, 20 + i % 5).value for i in range(200)]
    assert max(usual) < 0.5
    assert detector.update(200_000, 90).value > 0.8


def noise(seed: int, count: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(20.0, 1.0) for _ in range(count)]


def scores(detector: Detector, values: Iterable[float], step_ms: int = 60_000) -> list[float]:
    return [detector.update(i * step_ms, value).value for i, value in enumerate(values)]


@pytest.mark.parametrize("kind", [RobustDetector, LevelShiftDetector, SeasonalDetector, SpectralDetector])
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_not_odd(kind: type[Detector], seed: int) -> None:
    assert max(scores(kind(), noise(seed, 6000))) < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_seldom_odd_by_three_deviations_or_by_records(seed: int) -> None:
    # Of 6000 normal values 0.27 % lie beyond three deviations; a record of ever wider ranges is rarer.
    by_deviation = [score for score in scores(ZScoreDetector(), noise(seed, 6000)) if score >= 0.5]
    assert 0 < len(by_deviation) < 40
    by_record = [score for score in scores(EnsembleDetector(), noise(seed, 6000))[600:] if score >= 0.5]
    assert len(by_record) < 20


def test_three_deviations_score_a_half() -> None:
    detector = ZScoreDetector()
    scores(detector, [19.0, 21.0] * 500)
    state = detector.dump()
    for value, least, most in ((22.9, 0.45, 0.5), (23.1, 0.5, 0.55), (17.0 - 0.1, 0.5, 0.55)):
        detector.restore(state)
        assert least <= detector.update(0, value).value < most


def test_outliers_do_not_hide_the_next_one_from_the_robust_detector() -> None:
    values = noise(1, 2000)
    for i in range(100, 2000, 10):
        values[i] = 200.0
    robust, plain = scores(RobustDetector(), values), scores(ZScoreDetector(), values)
    assert min(robust[100::10]) > 0.95
    assert max(score for i, score in enumerate(robust) if i < 100 or i % 10) < 0.5
    # The deviation has grown with them: 180 above the rest is usual now.
    assert plain[1990] < 0.55


def test_a_shift_too_small_for_one_reading_to_tell_is_seen_and_told_once() -> None:
    values = noise(2, 1000) + [value + 1.5 for value in noise(3, 1000)]
    shifted = scores(LevelShiftDetector(), values)
    told = [i for i, score in enumerate(shifted) if score >= 0.5]
    assert len(told) == 1
    assert 1000 < told[0] < 1040
    down = scores(LevelShiftDetector(), [-value for value in values])
    assert down == pytest.approx(shifted)


def test_one_outlier_is_not_a_shift() -> None:
    values = noise(4, 1000)
    values[500] = 1000.0
    assert max(scores(LevelShiftDetector(), values)) < 0.5


def test_a_usual_value_at_an_unusual_hour_is_odd_to_the_season_alone() -> None:
    chance = random.Random(5)
    step_ms = 600_000
    day = DAY_MS // step_ms
    values = [
        20 - 10 * math.cos(2 * math.pi * (i % day) / day) + chance.gauss(0, 0.3) for i in range(8 * day)
    ]
    night = 7 * day + 3
    values[night] = 25.0
    seasonal = scores(SeasonalDetector(), values, step_ms)
    assert seasonal[night] > 0.8
    assert max(seasonal[:night]) < 0.5
    assert scores(ZScoreDetector(), values, step_ms)[night] < 0.5


def test_a_tone_that_was_not_there_is_heard_by_the_spectral_detector() -> None:
    chance = random.Random(6)
    blocks = 40
    values = []
    for i in range(64 * blocks):
        hum = 1.0 * math.sin(2 * math.pi * 4 * i / 64)
        whine = 0.8 * math.sin(2 * math.pi * 16 * i / 64) if i >= 64 * (blocks - 1) else 0.0
        values.append(9.81 + hum + whine + chance.gauss(0, 0.2))
    detector = SpectralDetector()
    heard = scores(detector, values, 10)
    assert heard[-1] > 0.5
    assert max(heard[:-1]) < 0.5
    assert max(scores(ZScoreDetector(limit=5.0), values, 10)) < 0.5


@pytest.mark.parametrize("deviation", [0.0, 0.1, 1.0])
def test_the_top_of_a_smooth_day_is_not_odd(deviation: float) -> None:
    chance = random.Random(10)
    values = [20 - 10 * math.cos(2 * math.pi * i / 144) + chance.gauss(0, deviation) for i in range(20 * 144)]
    assert max(scores(SeasonalDetector(), values, 600_000)) < 0.5


def test_the_spectral_detector_refuses_what_a_block_cannot_hold() -> None:
    with pytest.raises(ValueError, match="between 1 and 31"):
        SpectralDetector(block=64, cycles=(4, 32))


def test_an_event_speaks_once_and_again_when_it_gets_worse() -> None:
    values = noise(8, 1000) + [60.0] * 20 + [150.0] * 20
    spoke = [i for i, score in enumerate(scores(EnsembleDetector(), values)) if score >= 0.5 and i >= 990]
    assert spoke[0] == 1000
    assert 1020 in spoke
    assert len(spoke) < 10


@pytest.mark.parametrize(
    ("value", "severity"), [(0.49, "none"), (0.5, "warning"), (0.8, "major"), (0.95, "critical")]
)
def test_severity_goes_by_the_score(value: float, severity: str) -> None:
    assert Score(value, 0.0, "zscore").severity == severity


@pytest.mark.parametrize(("q", "exact"), [(0.1, 0.105), (0.5, 0.693), (0.99, 4.605)])
def test_a_quantile_of_a_skewed_stream_comes_near_the_true_one(q: float, exact: float) -> None:
    chance = random.Random(9)
    sketch = P2Quantile(q, memory=100_000)
    for _ in range(20_000):
        sketch.add(chance.expovariate(1.0))
    assert sketch.value == pytest.approx(exact, rel=0.1)


def test_a_quantile_of_few_values_is_exact() -> None:
    sketch = P2Quantile(0.5)
    assert sketch.value == 0.0
    for value in (5.0, 1.0, 3.0):
        sketch.add(value)
    assert sketch.value == 3.0


def test_the_odd_one_among_peers_does_not_hide_itself() -> None:
    found = compare_peers({"a": 20.0, "b": 21.0, "c": 19.0, "d": 20.5, "e": 80.0})
    # The median is 20.5, the distances from it 0.5, 0.5, 1.5, 0 and 59.5: the MAD is 0.5.
    assert found["e"].distance == pytest.approx(59.5 / (1.4826 * 0.5))
    assert found["c"].distance == pytest.approx(-1.5 / (1.4826 * 0.5))
    assert [device for device, peer in found.items() if peer.score.value >= 0.5] == ["e"]
    assert found["e"].score.expected == 20.5


def test_the_median_of_an_even_group_lies_between_its_middle_two() -> None:
    found = compare_peers({"a": 1.0, "b": 2.0, "c": 4.0, "d": 100.0})
    # Median 3; distances 2, 1, 1 and 97: MAD 1.5.
    assert found["d"].distance == pytest.approx(97 / (1.4826 * 1.5))
    assert found["a"].score.expected == 3.0


def test_peers_that_agree_exactly_make_any_difference_odd_unless_the_sensors_scatter() -> None:
    means = {"a": 20.0, "b": 20.0, "c": 20.0, "d": 20.0, "e": 20.1}
    alike = compare_peers(means)
    assert alike["e"].score.value == 1.0
    assert alike["a"].score.value == 0.0
    assert compare_peers(means, scatter=0.1)["e"].score.value < 0.1


def test_few_devices_have_no_odd_one() -> None:
    assert compare_peers({"a": 1.0, "b": 2.0, "c": 300.0}) == {}
