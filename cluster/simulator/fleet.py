"""A simulated fleet at work: registers its devices, sees to its rules and publishes on schedule."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count

import msgspec

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ungrouped
from sensorium.cluster.publisher import Outlet, Publisher
from sensorium.cluster.simulator.models import SimulatedDevice
from sensorium.cluster.simulator.rules import RULES

REGISTRATIONS_AT_ONCE = 16
DEVICES_PER_CONNECTION = 500
MAX_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Simulation:
    """What to simulate.

    Attributes:
        devices: how many, the types taken in turn.
        interval_s: simulated seconds between two readings of a device.
        speed: simulated seconds that pass in one real second.
        duration_s: real seconds until it ends by itself; None for never.
        seed: of all chance.
        faults_per_h: faults of one device in one simulated hour, on average.
        qos: of the publishes.
    """

    devices: int = 200
    interval_s: float = 5.0
    speed: float = 1.0
    duration_s: float | None = None
    seed: int = 1
    faults_per_h: float = 1.0
    qos: int = 1

    def fleet(self) -> list[SimulatedDevice]:
        """The devices."""
        return [
            SimulatedDevice(index, self.seed, self.faults_per_h, self.interval_s)
            for index in range(self.devices)
        ]

    @property
    def connections(self) -> int:
        """How many MQTT connections it takes."""
        return min(MAX_CONNECTIONS, -(-self.devices // DEVICES_PER_CONNECTION))

    def start_s(self, now_s: float) -> float:
        """The simulated time at which to start, so that no reading lies in the future.

        Faster than real time, it starts in the past and ends now.
        """
        return now_s - (self.speed - 1.0) * (self.duration_s or 0.0)


async def prepare(api: PlatformApi, devices: Sequence[SimulatedDevice]) -> int:
    """Register the devices and create the fleet's rules, where they are not there yet.

    Returns:
        How many devices were new.

    Raises:
        PlatformUnreachable: the platform did not take one.
    """
    known = await api.rule_names()
    for rule in RULES:
        if rule.name not in known:
            await api.create_rule(rule)
    waiting = iter(devices)
    new = 0

    async def register() -> None:
        nonlocal new
        for device in waiting:
            was_new = await api.register(device.registration())
            new += was_new

    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(REGISTRATIONS_AT_ONCE):
                tasks.create_task(register())
    return new


def schedule(
    devices: Sequence[SimulatedDevice], interval_s: float
) -> Iterator[tuple[float, SimulatedDevice]]:
    """Who sends when, without end: seconds from the start and the device, in order."""
    ordered = sorted(devices, key=lambda device: device.phase_s)
    for cycle in count():
        for device in ordered:
            yield cycle * interval_s + device.phase_s, device


def rows(
    devices: Sequence[SimulatedDevice], interval_s: float, start_s: float, duration_s: float
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """What the devices would send in that time, for `Fork.replay`: device id, event time in ms, values."""
    for due_s, device in schedule(devices, interval_s):
        if due_s >= duration_s:
            return
        time_s = start_s + due_s
        yield device.device_id, int(time_s * 1000), device.sample(time_s)


class FleetSimulator:
    """Publishes a fleet's readings. A broker that is slow delays it; nothing is skipped.

    Args:
        publishers: open connections; the devices are spread over them.
        clock, sleep: seconds since 1970 and how to wait, for tests to jump.

    Attributes:
        behind_s: real seconds that the last publish was late by.
    """

    def __init__(
        self,
        simulation: Simulation,
        devices: Sequence[SimulatedDevice],
        publishers: Sequence[Publisher],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.behind_s = 0.0
        self._simulation = simulation
        self._outlets = [Outlet(publisher, simulation.qos) for publisher in publishers]
        self._shares = [devices[i :: len(publishers)] for i in range(len(publishers))]
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Returns after the simulation's duration, when everything is acknowledged.

        Raises:
            DeliveryFailed: the broker stayed away.
        """
        started_s = self._clock()
        with ungrouped():
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                for outlet, share in zip(self._outlets, self._shares, strict=True):
                    await stack.enter_async_context(outlet)
                    tasks.create_task(self._publish(outlet, share, started_s))

    def statistics(self) -> dict[str, float]:
        """Messages sent and acknowledged so far, and how late the schedule is."""
        return {
            "sent": sum(outlet.sent for outlet in self._outlets),
            "acked": sum(outlet.acked for outlet in self._outlets),
            "behind_s": self.behind_s,
        }

    async def _publish(self, outlet: Outlet, devices: Sequence[SimulatedDevice], started_s: float) -> None:
        simulation = self._simulation
        start_s = simulation.start_s(started_s)
        for due_s, device in schedule(devices, simulation.interval_s):
            real_due_s = due_s / simulation.speed
            if simulation.duration_s is not None and real_due_s >= simulation.duration_s:
                return
            wait_s = started_s + real_due_s - self._clock()
            self.behind_s = max(0.0, -wait_s)
            if wait_s > 0:
                await self._sleep(wait_s)
            time_s = start_s + due_s
            await outlet.send(f"devices/{device.device_id}/telemetry", payload(device, time_s))


def payload(device: SimulatedDevice, time_s: float) -> bytes:
    """The telemetry message of a device at a time."""
    return msgspec.json.encode({"timestamp": int(time_s * 1000), **device.sample(time_s)})
