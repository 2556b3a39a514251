"""How fast devices come and go, what they take, and what one process a device would cost instead.

`make bench-runtime` or `python bench/runtime.py [--json] [--registered 1000000] [--active 50000]`:

* one host: activations a second, memory a device, bytes of a passivated one, among many registrations;
* the check of ownership in each commit, with and without;
* on Ray: recovery of 10,000 active devices after SIGKILL of their host, a fourth host that joins three, and
  the same 50 devices in a host and as a Ray actor, so a process, each.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from sensorium.storage import EmbeddedPostgres

HERE = Path(__file__).parent
PARTS = ("host", "fence", "ray")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def one_host(registered: int, active: int) -> dict[str, Any]:
    """In a process of its own, whose memory is the host's alone."""
    command = [sys.executable, str(HERE / "runtime_host.py"), str(registered), str(active)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine()}
    if "host" in options.parts:
        result["host"] = one_host(options.registered, options.active)
    for part in ("fence", "ray"):
        if part not in options.parts:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory,
            EmbeddedPostgres(f"{directory}/postgres") as server,
        ):
            if part == "fence":
                import runtime_fence

                result["fence"] = await runtime_fence.cost(server)
            else:
                import runtime_ray

                result["ray"] = await runtime_ray.run(server.dsn, options.recovered, 50, options.seconds)
    return result


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    if "host" in result:
        show_host(result["host"])
    for size, figure in result.get("fence", {}).items():
        print(
            f"{size} readings through a host: {figure['checked_ms']} ms with the check of ownership,"
            f" {figure['unchecked_ms']} ms without: ratio {figure['ratio']}"
        )
    if "ray" in result:
        figures = result["ray"]
        back = figures["recovery"]
        print(
            f"host of {back['devices']:,} active devices killed: first served after {back['first_s']} s,"
            f" all after {back['last_s']} s"
        )
        move = figures["hand_over"]
        calm, moving = move["calm"], move["moving"]
        print(
            f"3 -> 4 hosts at {move['per_s']:,} readings/s: {move['moved']} of {move['shards']:,} shards"
            f" moved, balanced after {move['took_s']} s"
        )
        print(
            f"longest commit of a reading of each that moved: p50 {moving['p50_ms']} ms,"
            f" p99 {moving['p99_ms']} ms, max {moving['max_ms']} ms;"
            f" of every shard before: {calm['p50_ms']}, {calm['p99_ms']}, {calm['max_ms']} ms"
        )
        ours, theirs = figures["hosted"], figures["processes"]
        n = figures["devices"]
        print(
            f"{n} devices in one host: {ours['messages_per_s']:,} messages/s, durable;"
            f" {ours['private_mb']} MB; ready after {ours['start_s']} s"
        )
        print(
            f"{n} devices as an actor each: {theirs['messages_per_s']:,} messages/s, in memory only;"
            f" {theirs['private_mb']} MB; ready after {theirs['start_s']} s,"
            f" {theirs['start_cpu_s_each']} CPU-s each"
        )


def show_host(figures: dict[str, Any]) -> None:
    print(f"{figures['registered']:,} devices registered in {figures['register_s']} s")
    first, again, turn = figures["first"], figures["from_snapshot"], figures["turnover"]
    print(
        f"{figures['active']:,} first readings, activation and commit: {first['a_second']:,}/s,"
        f" a batch of 250 p50 {first['p50_ms']} ms, p99 {first['p99_ms']} ms"
    )
    print(
        f"activation from snapshots: {again['a_second']:,}/s, a batch of 250 p50 {again['p50_ms']} ms,"
        f" p99 {again['p99_ms']} ms; {again['host_cpu_us']} CPU-µs each in the host"
    )
    print(
        f"readings of twice as many as fit: {turn['a_second']:,}/s, a batch of 250 p50 {turn['p50_ms']} ms,"
        f" p99 {turn['p99_ms']} ms; {turn['evicted']:,} saved and dropped"
    )
    memory, snapshot = figures["memory"], figures["snapshot"]
    print(
        f"bytes a device: {memory['resident_bytes_a_device']:,} active"
        f" (estimated {memory['estimated_bytes_a_device']:,}), {snapshot['row_bytes']:,} passivated"
        f" ({snapshot['table_bytes']:,} with index and room); all saved in {figures['save_all_s']} s"
    )
    print("lists over all: " + ", ".join(f"{k[:-3]} {v} ms" for k, v in figures["lists"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--registered", type=int, default=1_000_000)
    parser.add_argument("--active", type=int, default=50_000)
    parser.add_argument(
        "--recovered", type=int, default=10_000, help="active devices when their host is killed"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured run on Ray")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    result = asyncio.run(run(options))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
