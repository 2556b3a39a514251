"""What can happen to a running platform, and which of its processes to do it to."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psutil
import ray
from platform_process import PlatformProcess
from real_mosquitto import RealMosquitto

from sensorium.actors.runtime import COORDINATOR, NAMESPACE


def pids(name: str) -> dict[str, int]:
    """The processes of the living actors whose name starts so, by the actors' names."""
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(name):
            try:
                handle = ray.get_actor(actor["name"], NAMESPACE)
                found[actor["name"]] = ray.get(handle.pid.remote(), timeout=10)
            except (ray.exceptions.RayError, ValueError):
                continue  # it is gone already, or not there yet
    return found


def postmaster(platform: PlatformProcess) -> psutil.Process:
    """The database server itself."""
    (found,) = [p for p in platform.named("postgres") if p.ppid() == platform.pid]
    return found


@contextlib.contextmanager
def suspended(*processes: psutil.Process) -> Iterator[None]:
    """Stopped by SIGSTOP inside, going on afterwards if they still live."""
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass(frozen=True, slots=True)
class Target:
    """What faults are done to.

    Attributes:
        mosquitto: None where the platform has its embedded broker.
        struck: set by a fault when its damage is done, after it has looked for what to do it to.
    """

    platform: PlatformProcess
    mosquitto: RealMosquitto | None
    struck: asyncio.Event = field(default_factory=asyncio.Event)


Fault = Callable[[Target], Coroutine[Any, Any, None]]
"""Does it to the target, with Ray connected; returns when what it does itself is over."""

HANG_S: Final = 30.0
DATABASE_HANG_S: Final = 5.0
HOSTS_IN_TURN: Final = (5, 1)
"""How many hosts there are one after the other in a storm of joins and leaves."""

SCALE_TIMEOUT_S: Final = 60.0


async def kill_host(target: Target) -> None:
    """SIGKILL to one host."""
    await _kill(target, "host-")


async def hang_host(target: Target) -> None:
    """SIGSTOP to one host for longer than any lease, then SIGCONT: it must not write any more."""
    found = await asyncio.to_thread(pids, "host-")
    with suspended(psutil.Process(min(found.values()))):
        target.struck.set()
        await asyncio.sleep(HANG_S)


async def kill_ingestor(target: Target) -> None:
    """SIGKILL to the MQTT ingestor."""
    await _kill(target, "mqtt-")


async def kill_coordinator(target: Target) -> None:
    """SIGKILL to the coordinator."""
    await _kill(target, COORDINATOR)


async def kill_dispatcher(target: Target) -> None:
    """SIGKILL to what tells devices of commands and twins over MQTT, and gives bulk jobs out."""
    await _kill(target, "commands-0.")


async def kill_api(target: Target) -> None:
    """SIGKILL to a replica of the API."""
    processes = await asyncio.to_thread(target.platform.processes)
    replicas = [p for p in processes if "ServeReplica:sensorium:api" in "".join(p.cmdline())]
    assert replicas, "no replica of the API"
    replicas[0].kill()
    target.struck.set()


async def kill_database(target: Target) -> None:
    """SIGKILL to the database server."""
    postmaster(target.platform).kill()
    target.struck.set()


async def hang_database(target: Target) -> None:
    """SIGSTOP to the database server and all of its processes for some seconds."""
    server = postmaster(target.platform)
    with suspended(server, *server.children()):
        target.struck.set()
        await asyncio.sleep(DATABASE_HANG_S)


async def restart_broker(target: Target) -> None:
    """The broker stopped and started."""
    assert target.mosquitto is not None
    await asyncio.to_thread(target.mosquitto.stop)
    target.struck.set()
    await asyncio.to_thread(target.mosquitto.start)


async def join_and_leave(target: Target) -> None:
    """Hosts join and leave while messages come, and in the end there are as many as before."""
    async with httpx.AsyncClient(base_url=target.platform.state.http_url, timeout=30) as api:
        before = len((await api.get("/api/hosts")).raise_for_status().json()["items"])
        target.struck.set()
        for hosts in (*HOSTS_IN_TURN, before):
            (await api.post("/api/hosts/scale", params={"hosts": hosts})).raise_for_status()
            async with asyncio.timeout(SCALE_TIMEOUT_S):
                while True:
                    told = (await api.get("/api/hosts")).raise_for_status().json()
                    if told["balanced"] and len(told["items"]) == told["wanted"] == hosts:
                        break
                    await asyncio.sleep(0.1)


def refused_writes(target: Target) -> int:
    """How many transactions the database has refused so far because who sent them had lost its shards."""
    log = (target.platform.data_dir / "postgres" / "server.log").read_text(errors="replace")
    return len(_REFUSED.findall(log))


_REFUSED: Final = re.compile(
    r"ERROR: +(?:incarnation \d+ is fenced|(?:a shard has|shards have) left incarnation)"
)


async def _kill(target: Target, name: str) -> None:
    found = await asyncio.to_thread(pids, name)
    os.kill(min(found.values()), signal.SIGKILL)
    target.struck.set()


FAULTS: Final[Mapping[str, Fault]] = {
    "host killed": kill_host,
    "host hangs 30 s": hang_host,
    "hosts join and leave": join_and_leave,
    "ingestor killed": kill_ingestor,
    "coordinator killed": kill_coordinator,
    "database killed": kill_database,
    "database hangs 5 s": hang_database,
    "broker restarted": restart_broker,
}
