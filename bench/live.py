"""What the live feed costs and how fast it is, through a whole platform and a real broker.

`make bench-live` or `python bench/live.py [--json] [--subscribers 1000] [--rate 5000] [--each 10]`:

telemetry at a fixed rate, first with nobody listening, then with subscribers, half of them over WebSockets
and half over Server-Sent Events, each following so many devices of its own. It shows from publish to commit
without and with them, from commit to subscriber, and what was told, dropped and used. The subscribers are in
this process and take their part of the machine, at the platform's priority. They count items and look at
times, but do not parse JSON.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from commands import start
from surroundings import machine, mosquitto

from sensorium.actors.messages import Register
from sensorium.actors.runtime import join_ray, make_router
from sensorium.cluster.run_directory import RunState, read_state
from sensorium.storage.database import Pool, acquired, open_pool

HERE = Path(__file__).parent
DEVICES = 1_000
WARM_UP_S = 3.0
TIMEOUT_S = 240.0
CONNECTING_AT_ONCE = 20
SAMPLED = 200_000

_COMMITTED = re.compile(rb'"committed_ms":(\d{13})')
_GAP = re.compile(rb'"type":"gap","cursor":"[^"]*","dropped":(\d+)')

COMMIT_DELAY = """
SELECT percentile_cont(ARRAY[0.5, 0.99])
    WITHIN GROUP (ORDER BY extract(epoch FROM committed_at - time) * 1000)
FROM readings WHERE committed_at >= $1 AND committed_at < $2
"""


class Counts:
    """What all subscribers have seen, and how old it was, from the time of its commit."""

    def __init__(self) -> None:
        self.items = self.bytes = self.gaps = self.dropped = self.lost = 0
        self.late_ms: list[float] = []
        self.counts = False


class Subscriber(asyncio.Protocol):
    """One connection, read as bytes."""

    def __init__(self, request: bytes, counts: Counts) -> None:
        self._request = request
        self._counts = counts
        self._rest = b""
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(data)
        counts = self._counts
        if not counts.counts:
            return
        data = self._rest + data
        now_ms = time.time_ns() / 1e6
        end = 0
        for found in _COMMITTED.finditer(data):
            counts.items += 1
            end = found.end()
            if len(counts.late_ms) < SAMPLED or random.random() < 0.01:
                counts.late_ms.append(now_ms - int(found[1]))
        counts.bytes += len(data) - len(self._rest)
        for gap in _GAP.finditer(data):
            counts.gaps += 1
            counts.dropped += int(gap[1])
            end = max(end, gap.end())
        self._rest = data[max(end, len(data) - 64) :]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._counts.counts:
            self._counts.lost += 1


def request(n: int, each: int, host: str) -> bytes:
    ids = ",".join(f"bench-{(n * each + k) % DEVICES:05d}" for k in range(each))
    query = f"?topics=readings&snapshot=false&device_id={ids}"
    if n % 2:
        return f"GET /api/live{query} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    )
    return f"GET /ws{query} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n".encode()


async def connect(state: RunState, count: int, each: int, counts: Counts) -> list[Subscriber]:
    host, _, port = state.http_url.removeprefix("http://").partition(":")
    at_once = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def one(n: int) -> Subscriber:
        async with at_once:
            _, subscriber = await asyncio.get_running_loop().create_connection(
                lambda: Subscriber(request(n, each, f"{host}:{port}"), counts), host, int(port)
            )
            answer = await asyncio.wait_for(subscriber.answered, 30)
            if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 101")):
                raise RuntimeError(f"subscriber {n} was refused: {answer[:300]!r}")
            return subscriber

    return list(await asyncio.gather(*(one(n) for n in range(count))))


async def load(port: int, rate: float, seconds: float) -> dict[str, Any]:
    command = [sys.executable, HERE / "load.py", "--port", str(port), "--devices", str(DEVICES)]
    options = ["--rate", str(rate), "--seconds", str(WARM_UP_S + seconds)]
    process = await asyncio.create_subprocess_exec(*command, *options, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    result: dict[str, Any] = json.loads(out)
    return result


def api_processes(pid: int) -> list[psutil.Process]:
    """The replicas of the API among the platform's processes."""
    return [p for p in psutil.process_iter() if "ServeReplica" in " ".join(p.cmdline()) and older(p, pid)]


