"""Figures of the runtime on Ray for `runtime.py`: a killed host, and actors a device beside hosts."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import psutil
import ray

from sensorium.actors.coordinator import RuntimeSpec
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.host import HostSettings
from sensorium.actors.messages import Reading
from sensorium.actors.placement import SHARDS, shard_of
from sensorium.actors.records import Commit
from sensorium.actors.router import Router
from sensorium.actors.runtime import make_router, start_coordinator, start_ray
from sensorium.storage import PgHostPorts, PgMembershipFactory, migrate

NAMES = ("temperature", "humidity", "pressure")
PENDING = 2_000
MOVED_DEVICES = 2_000
MOVED_PER_S = 2_000


def values(number: int) -> list[Any]:
    return [20.0 + number % 10, 50.0, 1013.0]


def private_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_full_info().uss / 1e6)


@asynccontextmanager
async def platform(dsn: str, hosts: int) -> AsyncIterator[tuple[Any, Router]]:
    await migrate(dsn)
    spec = RuntimeSpec(
        hosts, PgHostPorts(dsn), PgMembershipFactory(dsn), HostSettings(auto_register_as="bench")
    )
    coordinator = start_coordinator(spec)
    await coordinator.call.remote("start")
    try:
        async with make_router("bench") as router:
            yield coordinator, router
    finally:
        await coordinator.call.remote("stop")
        ray.kill(coordinator)


class Sender:
    """Sends the next reading of devices through a router, and knows when each was acknowledged."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._number = 0
        self.done_s: dict[str, float] = {}

    async def round(self, devices: list[str]) -> None:
        self._number += 1
        now_ms = time.time_ns() // 1_000_000
        for device_id in devices:
            self._router.reading(
                device_id,
                now_ms,
                now_ms,
                self._number,
                NAMES,
                values(self._number),
                0,
                self._acked,
                device_id,
            )
            if self._router.pending >= PENDING:
                await self._router.drained(PENDING // 2)

    def _acked(self, device_id: str, outcome: Any) -> None:
        self.done_s[device_id] = time.perf_counter()


async def recovery(dsn: str, devices: int) -> dict[str, Any]:
    """Kill the host of all devices, send to each at once, and wait until the last is served again."""
    async with platform(dsn, hosts=1) as (coordinator, router):
        sender = Sender(router)
        ids = [f"recovered-{n:05d}" for n in range(devices)]
        for _ in range(3):
            await sender.round(ids)
        await router.drained(1)
        table = await coordinator.call.remote("table")
        pid = await next(iter(table.addresses.values())).pid.remote()
        sender.done_s.clear()
        began_s = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await sender.round(ids)
        await router.drained(1)
        served_s = sorted(at - began_s for at in sender.done_s.values())
    return {"devices": devices, "first_s": round(served_s[0], 2), "last_s": round(served_s[-1], 2)}


class Pacer:
    """Sends so many readings a second, each device in turn, and notes how long each commit took."""

    def __init__(self, router: Router, devices: list[str], per_s: int) -> None:
        self._router = router
        self._devices = devices
        self._per_s = per_s
        self.took: list[tuple[str, float]] = []

    async def run(self) -> None:
        """Until cancelled."""
        began_s, number = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - began_s) * self._per_s)
            now_ms = time.time_ns() // 1_000_000
            for n in range(number, due):
                device_id = self._devices[n % len(self._devices)]
                token = (device_id, time.perf_counter())
                self._router.reading(device_id, now_ms, now_ms, n, NAMES, values(n), 0, self._acked, token)
            number = due
            await asyncio.sleep(0.005)

    def _acked(self, token: tuple[str, float], outcome: Any) -> None:
        device_id, sent_s = token
        self.took.append((device_id, time.perf_counter() - sent_s))

    def pauses_ms(self, shards: Collection[int]) -> dict[str, float]:
        """Quantiles, over these shards, of the longest that a reading of each took; forgets it."""
        longest = dict.fromkeys(shards, 0.0)
        for device_id, seconds in self.took:
            shard = shard_of(device_id)
            if shard in longest:
                longest[shard] = max(longest[shard], seconds)
        self.took.clear()
        ordered = sorted(seconds for seconds in longest.values() if seconds)
        return {
            "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
            "max_ms": round(ordered[-1] * 1000, 1),
        }


