"""Training over a stored past: who is learnt from, who is left out and why, and what comes of it."""

import numpy as np
import pytest

from sensorium.actors.errors import InvalidMessage, NoHistory
from sensorium.actors.messages import ReadingFlag
from sensorium.actors.metrics import metric_set
from sensorium.actors.models.learning import Rows, labelled
from sensorium.actors.records import Registration, TailReading
from sensorium.actors.training import Training, check, devices_of, finish, learn

START_MS = 1_767_225_600_000
PUMPS = [Registration(f"p{i}", "pump", "active", None, {"hall": i % 2}, 0, 0) for i in range(4)]
SET = metric_set(("flow", "power", "on"), "nnb")


def row(i, flow, power=5.0, flags=0, metrics=SET):
    return TailReading(i, START_MS + i * 1000, i, flags, metrics, [flow, power, True][: len(metrics.names)])


class Past:
    """A `StoredPast` of plain lists."""

    def __init__(self, rows, alarms=()):
        self.rows, self.alarms = rows, alarms

    async def devices(self, which, limit):
        return [r for r in PUMPS if r.device_type == which.device_type]

    async def has_readings(self, device_ids, start_ms, end_ms):
        return any(self.rows.get(i) for i in device_ids)

    async def readings(self, device_id, start_ms, end_ms, take):
        found = [r for r in self.rows.get(device_id, ()) if start_ms <= r.time_ms < end_ms]
        for start in range(0, len(found), 100):
            take(found[start : start + 100])

    async def alarm_times(self, device_id, rule_id, start_ms, end_ms):
        return [(s, e) for d, r, s, e in self.alarms if (d, r) == (device_id, rule_id)]


def training(**changes):
    asked = {"name": "m", "kind": "outliers", "device_type": "pump"}
    return Training(**{**asked, "since_ms": START_MS, "until_ms": START_MS + 10_000_000, **changes})


def sound(count=300, seed=0):
    rng = np.random.default_rng(seed)
    return [row(i, float(v)) for i, v in enumerate(rng.normal(10, 1, count))]


async def trained(past, asked):
    devices = await devices_of(past, asked)
    return finish(asked, await learn(past, asked, devices), 77)


async def test_outliers_are_learnt_of_each_device():
    past = Past({"p0": sound(seed=1), "p1": sound(seed=2), "p2": sound(50), "p3": []})
    info, model = await trained(past, training())
    assert model.device_ids == ("p0", "p1")
    assert (info.metrics, info.devices, info.rows, info.trained_ms) == (("flow", "power"), 2, 600, 77)
    assert info.left_out == (
        "p2: 50 readings with these metrics are fewer than 100",
        "p3: 0 readings with these metrics are fewer than 100",
    )
    assert info.features[0] == "mean(flow, 10 readings)"
    assert model.levels[:, 0] == pytest.approx([10, 10], abs=0.3)


async def test_a_metric_that_few_have_is_left_out_unless_it_is_asked_for():
    other = metric_set(("flow", "heat"), "nn")
    some = [row(i, float(i % 7), 3.0, metrics=other) for i in range(200)]
    past = Past({"p0": sound(), "p1": sound(seed=3), "p2": some})
    info, model = await trained(past, training())
    assert model.metrics == ("flow", "power")
    assert info.left_out[1:] == ("heat: only 1 devices have it", "p2: too few readings of power")
    _, model = await trained(past, training(metrics=("heat",)))
    assert (model.metrics, model.device_ids) == (("heat",), ("p2",))
    with pytest.raises(InvalidMessage, match="no device has enough readings of speed; there are flow"):
        await trained(past, training(metrics=("flow", "speed")))


async def test_too_little_or_nothing_is_one_clear_line():
    with pytest.raises(InvalidMessage, match="none of 4 devices has enough to learn from; p0: 99 readings"):
        await trained(Past({"p0": sound(99)}), training())
    with pytest.raises(NoHistory, match="none of these 4 devices has a reading in the time"):
        await trained(Past({}), training())
    with pytest.raises(NoHistory, match="no device of type 'fan' matches"):
        await trained(Past({}), training(device_type="fan"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../x"}, "no name of a model"),
        ({"until_ms": START_MS}, "ends before it begins"),
        ({"metrics": ("a", "a")}, "each once"),
        ({"kind": "failure"}, "needs its metrics, and the rule"),
        (
            {"kind": "failure", "metrics": ("a",), "rule_id": "r", "window": 9000},
            "from 8 to 8192 are possible",
        ),
        ({"kind": "failure", "metrics": ("a",), "rule_id": "r", "before_s": 0.0}, "longer than nothing"),
    ],
)
def test_what_can_never_be_trained_is_said_beforehand(changes, said):
    with pytest.raises(InvalidMessage, match=said):
        check(training(**changes))


def test_late_readings_texts_and_absurd_numbers_do_not_count():
    rows = Rows(["flow"])
    rows.take(
        [row(2, 2.0), row(0, 0.5), row(1, 9.0, flags=int(ReadingFlag.LATE)), row(3, 1e300), row(4, None)]
    )
    times, values = rows.arrays()
    assert list(times - START_MS) == [0, 2000]
    assert values.tolist() == [[0.5], [2.0]]


def test_windows_before_failures_are_the_ones_to_be_recognised():
    rows = Rows(["flow"])
    rows.take(sound(400))
    fails = [(START_MS + 200_000, START_MS + 260_000), (START_MS + 390_000, None)]
    found = labelled("p0", rows, fails, 40_000, 16, 0.25)
    step = 4
    ends = (np.arange(0, 400 - 16 + 1, step) + 15) * 1000
    starts = ends - 15_000
    during = ((ends > 200_000) & (starts <= 260_000)) | (ends > 390_000)
    assert len(found.labels) == (~during).sum()
    kept = ends[~during]
    expected = ((kept <= 200_000) & (kept > 160_000)) | ((kept <= 390_000) & (kept > 350_000))
    assert found.labels.tolist() == expected.tolist()
    assert found.later.sum() == pytest.approx(len(kept) / 4, abs=1)
    assert labelled("p0", Rows(["flow"]), [], 1, 16, 0.25).reason == (
        "0 readings with these metrics are fewer than a window of 16"
    )


@pytest.mark.slow
async def test_a_failure_model_learns_from_alarms_of_a_rule():
    rng = np.random.default_rng(4)
    rows, alarms = {}, []
    for device in ("p0", "p1"):
        values = rng.normal(10, 1, 2000)
        for at in (500, 1000, 1900):
            values[at - 100 : at] += rng.normal(0, 4, 100)
            alarms.append((device, "r", START_MS + at * 1000, START_MS + (at + 20) * 1000))
        rows[device] = [row(i, float(v)) for i, v in enumerate(values)]
    asked = training(kind="failure", metrics=("flow",), rule_id="r", before_s=80.0, window=32)
    info, pipeline = await trained(Past(rows, alarms), asked)
    assert info.scores["validation_recall"] > 0.7
    assert info.settings == {"window": 32, "before_s": 80.0, "rule_id": "r"}
    assert "rms(flow)" in info.features
    assert pipeline.steps[-1][0] == "logisticregression"
    with pytest.raises(InvalidMessage, match="0 windows before failures"):
        await trained(Past(rows), asked)
