"""Four types of devices as pure functions of time: daily cycles, slow wandering, sensor noise."""

import math
from typing import ClassVar, Final, Protocol

from sensorium.cluster.simulator.faults import Effect, FaultKind, FaultPlan, Shape
from sensorium.cluster.simulator.noise import Noise, daily, uniform

EPOCH_S: Final = 1_704_067_200.0
"""2024-01-01 UTC, when the simulated energy meters were installed."""
_DAY_S: Final = 86_400.0


class Model(Protocol):
    """A healthy device."""

    device_type: ClassVar[str]
    faults: ClassVar[tuple[FaultKind, ...]]

    def __init__(self, seed: int) -> None:
        """Two models of one seed are alike."""
        ...

    def sample(self, time_s: float) -> dict[str, float]:
        """What it measures at a time in seconds since 1970."""
        ...


class Climate:
    """Temperature (°C) and relative humidity (%) of a room."""

    device_type: ClassVar[str] = "climate"
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("spike", 10, (Effect("temperature", Shape.ADD, 32.0),)),
        FaultKind("stuck", 120, (Effect("humidity", Shape.SET, 100.0),)),
        FaultKind("drift_off", 300, (Effect("temperature", Shape.RAMP, 36.0),)),
    )

    def __init__(self, seed: int) -> None:
        self._mean = 19.0 + 4.0 * uniform(seed, 1)
        self._temperature = Noise(seed, "temperature")
        self._humidity = Noise(seed, "humidity")

    def sample(self, time_s: float) -> dict[str, float]:
        warm = daily(time_s, 15.0)
        weather = self._temperature.smooth(time_s, 3 * 3600)
        temperature = self._mean + 2.5 * warm + 0.5 * weather + 0.05 * self._temperature.white(time_s)
        humidity = 48.0 - 8.0 * warm + 2.0 * self._humidity.smooth(time_s, 3600)
        return {
            "temperature": round(temperature, 2),
            "humidity": round(humidity + 0.3 * self._humidity.white(time_s), 1),
        }


class Vibration:
    """A bearing: RMS velocity (mm/s), peak acceleration (m/s²), temperature (°C)."""

    device_type: ClassVar[str] = "vibration"
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("spike", 10, (Effect("peak_acceleration", Shape.ADD, 45.0),)),
        FaultKind("stuck", 120, (Effect("temperature", Shape.SET, 150.0),)),
        FaultKind(
            "drift_off",
            300,
            (Effect("rms_velocity", Shape.RAMP, 9.0), Effect("temperature", Shape.RAMP, 18.0)),
        ),
    )

    def __init__(self, seed: int) -> None:
        self._load = Noise(seed, "load")
        self._sensor = Noise(seed, "sensor")
        self._heat = Noise(seed, "heat")
        self._rms = 1.8 + 0.8 * uniform(seed, 1)

    def sample(self, time_s: float) -> dict[str, float]:
        load = 0.4 * daily(time_s, 13.0) + 0.15 * self._load.smooth(time_s, 1800)
        noise = self._sensor.white(time_s)
        return {
            "rms_velocity": round(self._rms + load + 0.05 * noise, 3),
            "peak_acceleration": round(8.0 + 1.5 * load + 0.5 * self._load.white(time_s), 2),
            "temperature": round(48.0 + 8.0 * load + 0.1 * self._heat.white(time_s), 1),
        }


class EnergyMeter:
    """One phase: power (W), voltage (V), current (A), and the energy counter (kWh), which never falls."""

    device_type: ClassVar[str] = "energy_meter"
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("spike", 10, (Effect("voltage", Shape.ADD, 38.0),)),
        FaultKind(
            "stuck",
            120,
            tuple(Effect(metric, Shape.SET, 0.0) for metric in ("power_w", "voltage", "current")),
        ),
        FaultKind("drift_off", 300, (Effect("voltage", Shape.RAMP, -45.0),)),
    )
    _POWER_FACTOR = 0.95

    def __init__(self, seed: int) -> None:
        self._mean_w = 900.0 + 1_200.0 * uniform(seed, 1)
        self._peak_h = 17.0 + 3.0 * uniform(seed, 2)
        self._power = Noise(seed, "power")
        self._voltage = Noise(seed, "voltage")

    def sample(self, time_s: float) -> dict[str, float]:
        power_w = self._mean_w * (1.0 + 0.5 * daily(time_s, self._peak_h))
        power_w *= 1.0 + 0.06 * self._power.smooth(time_s, 300) + 0.02 * self._power.white(time_s)
        voltage = 230.0 - 1.5 * daily(time_s, self._peak_h) + 1.2 * self._voltage.smooth(time_s, 600)
        voltage += 0.3 * self._voltage.white(time_s)
        return {
            "power_w": round(power_w, 1),
            "voltage": round(voltage, 1),
            "current": round(power_w / (voltage * self._POWER_FACTOR), 2),
            "energy_kwh": round(self._energy_kwh(time_s), 4),
        }

    def _energy_kwh(self, time_s: float) -> float:
        # The integral of the daily load alone: counting the noise would need the whole past.
        phase = 2 * math.pi * self._peak_h / 24
        turn = 2 * math.pi / _DAY_S
        swing = (math.sin(turn * time_s - phase) - math.sin(turn * EPOCH_S - phase)) / turn
        return self._mean_w * (time_s - EPOCH_S + 0.5 * swing) / 3_600_000


