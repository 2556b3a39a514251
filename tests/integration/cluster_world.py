"""Three nodes with a platform on them, under load: on loopback, or as machines of a network of their own."""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import psutil
from field import Load, mqtt_client
from log_audit import audit
from machines import Machines, installed
from network import Network
from platform_process import wait_until
from postgres_server import Server, server
from real_mosquitto import RealMosquitto
from recovery import recovered

from sensorium.cluster.run_directory import read_state
from sensorium.serve.environment import short_run_dir
from sensorium.storage import EmbeddedPostgres

DEVICES: Final = 100
MESSAGES_PER_S: Final = 200.0
RECOVERY_TIMEOUT_S: Final = 60.0
HOST: Final = "ray::DeviceHost"
COORDINATOR: Final = "ray::Coordinator"
INGESTORS: Final = ("ray::AdapterService:mqtt", "ray::AdapterService:spare-mqtt")
"""What may be connected to the broker: the process that was the service at first, or a spare of it."""
DATABASE: Final = "database"
BROKER: Final = "broker"
WORKERS: Final = ("worker-1", "worker-2")

_REFUSED: Final = re.compile(
    r"ERROR: +(?:incarnation \d+ is fenced|(?:a shard has|shards have) left incarnation)"
)

Database = EmbeddedPostgres | Server


async def register(api: httpx.AsyncClient, device_id: str) -> httpx.Response:
    return await api.post("/api/devices", json={"device_id": device_id, "device_type": "roving"})


class World:
    """A cluster of a head and two workers, and what a test looks at it with.

    Attributes:
        network: what its machines are in; None on loopback.
        struck: set by a fault when its damage is done, after it has looked for what to do it to.
    """

    def __init__(
        self,
        machines: Machines,
        database: Database,
        broker: RealMosquitto,
        network: Network | None = None,
    ) -> None:
        self.machines = machines
        self.database = database
        self.broker = broker
        self.network = network
        self.struck = asyncio.Event()

    @property
    def dsn(self) -> str:
        """Of the database."""
        return self.database.dsn if isinstance(self.database, EmbeddedPostgres) else self.database.url()

    @property
    def url(self) -> str:
        """Of the API."""
        url = read_state(self.machines.folder / "data").http_url
        return url if self.network is None else f"http://{self.network.address['head']}:{urlsplit(url).port}"

    def stop_database(self) -> None:
        """As its service manager does; a server with an address, at once."""
        if isinstance(self.database, EmbeddedPostgres):
            self.database.stop()
        else:
            self.database.kill()

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
            if self.spread() != [0, 1, 1]:
                return False
            with suppress(httpx.HTTPError):
                hosts = httpx.get(f"{self.url}/api/hosts", timeout=10).json()
                return bool(hosts["balanced"]) and httpx.get(f"{self.url}/readyz", timeout=10).is_success
            return False

        try:
            await self.eventually(there, "a host on each worker, with its shards")
        except TimeoutError as error:
            raise AssertionError(f"{error}; there are {self.nodes()}\n{self.coordinator_log()}") from None

    @asynccontextmanager
    async def load(self, name: str) -> AsyncIterator[Load]:
        """Devices that publish all the time; on leaving, what is stored must be what was acknowledged."""
        ids = [f"{name}-{n:03}" for n in range(DEVICES)]
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as api:
            for device_id in ids:
                # Where calls within the cluster fail it may be asked to come again, and then be found there.
                async with asyncio.timeout(60):
                    while (answer := await register(api, device_id)).status_code in (429, 503):
                        await asyncio.sleep(float(answer.headers["retry-after"]))
                assert answer.status_code in (201, 409), answer.text
        async with (
            mqtt_client(self.broker.address, name) as client,
            Load(client, ids, MESSAGES_PER_S) as load,
        ):
            await load.more(DEVICES)
            yield load
            await self.recovered(load, "the end")
        async with audit(self.dsn) as log:
            # The broker has acknowledged it all; the last of it is under way to the log.
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                    while await log.count(ids) < load.total:
                        await asyncio.sleep(0.1)
            stored = await log.stored(ids, "sequence")
            wrong = {i: found for i in ids if (found := stored.get(i, [])) != list(range(load.sent[i]))}
            assert not wrong, f"{len(wrong)} devices, such as {next(iter(wrong.items()))}"
            assert await log.faulty_shards() == []

    async def recovered(self, load: Load, what: str) -> float:
        """Return once every device's messages of now are stored; how long that took."""
        took_s = await recovered(self.dsn, load, dict(load.sent), RECOVERY_TIMEOUT_S)
        print(f"{what}: every device served again after {took_s:.1f} s")
        return took_s

    def process(self, title: str, node: str) -> psutil.Process:
        """The first process of a node whose title starts so."""
        return self.machines.processes_of(node, title)[0]

    def node_of(self, title: str) -> str:
        """The node that has a process of this title, once one has."""
        return self._node_where(lambda name: self.machines.processes_of(name, title), title)

    def ingestor_node(self) -> str:
        """The node that the devices' messages come in by, once there is one."""
        return self._node_where(self._ingests, "an ingestor at the broker")

    def _node_where(self, holds: Callable[[str], object], what: str) -> str:
        found: list[str] = []

        def there() -> bool:
            found[:] = [name for name in self.machines.nodes if holds(name)]
            return bool(found)

        wait_until(there, 20, what)
        return found[0]

    def _ingests(self, node: str) -> bool:
        found = [p for title in INGESTORS for p in self.machines.processes_of(node, title)]
        return any(self.broker.address.port in _ports_reached(process.pid) for process in found)

    def coordinator_log(self) -> str:
        """The last that it has said."""
        logs = self.machines.folder.glob("ray/session_*/logs/worker-*.err")
        said = (log.read_text(errors="replace") for log in sorted(logs))
        return "\n".join(text[-6000:] for text in said if ":actor_name:Coordinator" in text)

    def failed_calls(self) -> int:
        """How many calls Ray says it has let fail."""
        logs = self.machines.folder.glob("ray/session_2*/logs/python-core-worker-*.log")
        return sum(log.read_text(errors="replace").count("Inject RPC") for log in logs)

    def refused_writes(self) -> int:
        """How many transactions the database has refused: who sent them had lost its shards."""
        embedded = isinstance(self.database, EmbeddedPostgres)
        log = self.database.data_dir / "server.log" if embedded else self.database.log_file
        return len(_REFUSED.findall(log.read_text(errors="replace")))


