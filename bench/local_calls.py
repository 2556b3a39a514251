"""What a call of a host costs either side by Ray alone and over a Unix socket, taken by turns in one run.

`python bench/local_calls.py [--json] [--rate 100] [--seconds 6] [--rounds 3]`: 300 bytes there and back by a
router's transport, at a low rate, less what the two processes take without any call.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from typing import Any

import psutil
import ray
from surroundings import machine

from sensorium.actors.runtime import remote_class, start_ray
from sensorium.actors.transport import RayTransport

BODY = b"x" * 300


class Echo:
    """Answers with what it is sent, as a host is called."""

    def __init__(self, local_calls: bool) -> None:
        self.local_calls = local_calls

    async def deliver(self, data: bytes) -> bytes:
        return data


def cpu_s(pids: tuple[int, int]) -> list[float]:
    """Of the caller and of the called."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return [each.user + each.system for each in times]


async def idle(pids: tuple[int, int], seconds: float) -> list[float]:
    """Shares of a core that the two take anyway."""
    before = cpu_s(pids)
    await asyncio.sleep(seconds)
    return [(after - b) / seconds for after, b in zip(cpu_s(pids), before, strict=True)]


async def calls(transport: RayTransport, host: Any, rate: float, seconds: float) -> dict[str, float]:
    """One round at a fixed rate, which does not wait for slow answers."""
    pids = (os.getpid(), await host.pid.remote())
    anyway = await idle(pids, 2.0)
    took_ms: list[float] = []

    async def one() -> None:
        began_s = time.perf_counter()
        await transport.deliver(host, BODY)
        took_ms.append((time.perf_counter() - began_s) * 1000)

    begin_s, before = time.perf_counter(), cpu_s(pids)
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begin_s + number / rate - time.perf_counter()))
            tasks.create_task(one())
    lasted_s = time.perf_counter() - begin_s
    each = [
        (after - b - share * lasted_s) / len(took_ms) * 1e6
        for after, b, share in zip(cpu_s(pids), before, anyway, strict=True)
    ]
    cuts = statistics.quantiles(took_ms, n=100)
    return {"caller_us": each[0], "host_us": each[1], "p50_ms": cuts[49], "p99_ms": cuts[98]}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    hosts = {
        way: remote_class(Echo).options(num_cpus=0, max_concurrency=100).remote(way == "socket")
        for way in ("ray", "socket")
    }
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in hosts}
    transport = RayTransport(hosts["ray"])
    try:
        for host in hosts.values():
            for _ in range(20):  # it looks for the socket behind the first of them
                await transport.deliver(host, BODY)
                await asyncio.sleep(0.05)
        for _ in range(options.rounds):
            for way, host in hosts.items():
                rounds[way].append(await calls(transport, host, options.rate, options.seconds))
    finally:
        await transport.close()
    medians = {
        way: {name: round(statistics.median(r[name] for r in found), 2) for name in found[0]}
        for way, found in rounds.items()
    }
    return {"machine": machine(), "rate": options.rate, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, by turns")
    options = parser.parse_args()
    start_ray()
    try:
        result = asyncio.run(run(options))
    finally:
        ray.shutdown()
    if options.json:
        print(json.dumps(result))
        return
    print(result["machine"])
    for way in ("ray", "socket"):
        told = result[way]
        print(
            f"{way:7} caller {told['caller_us']:,.0f} and host {told['host_us']:,.0f} CPU-µs a call at"
            f" {result['rate']:g}/s; there and back p50 {told['p50_ms']:.2f} ms, p99 {told['p99_ms']:.2f} ms"
        )


if __name__ == "__main__":
    main()
