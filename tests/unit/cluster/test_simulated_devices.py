"""Simulated devices: the same seed gives the same days, healthy ones trip no rule and faults trip one."""

from itertools import pairwise
from statistics import mean

import pytest

from sensorium.actors.conditions import validate
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import ACCEPTED, Reading, Register
from sensorium.actors.records import Commit
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Range as RangeRule
from sensorium.actors.rules import RateOfChange, Rule, Threshold, ZScore
from sensorium.cluster.simulator.faults import Fault, FaultKind, FaultPlan
from sensorium.cluster.simulator.models import MODELS, SimulatedDevice
from sensorium.cluster.simulator.noise import Noise, daily
from sensorium.cluster.simulator.rules import RULES

MIDNIGHT_S = 1_790_000_000 // 86_400 * 86_400
HOUR_S = 3600
KINDS = [(index, kind) for index, model in enumerate(MODELS) for kind in model.faults]


def watched(simulated: SimulatedDevice) -> tuple[Device, Surroundings]:
    rules = [
        Rule(rule_id=str(i), version=1, spec=spec, created_ms=0, updated_ms=0) for i, spec in enumerate(RULES)
    ]
    around = Surroundings(rules=RuleBook(rules))
    device = Device(simulated.device_id, Shard(1, 0))
    device.handle(Register(device.id, simulated.device_type), 0, around, Commit())
    return device, around


def alarms(simulated: SimulatedDevice, start_s: float, end_s: float, step_s: float) -> list[str]:
    """The names of the rules that raised an alarm of the device over that time."""
    device, around = watched(simulated)
    effects = Commit()
    time_s, key = start_s, 0
    while time_s < end_s:
        sample = simulated.sample(time_s)
        key += 1
        time_ms = round(time_s * 1000)
        reading = Reading(device.id, time_ms, time_ms, key, 0, [*sample.values()])
        assert device.read(reading, tuple(sample), time_ms, around, effects) is ACCEPTED
        time_s += step_s
    return [alarm.rule_name for alarm in effects.alarms if alarm.state == "ACTIVE"]


def test_a_fleet_holds_all_types_and_unique_ids() -> None:
    fleet = [SimulatedDevice(i, 7, 1.0, 5.0) for i in range(200)]
    assert len({d.device_id for d in fleet}) == 200
    assert {d.device_type for d in fleet} == {"climate", "vibration", "energy_meter", "tank_level"}
    assert {d.phase_s for d in fleet} != {0.0}
    assert all(0 <= d.phase_s < 5.0 for d in fleet)
    assert {d.registration()["metadata"]["site"] for d in fleet} == {f"plant-{n}" for n in range(1, 5)}  # type: ignore[index]


@pytest.mark.parametrize("index", range(4))
def test_the_same_seed_gives_the_same_readings_in_any_order(index: int) -> None:
    times = [MIDNIGHT_S + 97.3 * n for n in range(300)]
    once = [SimulatedDevice(index, 3, 4.0, 5.0).sample(t) for t in times]
    again = [SimulatedDevice(index, 3, 4.0, 5.0).sample(t) for t in reversed(times)]
    other = [SimulatedDevice(index, 4, 4.0, 5.0).sample(t) for t in times]
    neighbour = [SimulatedDevice(index + 4, 3, 4.0, 5.0).sample(t) for t in times]
    assert once == again[::-1]
    assert once != other
    assert once != neighbour


@pytest.mark.parametrize(
    ("index", "metric", "high_h", "low_h"),
    [(0, "temperature", 15, 3), (1, "rms_velocity", 13, 1), (3, "flow", 12, 0)],
)
def test_days_have_a_cycle(index: int, metric: str, high_h: int, low_h: int) -> None:
    model = MODELS[index](11)

    def around(hour: int) -> float:
        times = [MIDNIGHT_S + day * 86_400 + hour * HOUR_S + 60 * m for day in range(5) for m in range(60)]
        return mean(model.sample(t)[metric] for t in times)

    assert around(high_h) - around(low_h) > 0.5


def test_power_has_a_cycle_and_the_counter_never_falls() -> None:
    model = MODELS[2](5)
    samples = [model.sample(MIDNIGHT_S + 300 * n) for n in range(2 * 288)]
    power = [s["power_w"] for s in samples]
    energy = [s["energy_kwh"] for s in samples]
    assert max(power) > 2 * min(power)
    assert all(later > earlier for earlier, later in pairwise(energy))
    measured_kwh = mean(power[:288]) * 24 / 1000
    assert energy[288] - energy[0] == pytest.approx(measured_kwh, rel=0.03)


def test_noise_is_centred_and_bounded() -> None:
    noise = Noise(1, "x")
    values = [noise.at(n) for n in range(20_000)]
    assert abs(mean(values)) < 0.03
    assert mean(v * v for v in values) == pytest.approx(1.0, abs=0.03)
    assert max(map(abs, values)) <= 3.4642
    assert noise.smooth(1000.0, 10.0) == pytest.approx(noise.at(100))
    assert abs(noise.smooth(1000.0, 10.0) - noise.smooth(1000.1, 10.0)) < 0.01
    assert daily(15 * HOUR_S, 15) == pytest.approx(1)


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("step_s", [pytest.param(1.0, marks=pytest.mark.slow), 10.0])
def test_healthy_devices_trip_no_rule(index: int, step_s: float) -> None:
    healthy = SimulatedDevice(index, 1, 0.0, step_s)
    assert alarms(healthy, MIDNIGHT_S, MIDNIGHT_S + 8_640 * step_s, step_s) == []


@pytest.mark.parametrize(("index", "kind"), KINDS, ids=lambda v: getattr(v, "name", None))
@pytest.mark.parametrize("hour", [3, 15])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_fault_trips_a_rule(index: int, kind: FaultKind, hour: int, seed: int) -> None:
    class Once(FaultPlan):
        def at(self, time_s: float) -> Fault | None:
            return fault if fault.start_s <= time_s < fault.end_s else None

    start_s = MIDNIGHT_S + hour * HOUR_S
    fault = Fault(kind, start_s + 300, start_s + 300 + kind.duration_s)
    simulated = SimulatedDevice(index, seed, 0.0, 5.0)
    simulated.plan = Once(1, (), 0.0, 5.0)
    assert alarms(simulated, start_s, fault.end_s + 60, 5.0) != []


def test_faults_come_at_the_rate_asked_for_and_last_for_two_readings() -> None:
    kinds = MODELS[0].faults
    plans = [FaultPlan(seed, kinds, rate_per_h=0.5, interval_s=60.0) for seed in range(50)]
    found = [f for plan in plans for slot in range(480) if (f := plan.of_slot(slot))]
    assert len(found) / (50 * 480 * 900 / 3600) == pytest.approx(0.5, rel=0.1)
    assert {f.kind.name for f in found} == {"spike", "stuck", "drift_off"}
    assert min(f.end_s - f.start_s for f in found) >= 120
    assert all(f.start_s // 900 == (f.end_s - 0.001) // 900 for f in found)
    assert FaultPlan(1, kinds, 0.0, 5.0).of_slot(3) is None


def test_the_rules_are_valid_and_of_each_kind() -> None:
    for rule in RULES:
        validate(rule)
    assert {type(rule.condition) for rule in RULES} == {Threshold, RangeRule, RateOfChange, ZScore}
    assert len({rule.name for rule in RULES}) == len(RULES)
    measured = {model.device_type: set(model(1).sample(0.0)) for model in MODELS}
    for rule in RULES:
        assert rule.condition.metric in measured[rule.scope.device_type or ""]