def _ports_reached(pid: int) -> set[int]:
    """The remote ports of a process's connections. psutil would look into the namespace of the tests."""
    ports = set()
    with suppress(OSError):
        sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in sockets:
                ports.add(int(fields[2].partition(":")[2], 16))
    return ports


@contextmanager
def loopback_cluster(**environment: str) -> Iterator[World]:
    """All of it on this machine's loopback, started; `environment` is the workers', and has Ray's calls fail:
    hosts are called by Ray alone then."""
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        broker = stack.enter_context(_broker(folder))
        database = EmbeddedPostgres(folder / "pg")
        stack.callback(database.stop)
        database.start()
        secrets = f"DEVICE_DB_URL='{database.dsn}'\nMQTT_BROKER_URL={broker.url}\n"
        local = {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]}
        directory, launcher, name = installed(folder, secrets, local, by_ray_alone=bool(environment))
        machines = Machines(directory, launcher)
        yield from _started(World(machines, database, broker), name, environment)


@contextmanager
def networked_cluster() -> Iterator[World]:
    """Each node a machine with an address of its own; database and broker have theirs too."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(["head", *WORKERS], [DATABASE, BROKER]))
        folder = stack.enter_context(_folder())
        broker = stack.enter_context(_broker(folder, network.address[BROKER]))
        database = stack.enter_context(server(address=network.address[DATABASE], clients=network.subnet))
        secrets = f"DEVICE_DB_URL='{database.url()}'\nMQTT_BROKER_URL={broker.url}\n"
        head_ip = network.address["head"]
        local = {"head_ip": head_ip, "worker_ips": [network.address[name] for name in WORKERS]}
        directory, launcher, name = installed(folder, secrets, local, http_host="0.0.0.0")
        inside = {machine: network.inside(machine) for machine in network.machines}
        machines = Machines(directory, launcher, head_ip, inside)
        # Before the nodes are stopped, so that they hear of it.
        yield from _started(World(machines, database, broker, network), name, {}, network.heal)


def _started(
    world: World,
    name: str,
    workers: Mapping[str, str],
    before_stop: Callable[[], None] = lambda: None,
) -> Iterator[World]:
    machines = world.machines
    try:
        machines.start_head()
        for number in range(1, len(WORKERS) + 1):
            machines.start_worker(number, **workers)
        machines.start_platform()
        yield world
        before_stop()
        machines.stop_platform()
        machines.stop_nodes()
        wait_until(lambda: not machines.processes(), 15, "the processes to end")
    finally:
        machines.close()
        shutil.rmtree(short_run_dir(name), ignore_errors=True)


@contextmanager
def _folder() -> Iterator[Path]:
    """With a short path, since it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="sens-3n-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _broker(folder: Path, address: str = "127.0.0.1") -> Iterator[RealMosquitto]:
    broker = RealMosquitto(folder, address)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
