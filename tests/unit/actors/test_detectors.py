import random

import pytest

from sensorium.actors.detectors import (
    Detector,
    EnsembleDetector,
    LevelShiftDetector,
    RobustDetector,
    SeasonalDetector,
    SpectralDetector,
    ZScoreDetector,
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
