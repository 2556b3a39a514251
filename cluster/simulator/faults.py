"""When a simulated device fails and what that does to its readings: decided by seed and time alone."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from sensorium.cluster.simulator.noise import mix, uniform

SLOT_S = 900.0
"""A device has at most one fault in each slot of time."""


class Shape(Enum):
    """How a fault changes a metric."""

    ADD = auto()
    """The amount on top, from the first moment to the last."""
    SET = auto()
    """The amount instead of the value."""
    RAMP = auto()
    """From nothing at the start to the amount on top at the end."""


class Effect(NamedTuple):
    """What a fault does to one metric."""

    metric: str
    shape: Shape
    amount: float


class FaultKind(NamedTuple):
    """A way to fail, such as "spike" or "leak"."""

    name: str
    duration_s: float
    effects: tuple[Effect, ...]


class Fault(NamedTuple):
    """A failure from `start_s` (included) to `end_s` (excluded), seconds since 1970."""

    kind: FaultKind
    start_s: float
    end_s: float

    def applied(self, healthy: dict[str, float], time_s: float) -> dict[str, float]:
        """The readings of a device that would otherwise read `healthy`."""
        readings = dict(healthy)
        for metric, shape, amount in self.kind.effects:
            match shape:
                case Shape.ADD:
                    readings[metric] += amount
                case Shape.SET:
                    readings[metric] = amount
                case Shape.RAMP:
                    readings[metric] += amount * (time_s - self.start_s) / (self.end_s - self.start_s)
        return readings


class FaultPlan:
    """The faults of one device.

    Args:
        seed: of the device.
        kinds: what may happen to it; empty: nothing.
        rate_per_h: how many a device has an hour on average, at most one a slot.
        interval_s: between readings. A fault lasts for two of them at least, so that none passes unseen.
    """

    def __init__(self, seed: int, kinds: Sequence[FaultKind], rate_per_h: float, interval_s: float) -> None:
        self._seed = mix(seed, 0xFA017)
        self._kinds = tuple(k._replace(duration_s=max(k.duration_s, 2.5 * interval_s)) for k in kinds)
        longest_s = max((k.duration_s for k in self._kinds), default=0.0)
        self._slot_s = max(SLOT_S, 3 * longest_s)
        self._chance = min(1.0, rate_per_h * self._slot_s / 3600)

    def at(self, time_s: float) -> Fault | None:
        """The fault of this moment, if there is one."""
        fault = self.of_slot(int(time_s // self._slot_s))
        return fault if fault and fault.start_s <= time_s < fault.end_s else None

    def of_slot(self, slot: int) -> Fault | None:
        """The fault of the slot-th slot since 1970, if there is one."""
        if not self._kinds or uniform(self._seed, 3 * slot) >= self._chance:
            return None
        kind = self._kinds[mix(self._seed, 3 * slot + 1) % len(self._kinds)]
        room_s = self._slot_s - kind.duration_s
        start_s = slot * self._slot_s + room_s * uniform(self._seed, 3 * slot + 2)
        return Fault(kind, start_s, start_s + kind.duration_s)
