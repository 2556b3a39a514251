"""`make chaos`: each fault several times under load, and what became of every message that was acknowledged.

`python tests/integration/chaos.py [--runs 5] [--fault "host killed"] [--json]`. Devices publish over MQTT at
QoS 1 all the time. A fault counts as recovered when the log holds a message of every device that was sent
after the fault began; devices send about twice a second, so this is never less than half a second. At the
end the log is compared with what was acknowledged. Exit code 1 if anything was lost, doubled or out of order.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import ray
from faults import FAULTS, Target, refused_writes
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, RealMosquitto
from recovery import recovered
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sensorium.actors.fleet import connect
from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress

DEVICES: Final = 200
MESSAGES_PER_S: Final = 400.0
RECOVERY_TIMEOUT_S: Final = 120.0
CALM_S: Final = 2.0
"""Between two faults: the load goes on."""


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


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Target, BrokerAddress]]:
    """A platform of its own, and the broker that its devices publish to."""
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
        yield Target(platform, mosquitto), address
        ray.shutdown()
        code = await asyncio.to_thread(platform.stop)
        if code != 0:
            raise RuntimeError(f"the platform ended with {code}:\n{platform.errors}")
    finally:
        platform.close()
        if mosquitto is not None:
            mosquitto.stop()


async def suffer(
    name: str, runs: int, target: Target, address: BrokerAddress, progress: Progress, bar: Any
) -> Outcome:
    """Do a fault so many times under load, and compare."""
    ids = [f"chaos-{name.replace(' ', '-')}-{n:03}" for n in range(DEVICES)]
    async with httpx.AsyncClient(base_url=target.platform.state.http_url, timeout=30) as api:
        for device_id in ids:
            body = {"device_id": device_id, "device_type": "chaotic"}
            (await api.post("/api/devices", json=body)).raise_for_status()
    recovery_s = []
    refused = refused_writes(target)
    client_name = f"chaos-{name.replace(' ', '-')}"
    async with mqtt_client(address, client_name) as client, Load(client, ids, MESSAGES_PER_S) as load:
        await load.more(DEVICES)
        for _ in range(runs):
            wanted = dict(load.sent)
            fault = asyncio.create_task(FAULTS[name](target))
            recovery_s.append(
                await recovered(target.platform.state.database, load, wanted, RECOVERY_TIMEOUT_S)
            )
            await fault
            await asyncio.sleep(CALM_S)
            progress.advance(bar)
    async with audit(target.platform.state.database) as log:
        end_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while await log.count(ids) < load.total and time.monotonic() < end_s:
            await asyncio.sleep(0.1)
        stored = await log.stored(ids, "sequence")
        faulty = await log.faulty_shards()
    lost = sum(len(load.acked[i] - set(stored.get(i, ()))) for i in ids)
    doubled = sum(len(s) - len(set(s)) for s in stored.values())
    disorder = sum(later < sooner for s in stored.values() for sooner, later in pairwise(s))
    refused = refused_writes(target) - refused
    return Outcome(name, runs, load.total, lost, doubled, disorder, len(faulty), refused, recovery_s)


async def report(names: list[str], runs: int, as_json: bool) -> int:
    """Run the faults and print; the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="sens-chaos-"))
    outcomes = []
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            async with running(directory) as (target, address):
                for name in names:
                    if name == "broker restarted" and target.mosquitto is None:
                        print("skipped: broker restarted (Mosquitto is not installed)", file=sys.stderr)
                        continue
                    bar = progress.add_task(name, total=runs)
                    outcomes.append(await suffer(name, runs, target, address, progress, bar))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
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
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this; may be repeated")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    sys.exit(asyncio.run(report(given.fault or list(FAULTS), given.runs, given.json)))


if __name__ == "__main__":
    main()