class TankLevel:
    """A tank that empties over the day and is filled in four hours: level (%), outflow (l/min), °C."""

    device_type: ClassVar[str] = "tank_level"
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("spike", 10, (Effect("flow", Shape.ADD, 40.0),)),
        FaultKind("stuck", 120, (Effect("level_pct", Shape.SET, 0.0),)),
        FaultKind("leak", 100, (Effect("level_pct", Shape.RAMP, -30.0), Effect("flow", Shape.ADD, 15.0))),
    )
    _FULL, _LOW = 90.0, 40.0
    _EMPTYING = 20 / 24

    def __init__(self, seed: int) -> None:
        self._shift = uniform(seed, 1)
        self._level = Noise(seed, "level")
        self._flow = Noise(seed, "flow")
        self._heat = Noise(seed, "heat")

    def sample(self, time_s: float) -> dict[str, float]:
        phase = (time_s / _DAY_S + self._shift) % 1.0
        if phase < self._EMPTYING:
            level = self._FULL - (self._FULL - self._LOW) * phase / self._EMPTYING
        else:
            filled = (phase - self._EMPTYING) / (1.0 - self._EMPTYING)
            level = self._LOW + (self._FULL - self._LOW) * filled
        # Only slow noise: a white one would look like a leak whenever readings are dense.
        level += 0.3 * self._level.smooth(time_s, 600)
        flow = 12.0 + 3.0 * daily(time_s, 12.0) + 0.4 * self._flow.white(time_s)
        heat = 14.0 + 2.0 * daily(time_s, 16.0) + 0.5 * self._heat.smooth(time_s, 7200)
        return {"level_pct": round(level, 3), "flow": round(flow, 2), "temperature": round(heat, 2)}


MODELS: Final[tuple[type[Model], ...]] = (Climate, Vibration, EnergyMeter, TankLevel)


class SimulatedDevice:
    """A device of a fleet: a healthy model and the faults that befall it.

    The same index, seed, rate and interval give the same readings at the same times.

    Attributes:
        phase_s: when in each interval it sends, so that a fleet does not speak all at once.
    """

    def __init__(self, index: int, seed: int, faults_per_h: float, interval_s: float) -> None:
        model = MODELS[index % len(MODELS)]
        own = seed * 1_000_003 + index
        self.device_type = model.device_type
        self.device_id = f"{model.device_type.replace('_', '-')}-{index // len(MODELS) + 1:04d}"
        self.phase_s = interval_s * uniform(own, 7)
        self.model: Model = model(own)
        self.plan = FaultPlan(own, model.faults, faults_per_h, interval_s)
        self._site = 1 + index // len(MODELS) % 4
        self._place = (uniform(own, 8), uniform(own, 9))

    def sample(self, time_s: float) -> dict[str, float]:
        """Its readings at a time in seconds since 1970."""
        healthy = self.model.sample(time_s)
        fault = self.plan.at(time_s)
        return fault.applied(healthy, time_s) if fault else healthy

    def registration(self) -> dict[str, object]:
        """The body of its `POST /api/devices`."""
        north, east = self._place
        return {
            "device_id": self.device_id,
            "device_type": self.device_type,
            "location": {
                "latitude": round(48.0 + self._site + 0.02 * north, 5),
                "longitude": round(9.0 + self._site + 0.02 * east, 5),
                "address": f"Plant {self._site}",
            },
            "metadata": {"site": f"plant-{self._site}", "simulated": True},
        }
