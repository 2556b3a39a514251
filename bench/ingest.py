"""How fast the main path is, beside a script of one's own and beside the broker alone, in one run.

`make bench` or `python bench/ingest.py [--json] [--seconds 15]`:

(a) the platform: broker → QoS 1 → device turn (windows on three metrics, two rules, dedup) → commit → PUBACK;
(b) `script_baseline.py`: the same messages through one asyncio process that only stores them;
(c) `noop_subscriber.py`: the broker into a subscriber that does nothing.

Each is driven by the same generator, which keeps a bounded backlog of messages that are not done yet, so it
takes no more of the machine than the rate costs. Then (a) again at half its rate, for the latency from
publish to commit, which is read from the database's own commit times.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import ray
from done_count import DoneCount
from surroundings import machine, mosquitto

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.coordinator import RuntimeSpec
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.host import HostSettings
from sensorium.actors.messages import Reading, Register
from sensorium.actors.records import Commit
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Operator, RuleSpec, Severity, Threshold, ZScore
from sensorium.actors.runtime import NAMESPACE, make_router, start_coordinator, start_ray
from sensorium.cluster.adapters import adapter_service
from sensorium.cluster.deploy.node import RAY_ENVIRONMENT
from sensorium.cluster.processes import mqtt_adapter
from sensorium.ingest.mqtt import MqttSettings
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage import EmbeddedPostgres, PgHostPorts, PgMembershipFactory, PgRules, migrate, open_pool

HERE = Path(__file__).parent
DEVICES = 2_000
BACKLOG = 20_000
WARM_UP_S = 4.0
POLL_S = 0.05
RULES = (
    RuleSpec(name="hot", condition=Threshold("temperature", Operator.GT, 90.0), severity=Severity.MAJOR),
    RuleSpec(name="odd humidity", condition=ZScore("humidity", 8.0)),
)


def generator(port: int, seconds: float, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "load.py"), "--port", str(port), "--devices", str(DEVICES)]
    return subprocess.Popen([*command, "--seconds", str(seconds), *more], stdout=subprocess.PIPE, text=True)


def cpu_by_kind(kinds: dict[int, str]) -> Counter[str]:
    """CPU seconds so far of each kind of process; children count as their parent's kind."""
    total: Counter[str] = Counter()
    for pid, kind in kinds.items():
        try:
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                times = each.cpu_times()
                total[kind] += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


async def measured(
    done: Callable[[], Awaitable[int]],
    follow: DoneCount | None,
    load: "subprocess.Popen[str]",
    seconds: float,
    kinds: dict[int, str],
) -> dict[str, Any]:
    """Watch a run and take its rate and CPU between the warm-up and the end of the load.

    Args:
        follow: where to put what is done for the generator; None where the measured script does so itself.
    """
    begun = time.monotonic()
    start: tuple[float, int, Counter[str]] | None = None
    rates: list[float] = []
    last = (begun, 0)
    while True:
        count = await done()
        if follow is not None:
            follow.set(count)
        now = time.monotonic()
        if start is None and now - begun >= WARM_UP_S:
            start = (now, count, cpu_by_kind(kinds))
            last = (now, count)
        if start is not None and now - last[0] >= 1.0:
            rates.append((count - last[1]) / (now - last[0]))
            last = (now, count)
        if now - begun >= WARM_UP_S + seconds:
            break
        await asyncio.sleep(POLL_S)
    assert start is not None
    cpu = cpu_by_kind(kinds)
    messages = count - start[1]
    per_message = {k: round((cpu[k] - start[2][k]) / max(messages, 1) * 1e6, 2) for k in cpu}
    # The generator ends by itself; until then it must be followed.
    while load.poll() is None:
        if follow is not None:
            follow.set(await done())
        await asyncio.sleep(POLL_S)
    output = load.stdout.read() if load.stdout is not None else "{}"
    return {
        "messages_per_s": round(messages / (now - start[0])),
        "median_messages_per_s": round(statistics.median(rates)),
        "cpu_us_per_message": per_message,
        "generator": json.loads(output),
    }


class Runtime:
    """Hosts and an MQTT ingestor as the platform runs them, without the HTTP API."""

    def __init__(self, dsn: str, coordinator: Any) -> None:
        self.dsn = dsn
        self.coordinator = coordinator

    async def statistics(self) -> dict[str, Any]:
        result: dict[str, Any] = await self.coordinator.call.remote("statistics")
        return result

    async def done(self) -> int:
        return sum(h["readings_committed"] for h in (await self.statistics())["hosts"])

    async def pids(self) -> dict[int, str]:
        table = await self.coordinator.call.remote("table")
        hosts = {await handle.pid.remote(): "hosts" for handle in table.addresses.values()}
        names = ray.util.list_named_actors(all_namespaces=True)
        mqtt = next(n for n in names if n["name"].startswith("mqtt-0"))
        ingestor = {await ray.get_actor(**mqtt).pid.remote(): "ingestor"}
        ours = psutil.Process().children(recursive=False)
        rest = {p.pid: "ray" for p in ours if p.name() in ("gcs_server",)}
        return {**hosts, **ingestor, **rest}


