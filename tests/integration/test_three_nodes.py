"""Three nodes under load: hosts, nodes, coordinator, platform and database are lost, nodes join and leave.

Each test compares what the broker acknowledged with what the log holds, as `log_audit` says."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from field import Load, mqtt_client
from log_audit import audit
from machines import Machines, installed
from platform_process import wait_until
from real_mosquitto import MOSQUITTO, RealMosquitto
from recovery import recovered

from sensorium.cluster.run_directory import is_running, read_state
from sensorium.serve.environment import short_run_dir
from sensorium.storage import EmbeddedPostgres

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
]

DEVICES = 100
MESSAGES_PER_S = 200.0
RECOVERY_TIMEOUT_S = 60.0
HOST = "ray::DeviceHost"
COORDINATOR = "ray::Coordinator"


class World:
    """A cluster of three nodes with a platform on it, and what the test looks at it with."""

    def __init__(self, machines: Machines, database: EmbeddedPostgres, broker: RealMosquitto) -> None:
        self.machines = machines
        self.database = database
        self.broker = broker

    @property
    def url(self) -> str:
        """Of the API."""
        return read_state(self.machines.folder / "data").http_url

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that live, as the API shows them; [] while it does not answer."""
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"{self.url}/api/nodes", timeout=10)
            if answer.is_success:
                return [node for node in answer.json()["items"] if node["alive"]]
        return []

    def spread(self) -> list[int]:
        """How many hosts there are on each node, sorted."""
        return sorted(len(node["hosts"]) for node in self.nodes())

    async def eventually(self, condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> None:
        """Return once it holds."""
        await asyncio.to_thread(wait_until, condition, deadline_s, what)

    async def spread_evenly(self) -> None:
        """Return once each worker has its host, and all serve."""

        def there() -> bool:
            return self.spread() == [0, 1, 1] and httpx.get(f"{self.url}/readyz", timeout=10).is_success

        await self.eventually(there, "a host on each worker")

    @asynccontextmanager
    async def load(self, name: str) -> AsyncIterator[Load]:
        """Devices that publish all the time; on leaving, what is stored must be what was acknowledged."""
        ids = [f"{name}-{n:03}" for n in range(DEVICES)]
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as api:
            for device_id in ids:
                answer = await api.post(
                    "/api/devices", json={"device_id": device_id, "device_type": "roving"}
                )
                assert answer.status_code == 201, answer.text
        async with (
            mqtt_client(self.broker.address, name) as client,
            Load(client, ids, MESSAGES_PER_S) as load,
        ):
            await load.more(DEVICES)
            yield load
            await self.recovered(load, "the end")
        async with audit(self.database.dsn) as log:
            stored = await log.stored(ids, "sequence")
            wrong = {i: found for i in ids if (found := stored.get(i, [])) != list(range(load.sent[i]))}
            assert not wrong, f"{len(wrong)} devices, such as {next(iter(wrong.items()))}"
            assert await log.faulty_shards() == []

    async def recovered(self, load: Load, what: str) -> float:
        """Return once every device's messages of now are stored; how long that took."""
        took_s = await recovered(self.database.dsn, load, dict(load.sent), RECOVERY_TIMEOUT_S)
        print(f"{what}: every device served again after {took_s:.1f} s")
        return took_s

    def worker_process(self, title: str, worker: int = 1) -> psutil.Process:
        """The first process of a worker whose title starts so."""
        return self.machines.processes_of(f"worker-{worker}", title)[0]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a short path, since it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="sens-3n-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    """All of it, started."""
    broker = RealMosquitto(folder)
    database = EmbeddedPostgres(folder / "pg")
    broker.start()
    try:
        database.start()
        secrets = f"DEVICE_DB_URL='{database.dsn}'\nMQTT_BROKER_URL={broker.url}\n"
        local = {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]}
        directory, launcher, name = installed(folder, secrets, local)
        machines = Machines(directory, launcher)
        try:
            machines.start_head()
            machines.start_worker(1)
            machines.start_worker(2)
            machines.start_platform()
            yield World(machines, database, broker)
            machines.stop_platform()
            machines.stop_nodes()
            wait_until(lambda: not machines.processes(), 15, "the processes to end")
        finally:
            machines.close()
            shutil.rmtree(short_run_dir(name), ignore_errors=True)
    finally:
        database.stop()
        broker.stop()


async def test_a_host_killed(world: World) -> None:
    await world.spread_evenly()
    async with world.load("host-killed") as load:
        victim = world.worker_process(HOST)
        victim.kill()
        await world.recovered(load, "a host killed")
        await world.eventually(lambda: world.machines.processes_of("worker-1", HOST), "another in its place")
        await world.spread_evenly()
        assert not victim.is_running()


async def test_the_coordinator_killed(world: World) -> None:
    """Hosts serve on, and the next one goes on with them."""
    hosts = {world.worker_process(HOST, worker).pid for worker in (1, 2)}
    async with world.load("coordinator-killed") as load:
        (victim,) = [
            p for name in world.machines.nodes for p in world.machines.processes_of(name, COORDINATOR)
        ]
        victim.kill()
        await world.recovered(load, "the coordinator killed")
        await world.spread_evenly()
    assert hosts == {world.worker_process(HOST, worker).pid for worker in (1, 2)}


async def test_the_database_stopped_and_started(world: World) -> None:
    async with world.load("database-stopped") as load:
        await asyncio.to_thread(world.database.stop)
        await load.more(DEVICES)
        await asyncio.to_thread(world.database.start)
        await world.recovered(load, "the database started again")
        await world.spread_evenly()


async def test_a_node_drained_and_another_joins(world: World) -> None:
    """A node that Ray is asked to drain hands over first: no host is ever lost."""
    async with world.load("node-drained") as load:
        drained = next(node["node_id"] for node in world.nodes() if node["hosts"])
        before = {worker: world.worker_process(HOST, worker) for worker in (1, 2)}
        asked = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test")
        world.machines.ray("drain-node", "--node-id", drained, *asked, "--deadline-remaining-seconds", "60")
        await world.eventually(lambda: world.spread() == [0, 0, 1], "the node to be empty")
        (worker,) = [worker for worker, host in before.items() if not host.is_running()]
        await world.recovered(load, "a node drained")
        world.machines.stop_node(f"worker-{worker}")
        world.machines.start_worker(worker)
        await world.spread_evenly()
        await world.recovered(load, "a node joined")


async def test_a_node_killed_and_another_joins(world: World) -> None:
    async with world.load("node-killed") as load:
        world.machines.kill_node("worker-2")
        await world.recovered(load, "a node killed")
        world.machines.start_worker(2)
        await world.spread_evenly()
        await world.recovered(load, "a node joined")


async def test_the_platform_killed_and_started_again(world: World) -> None:
    """The driver on the head: hosts and services serve on without it, and the next one takes over."""
    async with world.load("platform-killed") as load:
        os.kill(read_state(world.machines.folder / "data").pid, signal.SIGKILL)
        await world.eventually(lambda: not is_running(world.machines.folder / "data"), "its end", 10)
        await world.recovered(load, "the platform killed")
        await asyncio.to_thread(world.machines.start_platform)
        await world.recovered(load, "the platform started again")
        await world.spread_evenly()
