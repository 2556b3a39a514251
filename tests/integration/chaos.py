"""`make chaos`: each fault several times under load, and what became of every message that was acknowledged.

`python tests/integration/chaos.py [--runs 5] [--fault "host killed"] [--json]`. Devices publish over MQTT at
QoS 1 all the time. Faults of one machine happen to a platform of its own, calls that fail and faults of
several machines to clusters of three nodes: machines of a network, where one can be made.

A fault counts as recovered when the log holds a message of every device that was sent after its damage was
done; devices send about twice a second, so this is never less than half a second. At the end the log is
compared with what was acknowledged. Exit code 1 if anything was lost, doubled or out of order.
"""

import argparse
import asyncio
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import cluster_faults
import httpx
import network
import ray
from cluster_world import World, loopback_cluster, networked_cluster
from faults import FAULTS, Target, refused_writes
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess
from postgres_server import BINARIES
from real_mosquitto import MOSQUITTO, RealMosquitto
from recovery import recovered, struck
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rpc_faults import TENTH, failing_calls

from sensorium.actors.fleet import connect
from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress

DEVICES: Final = 200
MESSAGES_PER_S: Final = 400.0
RECOVERY_TIMEOUT_S: Final = 120.0
CALM_S: Final = 2.0
"""Between two faults: the load goes on."""


FAILING_S: Final = 10.0
"""Of a run in which calls fail."""

CALLS_FAIL: Final = "one call in ten fails"
ALL: Final = [*FAULTS, CALLS_FAIL, *cluster_faults.FAULTS]


class Outcome(NamedTuple):
    """What a fault came to, over all of its runs."""

    fault: str
    runs: int
    acked: int
    lost: int
    duplicated: int
    reordered: int
    faulty_shards: int
    refused: int
    recovery_s: list[float]

    @property
    def clean(self) -> bool:
        """Nothing is wrong with the log."""
        return not (self.lost or self.duplicated or self.reordered or self.faulty_shards)


class Scene(NamedTuple):
    """What runs, and what can happen to it."""

    url: Callable[[], str]
    dsn: Callable[[], str]
    broker: BrokerAddress
    refused: Callable[[], int]
    faults: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
    struck: asyncio.Event
    """Set by a fault when its damage is done."""


@asynccontextmanager
async def one_machine() -> AsyncIterator[Scene]:
    """A platform of its own, and the broker that its devices publish to."""
    directory = Path(tempfile.mkdtemp(prefix="sens-chaos-"))
    mosquitto = None
    environment = {}
    if MOSQUITTO is not None:
        mosquitto = RealMosquitto(directory)
        mosquitto.start()
        environment["MQTT_BROKER_URL"] = mosquitto.url
    platform = PlatformProcess(directory / "p", free_port(), free_port(), environment=environment)
    try:
        await asyncio.to_thread(platform.start)
        connect(platform.state.ray_address)
        address = BrokerAddress("127.0.0.1", platform.mqtt_port) if mosquitto is None else mosquitto.address
        target = Target(platform, mosquitto)
        yield Scene(
            lambda: platform.state.http_url,
            lambda: platform.state.database,
            address,
            lambda: refused_writes(target),
            {name: partial(fault, target) for name, fault in FAULTS.items()},
            target.struck,
        )
        ray.shutdown()
        code = await asyncio.to_thread(platform.stop)
        if code != 0:
            raise RuntimeError(f"the platform ended with {code}:\n{platform.errors}")
    finally:
        platform.close()
        if mosquitto is not None:
            mosquitto.stop()
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def several_machines(opened: AbstractContextManager[World]) -> AsyncIterator[Scene]:
    """A cluster of three nodes."""
    with opened as world:
        await world.spread_evenly()
        yield Scene(
            lambda: world.url,
            lambda: world.dsn,
            world.broker.address,
            world.refused_writes,
            {name: partial(fault, world) for name, fault in cluster_faults.FAULTS.items()}
            | {CALLS_FAIL: partial(_nothing_more, world)},
            world.struck,
        )


async def _nothing_more(world: World) -> None:
    """Calls fail all the time anyway."""
    world.struck.set()
    await asyncio.sleep(FAILING_S)