@asynccontextmanager
async def runtime(dsn: str, port: int, hosts: int) -> AsyncIterator[Runtime]:
    await migrate(dsn)
    pool = await open_pool(dsn, 2)
    rules = PgRules(pool)
    for spec in RULES:
        await rules.create(spec)
    mqtt = MqttSettings(address=BrokerAddress(host="127.0.0.1", port=port), client_id="bench")
    coordinator = start_coordinator(
        RuntimeSpec(
            hosts,
            PgHostPorts(dsn),
            PgMembershipFactory(dsn),
            HostSettings(activation=ActivationSettings()),
            [adapter_service("mqtt-0", "mqtt", NAMESPACE, mqtt_adapter, mqtt)],
        )
    )
    await coordinator.call.remote("start")
    async with make_router("bench") as router:
        await asyncio.gather(*(router.ask(Register(f"bench-{i:05d}", "climate")) for i in range(DEVICES)))
    try:
        yield Runtime(dsn, coordinator)
    finally:
        await coordinator.call.remote("stop")
        ray.kill(coordinator)
        await pool.close()


async def platform(directory: Path, seconds: float, hosts: int, soak_s: float) -> dict[str, Any]:
    """Figure (a), the latency at half its rate, and with `soak_s` the memory over a long run."""
    database = EmbeddedPostgres(directory / "postgres", {"track_commit_timestamp": "on"})
    database.start()
    os.environ.update(RAY_ENVIRONMENT)
    start_ray(object_store_memory=200 * 1024 * 1024)
    try:
        with mosquitto(directory) as (port, broker_pid):
            async with runtime(database.dsn, port, hosts) as running:
                kinds = {broker_pid: "broker", database.pid: "database", **await running.pids()}
                follow = DoneCount.create(directory / "done")
                backlog = ("--done-file", str(follow.path), "--backlog", str(BACKLOG))
                load = generator(port, WARM_UP_S + seconds, *backlog)
                top = await measured(running.done, follow, load, seconds, {**kinds, load.pid: "generator"})
                await quiet(running)
                half = await latency(running, port, seconds, top["messages_per_s"] / 2)
                soak = await soaked(running, port, soak_s, top["messages_per_s"] / 2, kinds) if soak_s else {}
    finally:
        ray.shutdown()
        database.stop()
    return {**top, "half_rate": half, **soak}


async def quiet(running: Runtime) -> None:
    """Wait until nothing more is committed."""
    before, now = -1, await running.done()
    while now != before:
        await asyncio.sleep(1.0)
        before, now = now, await running.done()


async def latency(running: Runtime, port: int, seconds: float, rate: float) -> dict[str, Any]:
    """p50 and p99 from publish to commit at a fixed rate, from the database's commit times."""
    connection = await asyncpg.connect(running.dsn)
    load = generator(port, WARM_UP_S + seconds, "--rate", str(rate))
    await asyncio.sleep(WARM_UP_S)
    begin = await connection.fetchval("SELECT clock_timestamp()")
    while load.poll() is None:
        await asyncio.sleep(0.2)
    await quiet(running)
    row = await connection.fetchrow(
        "SELECT count(*) AS n, percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY late) AS q"
        " FROM ("
        " SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - time) * 1000 AS late FROM readings"
        " WHERE committed_at >= $1 AND time >= $1) AS latencies",
        begin,
    )
    await connection.close()
    p50, p99, p999 = (round(q, 1) for q in row["q"])
    return {
        "rate": round(rate),
        "messages": row["n"],
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "generator": json.loads(load.stdout.read() if load.stdout is not None else "{}"),
    }


async def soaked(
    running: Runtime, port: int, seconds: float, rate: float, kinds: dict[int, str]
) -> dict[str, Any]:
    """Memory of hosts and ingestor by the minute, at half the rate."""
    load = generator(port, seconds, "--rate", str(rate))
    by_minute: list[dict[str, float]] = []
    while load.poll() is None:
        memory: Counter[str] = Counter()
        for pid, kind in kinds.items():
            if kind in ("hosts", "ingestor"):
                memory[kind] += psutil.Process(pid).memory_full_info().uss / 1e6
        by_minute.append({k: round(v, 1) for k, v in memory.items()})
        for _ in range(60):
            if load.poll() is None:
                await asyncio.sleep(1.0)
    return {"soak": {"seconds": seconds, "rate": round(rate), "private_mb_by_minute": by_minute}}


