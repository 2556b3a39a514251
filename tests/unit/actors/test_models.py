"""The models' arithmetic: features of known signals, and faults put into signals that are sound."""

import math
import subprocess
import sys

import numpy as np
import pytest

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models import energy
from sensorium.actors.models.failure import FailureModel
from sensorium.actors.models.features import BANDS, feature_names, sliding, window_features
from sensorium.actors.models.forecast import remaining
from sensorium.actors.models.outliers import OutlierModel, reference_of, wander

HOUR_S = 3600.0


def features_of(*columns):
    names = feature_names([f"m{i}" for i in range(len(columns))])
    window = np.stack(columns, axis=1)[None]
    return dict(zip(names, window_features(window)[0], strict=True))


def test_a_sine_has_the_features_that_books_say():
    x = 3 + 2 * np.sin(2 * np.pi * 4 * np.arange(128) / 128)
    found = features_of(x)
    assert found["mean(m0)"] == pytest.approx(3)
    assert found["std(m0)"] == pytest.approx(math.sqrt(2))
    assert found["rms(m0)"] == pytest.approx(math.sqrt(9 + 2))
    assert found["crest(m0)"] == pytest.approx(math.sqrt(2))
    assert found["kurtosis(m0)"] == pytest.approx(-1.5)
    assert [found[f"band{i + 1}(m0)"] for i in range(BANDS)] == pytest.approx([1, 0, 0, 0], abs=1e-9)


@pytest.mark.parametrize(("cycles", "band"), [(10, 1), (24, 2), (40, 3), (60, 4)])
def test_the_bands_tell_where_the_energy_is(cycles, band):
    found = features_of(np.cos(2 * np.pi * cycles * np.arange(128) / 128))
    assert found[f"band{band}(m0)"] == pytest.approx(1)


def test_a_line_has_a_trend_and_correlates_with_its_mirror():
    line = np.linspace(0, 9, 10)
    found = features_of(line, -line)
    assert found["trend(m0)"] == pytest.approx(10)
    assert found["corr(m0, m1)"] == pytest.approx(-1)


def test_impacts_raise_the_kurtosis():
    x = np.random.default_rng(1).normal(size=256)
    hit = x.copy()
    hit[::64] += 12
    assert features_of(hit)["kurtosis(m0)"] > features_of(x)["kurtosis(m0)"] + 10


def test_what_does_not_move_has_no_features_but_its_level():
    found = features_of(np.full(32, 1e6), np.full(32, 0.1))
    assert all(math.isfinite(v) for v in found.values())
    assert {n for n, v in found.items() if v} == {"mean(m0)", "rms(m0)", "mean(m1)", "rms(m1)"}


def test_windows_slide_and_are_not_too_short():
    rows = np.arange(20.0).reshape(10, 2)
    assert [w[0, 0] for w in sliding(rows, 4, 3)] == [0, 6, 12]
    assert len(sliding(rows, 11, 1)) == 0
    with pytest.raises(ValueError, match="shorter"):
        window_features(np.zeros((1, 7, 1)))


def noise(count=400, metrics=3, seed=0):
    return np.random.default_rng(seed).normal(10, 1, size=(count, metrics))


def model_of(**rows):
    return OutlierModel(["a", "b", "c"], {name: reference_of(r) for name, r in rows.items()})


def judged(model, device, rows):
    at = [model.reference(device)]
    states = model.begin(at)
    return np.array([model.step(states, row[None], at)[0] for row in rows]), states[0], at[0]


def test_more_of_the_same_is_no_outlier():
    scores, *_ = judged(model_of(pump=noise()), "pump", noise(2000, seed=7))
    assert (scores >= 0.5).mean() < 0.001


def test_a_shift_of_one_metric_is_found_and_explained():
    model = model_of(pump=noise())
    rows = noise(100, seed=3)
    rows[50:, 1] += 4
    scores, state, at = judged(model, "pump", rows)
    assert scores[:50].max() < 0.5 <= scores[-1]
    first = np.argmax(scores >= 0.5)
    assert 50 <= first < 65
    top = model.explain(state, at)[0]
    assert top.metric == "b"
    assert top.share > 0.9
    assert top.value == pytest.approx(14, abs=0.7)
    assert top.expected == pytest.approx(10, abs=0.2)