def older(process: psutil.Process, pid: int) -> bool:
    """Whether it belongs to the platform `pid`."""
    return pid in (parent.pid for parent in process.parents())


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes)


async def measured(
    pool: Pool, broker_port: int, options: argparse.Namespace, counts: Counts, pid: int
) -> dict[str, Any]:
    publishing = asyncio.create_task(load(broker_port, options.rate, options.seconds))
    await asyncio.sleep(WARM_UP_S)
    replicas = api_processes(pid)
    before_s, own_before_s, begin = cpu_s(replicas), time.process_time(), time.time()
    counts.counts = True
    await asyncio.sleep(options.seconds - 1)
    counts.counts = False
    end = time.time()
    used_s, own_s = cpu_s(replicas) - before_s, time.process_time() - own_before_s
    published = await publishing
    async with acquired(pool) as connection:
        p50, p99 = await connection.fetchval(COMMIT_DELAY, round(begin * 1000), round(end * 1000))
    took_s = end - begin
    result: dict[str, Any] = {
        "published_per_s": round(published["published"] / published["seconds"]),
        "unacknowledged": published["published"] - published["acked"],
        "publish_to_commit_p50_ms": round(p50, 1),
        "publish_to_commit_p99_ms": round(p99, 1),
        "api_cpu": round(used_s / took_s, 2),
        "subscribers_cpu": round(own_s / took_s, 2),
    }
    if counts.late_ms:
        cuts = statistics.quantiles(counts.late_ms, n=100)
        result |= {
            "told_per_s": round(counts.items / took_s),
            "mib_per_s": round(counts.bytes / took_s / 2**20, 1),
            "commit_to_subscriber_p50_ms": round(cuts[49]),
            "commit_to_subscriber_p99_ms": round(cuts[98]),
            "gaps": counts.gaps,
            "dropped": counts.dropped,
            "connections_lost": counts.lost,
        }
    return result


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as name:
        directory = Path(name)
        with mosquitto(directory) as (port, _):
            process = await asyncio.to_thread(start, directory / "data", port)
            try:
                state = read_state(directory / "data")
                await asyncio.to_thread(join_ray, state.ray_address)
                pool = await open_pool(state.database, 2)
                async with make_router(f"bench-{os.getpid()}") as router, asyncio.timeout(TIMEOUT_S):
                    names = [f"bench-{n:05d}" for n in range(DEVICES)]
                    await asyncio.gather(*(router.ask(Register(d, "bench"), 60) for d in names))
                    quiet = await measured(pool, port, options, Counts(), process.pid)
                    counts = Counts()
                    subscribers = await connect(state, options.subscribers, options.each, counts)
                    followed = await measured(pool, port, options, counts, process.pid)
                    for subscriber in subscribers:
                        assert subscriber.transport is not None
                        subscriber.transport.abort()
                pool.terminate()
            finally:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 60)
    return {
        "machine": machine(),
        "subscribers": options.subscribers,
        "devices_each": options.each,
        "quiet": quiet,
        "followed": followed,
    }


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    for name, told in (("nobody listens", result["quiet"]), ("all listen", result["followed"])):
        print(
            f"{name}: {told['published_per_s']:,} messages/s, publish → commit"
            f" p50 {told['publish_to_commit_p50_ms']} ms, p99 {told['publish_to_commit_p99_ms']} ms;"
            f" the API takes {told['api_cpu']} of a core, the subscribers {told['subscribers_cpu']}"
        )
    told = result["followed"]
    print(
        f"{result['subscribers']:,} subscribers, {result['devices_each']} devices each:"
        f" {told['told_per_s']:,} items/s ({told['mib_per_s']} MiB/s), commit → subscriber"
        f" p50 {told['commit_to_subscriber_p50_ms']} ms, p99 {told['commit_to_subscriber_p99_ms']} ms;"
        f" {told['gaps']} gaps of {told['dropped']:,} items, {told['connections_lost']} connections lost"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measured run")
    parser.add_argument("--rate", type=float, default=5_000.0, help="messages a second")
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--each", type=int, default=10, help="devices that a subscriber follows")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
