"""How fast devices are commanded, through a whole platform, a real broker and simulated devices.

`make bench-commands` or `python bench/commands.py [--json] [--seconds 15]`:

* latency: HTTP request with `wait_s` → turn → broker → device → answer → HTTP response, at a fixed rate;
* throughput: commands by way of the router, as fast as they end, with a bounded number of them open.

The devices count what they are told: nothing may be told twice.
"""

import argparse
import asyncio
import itertools
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from callers import Callers
from surroundings import machine, mosquitto

from sensorium.actors.messages import Register, SendCommand
from sensorium.actors.router import Router
from sensorium.actors.runtime import join_ray, make_router
from sensorium.cluster.run_directory import RunState, read_state
from sensorium.cluster.simulator.responder import Responder
from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import open_pool

DEVICES = 2_000
WARM_UP_S = 3.0
CONNECTIONS = 200
READY_TIMEOUT_S = 120.0
LEGS = ("to QUEUED", "to SENT", "to the answer", "to the response")
"""Between the moments of the command's turns, before each of which lies the commit of the last one."""


def start(directory: Path, broker_port: int, coap_port: int | None = None) -> "subprocess.Popen[bytes]":
    """A platform in a process of its own, once it is ready."""
    command = [Path(sys.executable).with_name("sensorium"), "up", "--data-dir", directory]
    command += ["--coap-port", str(coap_port or free_port())]
    for option in ("--http-port", "--mqtt-port"):
        command += [option, str(free_port())]
    environment = {**os.environ, "MQTT_BROKER_URL": f"mqtt://127.0.0.1:{broker_port}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    if not process.stdout.readline().startswith(b"ready "):
        raise RuntimeError("the platform did not start; run `sensorium up` to see why")
    return process


async def latency(url: str, device_ids: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """Milliseconds from request to response at a fixed rate; the schedule does not wait for slow answers."""
    late_ms: list[float] = []
    states: Counter[str] = Counter()
    legs: dict[str, list[float]] = {leg: [] for leg in LEGS}
    async with Callers(url, CONNECTIONS) as callers:

        async def one(number: int, counts: bool) -> None:
            began_s, began_ms = time.perf_counter(), time.time_ns() / 1e6
            status, answer = await callers.post(
                f"/api/devices/{device_ids[number % len(device_ids)]}/commands",
                b'{"command": "echo", "parameters": {"n": %d}, "wait_s": 10}' % number,
            )
            if counts:
                late_ms.append((time.perf_counter() - began_s) * 1000)
                ended_ms = time.time_ns() / 1e6
                command = msgspec.json.decode(answer)
                states[command.get("state", str(status))] += 1
                if command.get("state") == "SUCCEEDED":
                    moments = (began_ms, *(step["time_ms"] for step in command["steps"]), ended_ms)
                    for leg, (begin, end) in zip(LEGS, itertools.pairwise(moments), strict=True):
                        legs[leg].append(end - begin)

        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round((WARM_UP_S + seconds) * rate)):
                due_s = number / rate
                await asyncio.sleep(max(0.0, begin_s + due_s - time.perf_counter()))
                tasks.create_task(one(number, due_s >= WARM_UP_S))
    cuts = statistics.quantiles(late_ms, n=1000)
    return {
        "rate": rate,
        "commands": len(late_ms),
        "ended": dict(states),
        "p50_ms": round(cuts[499], 1),
        "p99_ms": round(cuts[989], 1),
        "legs": {leg: _p50_p99(values) for leg, values in legs.items()},
    }


def _p50_p99(values: list[float]) -> list[float]:
    cuts = statistics.quantiles(values, n=100)
    return [round(cuts[49], 1), round(cuts[98], 1)]


async def throughput(
    router: Router, commands: PgCommands, device_ids: list[str], seconds: float, open_at_once: int
) -> dict[str, Any]:
    """Commands that end in a second, when as many are kept open."""
    job = f"bench-{secrets.token_hex(4)}"
    sent = 0

    async def ended() -> int:
        return sum(n for state, n in (await commands.counts(job)).items() if state == "SUCCEEDED")

    async def give(count: int) -> None:
        nonlocal sent
        now_ms = time.time_ns() // 1_000_000
        messages = [
            SendCommand(
                *(device_ids[n % len(device_ids)], f"{job}-{n}", "echo", {"n": n}),
                *(30_000, now_ms + 600_000, 0, job),
            )
            for n in range(sent, sent + count)
        ]
        sent += count
        await asyncio.gather(*(router.ask(message) for message in messages))

    begin_s = time.perf_counter()
    start: tuple[float, int] | None = None
    while (now_s := time.perf_counter()) - begin_s < WARM_UP_S + seconds:
        done = await ended()
        if start is None and now_s - begin_s >= WARM_UP_S:
            start = (now_s, done)
        if sent - done < open_at_once:
            await give(open_at_once - (sent - done))
        else:
            await asyncio.sleep(0.02)
    assert start is not None
    done, end_s = await ended(), time.perf_counter()
    rate = (done - start[1]) / (end_s - start[0])
    async with asyncio.timeout(60):
        while await ended() < sent:
            await asyncio.sleep(0.1)
    return {"commands_per_s": round(rate), "commands": sent, "ended": await commands.counts(job)}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    device_ids = [f"bench-{n:05}" for n in range(DEVICES)]
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as name:
        directory = Path(name)
        with mosquitto(directory) as (port, _):
            process = await asyncio.to_thread(start, directory / "data", port)
            try:
                state: RunState = read_state(directory / "data")
                await asyncio.to_thread(join_ray, state.ray_address)
                pool = await open_pool(state.database, 2)
                address = BrokerAddress(host="127.0.0.1", port=port)
                async with (
                    make_router(f"bench-{os.getpid()}") as router,
                    Responder(address, device_ids) as devices,
                    asyncio.timeout(READY_TIMEOUT_S + 4 * (WARM_UP_S + options.seconds)),
                ):
                    await devices.connected()
                    await asyncio.gather(*(router.ask(Register(d, "bench"), 60) for d in device_ids))
                    slow = await latency(state.http_url, device_ids, options.rate, options.seconds)
                    fast = await throughput(
                        router, PgCommands(pool), device_ids, options.seconds, options.open
                    )
                    told, repeated = devices.told, devices.repeated
                pool.terminate()
            finally:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 60)
    return {
        "machine": machine(),
        "latency": slow,
        "throughput": fast,
        "told": told,
        "told_twice": repeated,
    }


def show(result: dict[str, Any]) -> None:
    slow, fast = result["latency"], result["throughput"]
    print(result["machine"])
    print(
        f"HTTP → device → HTTP at {slow['rate']:g} commands/s:"
        f" p50 {slow['p50_ms']} ms, p99 {slow['p99_ms']} ms"
    )
    legs = (f"{leg} {p50:g} / {p99:g} ms" for leg, (p50, p99) in slow["legs"].items())
    print(f"of it, p50 / p99: {', '.join(legs)}")
    print(f"ended: {slow['ended']}")
    print(f"sustained: {fast['commands_per_s']:,} commands/s ({fast['ended']})")
    print(f"told {result['told']:,} commands, {result['told_twice']} of them twice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measured run")
    parser.add_argument("--rate", type=float, default=100.0, help="commands a second for the latency")
    parser.add_argument("--open", type=int, default=1_000, help="open commands for the throughput")
    options = parser.parse_args()
    result = uvloop.run(run(options))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