async def suffer(name: str, runs: int, scene: Scene, progress: Progress, bar: Any) -> Outcome:
    """Do a fault so many times under load, and compare."""
    client_name = "chaos-" + re.sub(r"[^a-z]+", "-", name)
    ids = [f"{client_name}-{n:03}" for n in range(DEVICES)]
    async with httpx.AsyncClient(base_url=scene.url(), timeout=30) as api:
        for device_id in ids:
            await _registered(api, device_id)
    recovery_s = []
    refused = scene.refused()
    async with mqtt_client(scene.broker, client_name) as client, Load(client, ids, MESSAGES_PER_S) as load:
        await load.more(DEVICES)
        for _ in range(runs):
            fault = await struck(scene.faults[name](), scene.struck)
            recovery_s.append(await recovered(scene.dsn(), load, dict(load.sent), RECOVERY_TIMEOUT_S))
            await fault
            await asyncio.sleep(CALM_S)
            progress.advance(bar)
    async with audit(scene.dsn()) as log:
        end_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while await log.count(ids) < load.total and time.monotonic() < end_s:
            await asyncio.sleep(0.1)
        stored = await log.stored(ids, "sequence")
        faulty = await log.faulty_shards()
    lost = sum(len(load.acked[i] - set(stored.get(i, ()))) for i in ids)
    doubled = sum(len(s) - len(set(s)) for s in stored.values())
    disorder = sum(later < sooner for s in stored.values() for sooner, later in pairwise(s))
    refused = scene.refused() - refused
    return Outcome(name, runs, load.total, lost, doubled, disorder, len(faulty), refused, recovery_s)


async def _registered(api: httpx.AsyncClient, device_id: str) -> None:
    """Register it, again while nobody can say whether it is: calls may fail."""
    body = {"device_id": device_id, "device_type": "chaotic"}
    async with asyncio.timeout(RECOVERY_TIMEOUT_S):
        while (await api.post("/api/devices", json=body)).status_code not in (201, 409):
            await asyncio.sleep(0.1)


def impossible(name: str) -> str | None:
    """Why a fault cannot be done here; None when it can."""
    if name in cluster_faults.CUTS and (reason := network.why_not()):
        return reason
    needs_broker = name in cluster_faults.FAULTS or name in (CALLS_FAIL, "broker restarted")
    if needs_broker and MOSQUITTO is None:
        return "Mosquitto is not installed"
    if name in cluster_faults.FAULTS and network.why_not() is None and not BINARIES:
        return "needs a PostgreSQL server (Debian: postgresql)"
    return None


async def report(names: Sequence[str], runs: int, as_json: bool) -> int:
    """Run the faults and print; the exit code."""
    outcomes = []
    for name in [name for name in names if impossible(name)]:
        print(f"skipped: {name} ({impossible(name)})", file=sys.stderr)
    possible = [name for name in names if not impossible(name)]
    scenes = (
        (one_machine(), FAULTS),
        (several_machines(loopback_cluster(**failing_calls(*TENTH))), {CALLS_FAIL}),
        # Machines of a network of their own, where one can be made.
        (
            several_machines(loopback_cluster() if network.why_not() else networked_cluster()),
            cluster_faults.FAULTS,
        ),
    )
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            for opened, known in scenes:
                if not any(name in known for name in possible):
                    continue
                async with opened as scene:
                    for name in [name for name in possible if name in known]:
                        bar = progress.add_task(name, total=runs)
                        outcomes.append(await suffer(name, runs, scene, progress, bar))
    finally:
        # Also what came before one that failed.
        if as_json:
            print(json.dumps([outcome._asdict() for outcome in outcomes], indent=2))
        else:
            Console(width=120).print(table(outcomes))
    return 0 if all(outcome.clean for outcome in outcomes) else 1


def table(outcomes: list[Outcome]) -> Table:
    """The outcomes for people."""
    shown = Table("fault", title="Faults under load")
    for column in (
        "runs",
        "acked",
        "lost",
        "twice",
        "out of order",
        "faulty shards",
        "refused",
        "recovery p50",
        "p99",
    ):
        shown.add_column(column, justify="right")
    for o in outcomes:
        times = sorted(o.recovery_s)
        p50 = statistics.median(times)
        p99 = times[min(len(times) - 1, round(0.99 * len(times)))]
        counts = (o.runs, o.acked, o.lost, o.duplicated, o.reordered, o.faulty_shards, o.refused)
        shown.add_row(o.fault, *(f"{n:,}" for n in counts), f"{p50:.1f} s", f"{p99:.1f} s")
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, help="of each fault")
    parser.add_argument("--fault", action="append", choices=ALL, help="only this; may be repeated")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    sys.exit(asyncio.run(report(given.fault or ALL, given.runs, given.json)))


if __name__ == "__main__":
    main()