async def hand_over(dsn: str, devices: int, per_s: int, seconds: float) -> dict[str, Any]:
    """A fourth host joins three under load: how many shards move, and how long their readings wait."""
    async with platform(dsn, hosts=3) as (coordinator, router):
        ids = [f"moved-{n:04d}" for n in range(devices)]
        await Sender(router).round(ids)
        await router.drained(1)
        pacer = Pacer(router, ids, per_s)
        sending = asyncio.create_task(pacer.run())
        await asyncio.sleep(seconds)
        calm = pacer.pauses_ms(range(SHARDS))
        before = await coordinator.call.remote("table")
        began_s = time.perf_counter()
        await coordinator.call.remote("scale", 4)
        if not await coordinator.call.remote("balanced", 60.0):
            raise SystemExit("bench: the fourth host has not got its shards within 60 s")
        took_s = time.perf_counter() - began_s
        sending.cancel()
        await router.drained(1)
        after = await coordinator.call.remote("table")
        moved = {shard for shard in range(SHARDS) if before.hosts[shard] != after.hosts[shard]}
        pause = pacer.pauses_ms(moved)
    return {
        "moved": len(moved),
        "shards": SHARDS,
        "per_s": per_s,
        "took_s": round(took_s, 2),
        "calm": calm,
        "moving": pause,
    }


async def hosted(dsn: str, devices: list[str], hosts: int, seconds: float) -> dict[str, Any]:
    """The devices in hosts: each message is durable when it counts."""
    began_s = time.perf_counter()
    async with platform(dsn, hosts) as (coordinator, router):
        sender = Sender(router)
        await sender.round(devices)
        await router.drained(1)
        start_s = time.perf_counter() - began_s
        count, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            await sender.round(devices)
            count += len(devices)
            await asyncio.sleep(0)
        await router.drained(1)
        rate = count / (time.perf_counter() - began_s)
        table = await coordinator.call.remote("table")
        pids = [await handle.pid.remote() for handle in table.addresses.values()]
        memory = sum(map(private_mb, pids))
    return {"start_s": round(start_s, 1), "messages_per_s": round(rate), "private_mb": round(memory)}


@ray.remote(num_cpus=0, max_restarts=0)
class OneDevice:
    """A device as a process of its own; nothing it does is durable."""

    def __init__(self, device_id: str) -> None:
        self._device = Device(device_id, Shard(shard_of(device_id), 0))
        self._around = Surroundings(auto_register_as="bench")

    def read(self, number: int, now_ms: int) -> int:
        message = Reading(self._device.id, now_ms, now_ms, number, 0, values(number))
        self._device.read(message, NAMES, now_ms, self._around, Commit())
        return os.getpid()


async def processes(devices: list[str], seconds: float) -> dict[str, Any]:
    """The devices as Ray actors, a process each, with a bounded number of calls under way."""
    cpu_s, began_s = node_cpu_s(), time.perf_counter()
    actors = [OneDevice.remote(device_id) for device_id in devices]
    pids = await asyncio.gather(*(actor.read.remote(0, time.time_ns() // 1_000_000) for actor in actors))
    start_s, start_cpu_s = time.perf_counter() - began_s, node_cpu_s() - cpu_s
    memory = sum(map(private_mb, pids))
    number, count, began_s = 0, 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        calls = []
        for _ in range(PENDING // len(actors)):
            number += 1
            now_ms = time.time_ns() // 1_000_000
            calls += [actor.read.remote(number, now_ms) for actor in actors]
        await asyncio.to_thread(ray.get, calls)
        count += len(calls)
    rate = count / (time.perf_counter() - began_s)
    for actor in actors:
        ray.kill(actor)
    return {
        "start_s": round(start_s, 1),
        "start_cpu_s_each": round(start_cpu_s / len(devices), 2),
        "messages_per_s": round(rate),
        "private_mb": round(memory),
    }


def node_cpu_s() -> float:
    """CPU time that the machine has spent, by anybody."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


async def run(dsn: str, recovered: int, side_by_side: int, seconds: float) -> dict[str, Any]:
    start_ray(object_store_memory=200 * 1024 * 1024)
    try:
        devices = [f"one-{n:03d}" for n in range(side_by_side)]
        found = {"recovery": await recovery(dsn, recovered)}
        found["hand_over"] = await hand_over(dsn, MOVED_DEVICES, MOVED_PER_S, seconds)
        found["hosted"] = await hosted(dsn, devices, 1, seconds)
        found["processes"] = await processes(devices, seconds)
        return {**found, "devices": side_by_side}
    finally:
        ray.shutdown()