async def subscriber(directory: Path, seconds: float, script: str, *more: str) -> dict[str, Any]:
    """Figures (b) and (c): a script that subscribes, and keeps the done count itself."""
    with mosquitto(directory) as (port, broker_pid):
        follow = DoneCount.create(directory / "done")
        command = [sys.executable, str(HERE / script), "--url", f"mqtt://127.0.0.1:{port}"]
        process = subprocess.Popen(
            [*command, "--done-file", str(follow.path), *more], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            if line.strip() != "ready":
                raise RuntimeError(f"{script} said {line!r} instead of ready")
            load = generator(
                port, WARM_UP_S + seconds, "--done-file", str(follow.path), "--backlog", str(BACKLOG)
            )
            kinds = {broker_pid: "broker", process.pid: "script", load.pid: "generator"}

            async def done() -> int:
                return follow.get()

            return await measured(done, None, load, seconds, kinds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


async def script(directory: Path, seconds: float) -> dict[str, Any]:
    database = EmbeddedPostgres(directory / "postgres")
    database.start()
    try:
        return await subscriber(directory, seconds, "script_baseline.py", "--dsn", database.dsn)
    finally:
        database.stop()


def bytes_per_device(devices: int = 2_000) -> int:
    """Private memory that a device with three metrics, a full window and dedup memory adds to a process."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import ingest; print(ingest.grow({devices}))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(output)


def grow(devices: int) -> int:
    """Make devices and fill their windows; the private bytes each added."""
    rules = [rule_of(spec) for spec in RULES]
    around = Surroundings(rules=RuleBook(rules))
    names = ("temperature", "humidity", "pressure")
    before = psutil.Process().memory_full_info().uss
    made = [Device(f"bench-{i:05d}", Shard(0, 0)) for i in range(devices)]
    for device in made:
        device.handle(Register(device.id, "climate"), 0, around, Commit())
        for minute in range(60):
            at = 1_700_000_000_000 + minute * 60_000
            values: list[Any] = [random.gauss(20, 1), random.gauss(45, 1), random.gauss(1000, 5)]
            device.read(Reading(device.id, at, at, minute, 0, values), names, at, around, Commit())
    return (psutil.Process().memory_full_info().uss - before) // devices


def rule_of(spec: RuleSpec) -> Any:
    from sensorium.actors.rules import Rule

    return Rule(rule_id=spec.name, version=1, spec=spec, created_ms=0, updated_ms=0)


async def run(seconds: float, hosts: int, soak_s: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "machine": machine(),
        "devices": DEVICES,
        "bytes_per_device": bytes_per_device(),
    }
    figures: list[tuple[str, Callable[[Path], Awaitable[dict[str, Any]]]]] = [
        ("c", lambda d: subscriber(d, seconds, "noop_subscriber.py")),
        ("b", lambda d: script(d, seconds)),
        ("a", lambda d: platform(d, seconds, hosts, soak_s)),
    ]
    for name, figure in figures:
        with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory:
            result[name] = await figure(Path(directory))
    rate = {name: result[name]["messages_per_s"] for name in "abc"}
    result["a_to_b"] = round(rate["a"] / rate["b"], 2)
    result["a_to_c"] = round(rate["a"] / rate["c"], 2)
    return result


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    titles = {"a": "platform", "b": "script without devices", "c": "broker alone"}
    for name, title in titles.items():
        figure = result[name]
        parts = ", ".join(f"{k} {v}" for k, v in sorted(figure["cpu_us_per_message"].items()))
        print(f"({name}) {title:24} {figure['messages_per_s']:>7,} messages/s   CPU-µs a message: {parts}")
    half = result["a"]["half_rate"]
    print(f"a/b {result['a_to_b']}   a/c {result['a_to_c']}")
    print(
        f"publish to commit at {half['rate']:,} messages/s: p50 {half['p50_ms']} ms, p99 {half['p99_ms']} ms"
    )
    print(f"bytes a device: {result['bytes_per_device']:,}")
    if "soak" in result["a"]:
        print(f"memory by the minute: {result['a']['soak']['private_mb_by_minute']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measured run")
    parser.add_argument("--hosts", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds at half rate to watch memory over")
    options = parser.parse_args()
    result = asyncio.run(run(options.seconds, options.hosts, options.soak))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
