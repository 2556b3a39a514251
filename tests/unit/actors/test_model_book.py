"""Models in a host: findings that commit with their readings, once, whatever happens in between."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import Decommission, Reading, Register
from sensorium.actors.models import plain
from sensorium.actors.models.book import ModelBook
from sensorium.actors.models.failure import FailureModel
from sensorium.actors.models.features import feature_names
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.actors.models.outliers import OutlierModel, reference_of
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Anomaly, Commit, TailReading
from sensorium.actors.recovery import activate, as_stored
from sensorium.actors.turns import Work, run

T0_MS = 1_767_225_600_000
NAMES = ("flow", "power")
INFO = ModelInfo("pumps", 3, "outliers", "pump", NAMES, (), 0, 0, 0, 2, 400)
IDS = ["p0", "p1", "p2"]


def rows(count, seed=0):
    return np.random.default_rng(seed).normal([10, 50], [1, 2], size=(count, 2))


def outliers(**changes):
    model = OutlierModel(NAMES, {i: reference_of(rows(300, n)) for n, i in enumerate(IDS[:2])})
    return ActiveModel(msgspec.structs.replace(INFO, **changes), plain.encode(model))


class World:
    """Pumps in memory, and all that was committed of them."""

    def __init__(self, *active, ids=IDS, device_type="pump"):
        self.around = replace(Surroundings(), models=ModelBook(active))
        self.devices = {i: Device(i, Shard(shard_of(i), 0)) for i in ids}
        self.log = Commit()
        for device_id in ids:
            self.turn([Register(device_id, device_type)])

    def turn(self, messages, names=NAMES):
        turns = run([Work(messages, [names])], self.devices, self.around, T0_MS, set())
        self.around.models.judge(turns.touched, turns.commit)
        for field in ("readings", "events", "anomalies"):
            getattr(self.log, field).extend(getattr(turns.commit, field))
        return turns.commit

    def read(self, device_id, number, values, flags=0, names=NAMES):
        return self.turn([reading(device_id, number, values, flags)], names)

    def again(self, device_id, stored):
        """The device out of what the log has: `stored`, and the readings after it."""
        offset = stored.snapshot.offset
        key = self.devices[device_id].key
        tail = [
            TailReading(r.offset, r.time_ms, r.key, r.flags, r.metric_set, list(r.values))
            for r in self.log.readings
            if r.device == key and r.offset > offset
        ]
        device = activate(stored._replace(tail=tail), Shard(shard_of(device_id), 0), self.around)
        device.shard.head = self.devices[device_id].shard.head
        self.around.models.catch_up([device])
        return device


def reading(device_id, number, values, flags=0):
    time_ms = T0_MS + number * 1000
    return Reading(device_id, time_ms, time_ms, number + 1, 0, [float(v) for v in values], flags)


def faulty(count=120, at=60, seed=9):
    values = rows(count, seed)
    values[at:, 1] += 30
    return values


def kinds(world):
    return [event.kind for event in world.log.events if event.kind.startswith("anomaly")]


def test_a_fault_is_an_episode_with_an_explanation():
    world = World(outliers())
    for number, values in enumerate(faulty()):
        world.read("p0", number, values)
    assert kinds(world)[0] == "anomaly"
    first, last = world.log.anomalies[0], world.log.anomalies[-1]
    assert first.detector == "model:pumps@3"
    assert (first.metric, first.device_id, first.device_type) == ("power", "p0", "pump")
    assert 60_000 <= first.start_ms - T0_MS < 64_000
    assert {a.anomaly_id for a in world.log.anomalies} == {first.anomaly_id}
    assert last.severity == "critical"
    top = last.explanation[0]
    assert (top.metric, top.share > 0.9) == ("power", True)
    assert last.value == top.value > 60
    assert last.expected == pytest.approx(50, abs=1)
    stored = msgspec.json.decode(world.log.events[-1].body, type=Anomaly)
    assert stored == last
    for number, values in enumerate(rows(250, seed=5), 120):
        world.read("p0", number, values)
    assert kinds(world)[-1] == "anomaly_ended"
    ended = world.log.anomalies[-1]
    assert ended.end_reason == "quiet"
    assert ended.readings > 60


def test_offsets_have_no_gaps():
    world = World(outliers())
    for number, values in enumerate(faulty()):
        world.turn([reading(i, number, values) for i in IDS])
    for device in world.devices.values():
        own = [r.offset for r in [*world.log.readings, *world.log.events] if r.shard == device.shard.number]
        assert sorted(own) == list(range(1, len(own) + 1))


def test_a_batch_of_many_is_judged_as_one_by_one():
    values = {i: faulty(seed=n) for n, i in enumerate(IDS)}
    one, many = World(outliers()), World(outliers())
    for number in range(120):
        for i in IDS:
            one.read(i, number, values[i][number])
    for start in range(0, 120, 40):
        many.turn([reading(i, n, values[i][n]) for n in range(start, start + 40) for i in IDS])
    assert {a.anomaly_id for a in one.log.anomalies} == {a.anomaly_id for a in many.log.anomalies}
    for i in IDS:
        (a,), (b,) = (w.devices[i].modelled.memories.values() for w in (one, many))
        assert np.array_equal(a.numbers, b.numbers)
        assert a.episode == b.episode
    assert many.around.models.judged == 360


@pytest.mark.parametrize("at", [0, 1, 30, 63, 90, 119])
@pytest.mark.parametrize("since", [0, 10, 40])
def test_recovery_leads_to_the_same_memory_and_emits_nothing(at, since):
    world = World(outliers())
    stored = as_stored(world.devices["p0"])
    values = faulty()
    for number in range(at + 1):
        if number == max(0, at - since):
            stored = as_stored(world.devices["p0"])
        world.read("p0", number, values[number])
    before = len(world.log.events)
    back = world.again("p0", stored)
    assert len(world.log.events) == before
    (there,) = back.modelled.memories.values()
    (here,) = world.devices["p0"].modelled.memories.values()
    assert np.array_equal(there.numbers, here.numbers)
    assert (there.last_ms, there.episode) == (here.last_ms, here.episode)
    world.devices["p0"] = back
    for number in range(at + 1, 120):
        world.read("p0", number, values[number])
    assert kinds(world).count("anomaly") == 1


def test_late_and_older_readings_do_not_count():
    world = World(outliers())
    for number, values in enumerate(rows(20)):
        world.read("p0", number, values)
    (memory,) = world.devices["p0"].modelled.memories.values()
    numbers = memory.numbers.copy()
    world.read("p0", 10, [1000, 1000.0], flags=0)
    world.turn([reading("p0", -100_000, [1000, 1000])])
    assert np.array_equal(world.devices["p0"].modelled.memories["pumps@3"].numbers, numbers)


def test_other_types_and_other_metrics_are_left_alone():
    world = World(outliers(), device_type="fan")
    world.read("p0", 0, [1000, 1000])
    assert world.devices["p0"].modelled is None
    world = World(outliers())
    world.read("p0", 0, [1000], names=("speed",))
    assert world.around.models.judged == 0


def test_a_model_that_is_taken_from_work_ends_its_episodes():
    world = World(outliers())
    for number, values in enumerate(faulty(80)):
        world.read("p0", number, values)
    world.around = replace(world.around, models=ModelBook())
    world.read("p0", 80, rows(1)[0])
    assert kinds(world)[-1] == "anomaly_ended"
    assert world.log.anomalies[-1].end_reason == "detector_removed"
    assert world.devices["p0"].modelled is None


def test_another_version_begins_anew():
    world = World(outliers())
    for number, values in enumerate(faulty(80)):
        world.read("p0", number, values)
    world.around = replace(world.around, models=ModelBook([outliers(version=4)]))
    for number, values in enumerate(faulty(80, at=0), 80):
        world.read("p0", number, values)
    assert kinds(world).count("anomaly") == 2
    assert world.log.anomalies[-1].detector == "model:pumps@4"
    assert list(world.devices["p0"].modelled.memories) == ["pumps@4"]


def test_a_decommissioned_device_is_not_judged():
    world = World(outliers())
    for number, values in enumerate(faulty(80)):
        world.read("p0", number, values)
    world.turn([reading("p0", 80, [10, 80]), Decommission("p0")])
    assert world.log.anomalies[-1].end_reason == "device_decommissioned"
    assert world.devices["p0"].modelled is None


def test_a_model_that_fails_costs_no_reading():
    world = World(outliers(), outliers(name="other"))

    def fail(*_):
        raise ZeroDivisionError("0")

    world.around.models.by_type["pump"]["other@3"].scorer.step = fail
    for number, values in enumerate(faulty(80)):
        world.read("p0", number, values)
    assert len(world.log.readings) == 80
    assert world.around.models.broken == {"other@3": "ZeroDivisionError: 0"}
    assert kinds(world)[0] == "anomaly"
    book = ModelBook([ActiveModel(INFO, b"rubbish")])
    assert "not the numbers of a model" in book.broken["pumps@3"]
    assert book.statistics()["models"] == []


def test_a_failure_model_finds_what_its_windows_say():
    names = feature_names(["flow"])
    weights = np.array([3.0 if n == "std(flow)" else 0.0 for n in names])
    model = FailureModel(["flow"], 16, np.zeros(len(names)), np.ones(len(names)), weights, -6.0)
    info = msgspec.structs.replace(INFO, name="fails", kind="failure", metrics=("flow",))
    world = World(ActiveModel(info, plain.encode(model)))
    quiet = np.random.default_rng(1).normal(10, 1, 100)
    for number, value in enumerate([*quiet, *(quiet * 5)]):
        world.read("p1", number, [value], names=("flow",))
    first = world.log.anomalies[0]
    assert first.start_ms >= T0_MS + 100_000
    assert first.explanation[0].feature == "std(flow)"
    assert first.metric == "flow"
    assert first.value > 2