def test_a_metric_that_wanders_has_to_go_further():
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.normal(0, 0.3, 400))
    rows = np.stack([walk, rng.normal(0, 1, 400)], axis=1)
    drift = wander(rows)
    assert drift[0] == pytest.approx(0.09, rel=0.8)
    assert drift[1] < 0.005
    unit = reference_of(rows).unit
    # Of smoothed noise little is left; of a walk nearly all.
    assert (unit[:, 0] > 3 * unit[:, 1]).all()


def test_a_device_that_was_not_there_is_judged_by_all_of_them():
    model = model_of(p1=noise(seed=1), p2=noise(seed=2) + 20)
    inside, *_ = judged(model, "new", noise(50, seed=3) + 10)
    far, *_ = judged(model, "new", noise(50, seed=3) + 300)
    assert inside.max() < 0.5 < far[-1]


def test_missing_metrics_leave_their_means_alone():
    model = model_of(pump=noise())
    rows = noise(60, seed=4)
    rows[:, 2] = np.nan
    scores, state, _ = judged(model, "pump", rows)
    assert np.isfinite(scores).all()
    assert state[2] == state[5] == 0


def test_gaps_in_training_are_bridged_and_too_few_readings_refused():
    rows = noise()
    rows[::3, 0] = np.nan
    assert reference_of(rows).level[0] == pytest.approx(10, abs=0.3)
    rows[60:, 0] = np.nan
    with pytest.raises(ValueError, match="fewer than 100"):
        reference_of(rows)
    with pytest.raises(ValueError, match="fewer than 100"):
        reference_of(noise(99))


def test_what_never_moved_may_not_move_far():
    rows = noise()
    rows[:, 0] = 5.0
    model = model_of(pump=rows)
    moved = noise(30, seed=2)
    moved[:, 0] = 5.1
    assert judged(model, "pump", moved)[0][-1] > 0.5
    moved[:, 0] = 5.00001
    assert judged(model, "pump", moved)[0][-1] < 0.5


def test_many_devices_in_one_call_are_judged_as_one_by_one():
    model = model_of(p1=noise(seed=1), p2=noise(seed=2) + 1)
    rows = noise(40, seed=9)
    at = [model.reference("p1"), model.reference("p2")]
    states = model.begin(at)
    together = np.array([model.step(states, np.stack([row, row]), at) for row in rows])
    assert np.array_equal(together[:, 0], judged(model, "p1", rows)[0])
    assert np.array_equal(together[:, 1], judged(model, "p2", rows)[0])


def failure_model(weight_of="rms(a)", window=16):
    names = feature_names(["a", "b"])
    weights = np.array([4.0 if name == weight_of else 0.0 for name in names])
    return FailureModel(["a", "b"], window, np.zeros(len(names)), np.ones(len(names)), weights, -8.0)


def test_a_failure_model_speaks_at_every_step_of_a_full_window():
    model = failure_model()
    at = [0]
    states = model.begin(at)
    scores = [model.step(states, np.array([[3.0, 0.0]]), at)[0] for _ in range(24)]
    spoken = [i + 1 for i, s in enumerate(scores) if math.isfinite(s)]
    assert spoken == [16, 20, 24]
    assert scores[-1] == pytest.approx(1 / (1 + math.exp(-4)))
    (top,) = model.explain(states[0], 0)
    assert (top.feature, top.metric, top.share) == ("rms(a)", "a", 1.0)
    assert top.value == pytest.approx(3)


def test_the_window_of_a_failure_model_is_in_order_wherever_its_ring_begins():
    model = failure_model("trend(a)")
    states = model.begin([0])
    for i in range(27):
        model.step(states, np.array([[float(i), 1.0]]), [0])
    (top,) = model.explain(states[0], 0)
    assert top.value == pytest.approx(16)


@pytest.mark.slow
def test_fitting_learns_what_comes_before_failures():
    from sensorium.actors.models.fitting import fit_failure

    rng = np.random.default_rng(2)
    labels = np.arange(300) % 10 == 0
    features = rng.normal(size=(300, 5))
    features[labels, 3] += 5
    fit = fit_failure(features, labels, np.arange(300) >= 225)
    assert fit.scores["validation_recall"] > 0.8
    assert np.argmax(fit.pipeline[-1].coef_[0]) == 3
    with pytest.raises(InvalidMessage, match="9 windows before failures"):
        fit_failure(features, np.arange(300) < 9, np.arange(300) >= 225)


def line(hours, slope_an_hour, sigma=0.5, start=10.0, seed=0):
    rng = np.random.default_rng(seed)
    times = [h * HOUR_S for h in range(hours)]
    return times, [start + slope_an_hour * h + float(rng.normal(0, sigma)) for h in range(hours)]


def test_the_remaining_time_and_its_interval():
    found = remaining(*line(200, 0.1), 50.0)
    assert found.outlook == "approaching"
    assert found.remaining_s / HOUR_S == pytest.approx(201, rel=0.05)
    assert found.earliest_s < found.remaining_s < found.latest_s
    assert found.slope_a_day == pytest.approx(2.4, rel=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(200):
        found = remaining(*line(60, 0.1, 1.0, seed=seed), 25.0)
        truth_s = (15.0 / 0.1 - 59) * HOUR_S
        held += found.earliest_s <= truth_s <= (found.latest_s or math.inf)
    assert 165 <= held <= 196  # of 200, at 90 %


def test_no_outlook_where_there_is_no_trend_or_it_leads_away():
    assert remaining(*line(100, 0.0), 50.0).outlook == "none"
    assert remaining(*line(100, -0.1), 50.0).outlook == "none"
    assert remaining(*line(100, 0.001, 0.001), 5000.0).outlook == "none"


def test_a_threshold_below_and_one_that_is_reached():
    found = remaining(*line(100, -0.1, 0.2, 50.0), 20.0, rising=False)
    assert found.remaining_s / HOUR_S == pytest.approx(201, rel=0.05)
    assert found.slope_a_day < 0
    assert remaining(*line(100, 0.1), 15.0).outlook == "reached"
    with pytest.raises(ValueError, match="fewer"):
        remaining([0, 1], [0, 1], 5)


def weeks(count, seed=0):
    rng = np.random.default_rng(seed)
    hours = np.arange(count * 168) % 24
    weekdays = np.arange(count * 168) // 24 % 7
    outside = 10 + 8 * np.sin(np.arange(count * 168) / 50) + rng.normal(0, 1, count * 168)
    busy = (hours >= 7) & (hours < 18) & (weekdays < 5)
    power = 5 + 20 * busy + 1.5 * np.maximum(outside - 12, 0) + rng.normal(0, 0.5, count * 168)
    return hours, weekdays, power, {"outside": outside}


def test_the_baseline_knows_hours_weekends_and_weather():
    baseline = energy.fit(*weeks(4))
    assert baseline.explained > 0.97
    night_work, sunday = baseline.expected([10, 10], [1, 6], {"outside": np.array([5.0, 5.0])})
    assert night_work == pytest.approx(25, abs=1)
    assert sunday == pytest.approx(5, abs=1)
    hot, cool = baseline.expected([10, 10], [1, 1], {"outside": np.array([20.0, 4.0])})
    assert hot - cool == pytest.approx(12, abs=3)
    assert baseline.low < 0 < baseline.high


def test_a_baseline_needs_three_days():
    hours, weekdays, power, covariates = weeks(1)
    with pytest.raises(ValueError, match="71 hours"):
        energy.fit(hours[:71], weekdays[:71], power[:71], {n: c[:71] for n, c in covariates.items()})


@pytest.mark.slow
def test_a_host_imports_numpy_for_models_only_and_never_what_fits():
    code = """
import sys
import sensorium.actors.host
assert "numpy" not in sys.modules
import sensorium.actors.models.failure, sensorium.actors.models.outliers
print([m for m in ("sklearn", "skops", "scipy", "mlflow") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
