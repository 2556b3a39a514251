"""A whole platform: everything embedded that no address names, Ray, the runtime, the services, the API.

Started in the order of need and stopped in the opposite one, so that nothing acknowledged is lost.
"""

import asyncio
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import ray
from ray.exceptions import RayActorError

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.coordinator import RuntimeSpec, ServiceSpec
from sensorium.actors.errors import SensoriumError
from sensorium.actors.host import HostSettings
from sensorium.actors.router import HELD_MOST
from sensorium.actors.runtime import (
    NAMESPACE,
    claim_cluster,
    cluster_id,
    end_left_behind,
    join_ray,
    start_coordinator,
    start_ray,
    steer_coordinator,
)
from sensorium.cluster import urls
from sensorium.cluster.actions import action_services
from sensorium.cluster.adapters import adapter_service
from sensorium.cluster.audit import note_configuration
from sensorium.cluster.config import Config
from sensorium.cluster.deploy.node import NO_FIGURES, RAY_ENVIRONMENT, STARTED_TOGETHER
from sensorium.cluster.errors import AlreadyRunning
from sensorium.cluster.lorawan import lorawan_command_services
from sensorium.cluster.ports import PortTaken, check_free
from sensorium.cluster.processes import coap_adapter, command_adapter, mqtt_adapter
from sensorium.cluster.sealed import seal_stored
from sensorium.cluster.services import (
    api_settings,
    connections_needed,
    downlink_settings,
    peer_services,
    storage_services,
)
from sensorium.cluster.sparkplug import sparkplug_services
from sensorium.cluster.streams import stream_services
from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.coap import CoapSettings, check_port
from sensorium.ingest.coap_security import check_contexts
from sensorium.ingest.dtls_keys import check_dtls
from sensorium.ingest.mqtt import MqttSettings
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MAX_WINDOW, MqttOptions
from sensorium.serve.deployment import deploy, shutdown
from sensorium.serve.environment import ProxyPorts, serve_environment, short_run_dir
from sensorium.storage import (
    Claim,
    DatabaseClaimed,
    EmbeddedPostgres,
    PgHostPorts,
    PgMembershipFactory,
    migrate,
)
from sensorium.storage.checkup import check_server
from sensorium.storage.claim import Role, await_no_other_runtime
from sensorium.storage.layout import check_layout
from sensorium.storage.retention_classes import settle

_log = logging.getLogger(__name__)

OBJECT_STORE_BYTES: Final = 200 * 1024 * 1024
"""Batches travel inline, so Ray's shared memory is hardly used."""

PROXY_GONE_S: Final = 20.0
"""In which the HTTP port of a platform that was killed is free again."""

RUNTIME_GONE_S: Final = 20.0
"""In which the hosts of a platform that was killed with its Ray end."""

DATABASE_FOLDER: Final = "postgres"
"""Of the embedded one, in the data folder."""

_Starting = tuple[EmbeddedPostgres, "asyncio.Future[None]"]

LOOK_EVERY_S: Final = 0.5
"""How often embedded servers and the coordinator are looked after."""


class Platform:
    """`async with Platform(config) as platform:` serves from entering to leaving.

    Attributes:
        http_url, mqtt_url: where people and devices find it. `mqtt_url` has no credentials.
        ray_address: what `sensorium.connect` takes.
        database_dsn_redacted: where the log is.

    Raises:
        SensoriumError, OSError, RuntimeError: on entering, for what cannot be started; what had been started
            is stopped then.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = AsyncExitStack()
        self._coordinator: Any = None
        self._cluster_claim: Any = None
        self._database_claims: list[Claim] = []
        self._failure: asyncio.Future[SensoriumError] = asyncio.get_running_loop().create_future()
        self._classes: dict[str, int] = {}
        self._run_dir = short_run_dir(f"{os.getpid()}")
        self.http_url = ""
        self.mqtt_url = ""
        self.ray_address = ""
        self.database_dsn_redacted = ""

    async def __aenter__(self) -> Self:
        joining = self._config.cluster.ray_address is not None
        if not joining:
            self._check_ports()
        async with AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self._run_dir, ignore_errors=True)
            stack.callback(ray.shutdown)
            url = self._config.storage.main_url
            # Whoever cannot have the database has not started anything, nor ended what another has left.
            if not joining and url is not None:
                await self._claim_databases(stack, url)
            embedded = self._start_embedded(stack) if not joining and url is None else None
            with _sigterm_kept():
                self._join_ray()
            if joining:
                await self._claim_cluster()
                if url is not None:
                    await self._claim_databases(stack, url)
                await self._take_over()
            await self._wait_for_nodes()
            if url is None:
                url = await self._embedded(stack, embedded or self._start_embedded(stack))
            await self._database(url)
            address = await self._broker(stack)
            await self._runtime(stack, url, address)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def failed(self) -> SensoriumError:
        """Why the platform cannot go on, once it cannot: another has taken its database."""
        return await asyncio.shield(self._failure)

    async def statistics(self) -> dict[str, Any]:
        """What hosts and services say of themselves; see `Coordinator.statistics`."""
        result: dict[str, Any] = await self._coordinator.call.remote("statistics")
        return result

    # --- parts, in the order of their start -------------------------------------------------------------

    def _check_ports(self) -> None:
        check_free(self._config.http.host, self._config.http.port, "--http-port")
        if self._config.mqtt.url is None:
            check_free("127.0.0.1", self._config.mqtt.port, "--mqtt-port")
        coap = self._config.coap
        if coap.enabled:
            check_port(coap.host, coap.port)
            if coap.contexts_dir is not None:
                check_contexts(coap.contexts_dir)
            if coap.dtls_keys is not None:
                check_dtls(coap.dtls_keys)
                check_port(coap.host, coap.dtls_port)

    def _join_ray(self) -> None:
        address = self._config.cluster.ray_address
        if address is not None:
            join_ray(address)
        else:
            ports = ProxyPorts(free_port(), free_port(), free_port())
            os.environ.update({**RAY_ENVIRONMENT, **NO_FIGURES, **serve_environment(self._run_dir, ports)})
            start_ray(
                object_store_memory=OBJECT_STORE_BYTES,
                _system_config={"worker_maximum_startup_concurrency": STARTED_TOGETHER},
            )
        self.ray_address = ray.get_runtime_context().gcs_address

    async def _claim_cluster(self) -> None:
        """Be the only platform of the cluster that was joined."""
        try:
            self._cluster_claim = await asyncio.to_thread(claim_cluster)
        except ValueError:
            raise AlreadyRunning(
                f"a platform runs on the Ray cluster {self.ray_address} already; end it first"
            ) from None

    async def _take_over(self) -> None:
        """End what a killed platform has left on the cluster that was joined."""
        deadline_s = time.monotonic()
        if await asyncio.to_thread(end_left_behind):
            _log.warning("a platform that was killed left its hosts and API on the cluster; ending them")
            await asyncio.to_thread(shutdown)
            # The proxy outlives its controller by what it drains.
            deadline_s = time.monotonic() + PROXY_GONE_S
        while True:
            try:
                self._check_ports()
            except PortTaken:
                if time.monotonic() >= deadline_s:
                    raise
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                return

    async def _wait_for_nodes(self) -> None:
        wanted, timeout_s = self._config.cluster.nodes, self._config.cluster.nodes_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while (there := _nodes_alive()) < wanted:  # noqa: ASYNC110 - Ray tells nobody of new nodes
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise TimeoutError(f"{there} of {wanted} nodes are there after {timeout_s:g} s") from None

    def _database_folder(self) -> Path | None:
        """That of the embedded one."""
        embedded = self._config.storage.main_url is None
        return self._data_dir() / DATABASE_FOLDER if embedded else None

    def _start_embedded(self, stack: AsyncExitStack) -> "_Starting":
        """Begin to start the embedded database, in a thread: Ray is started meanwhile."""
        server = EmbeddedPostgres(self._data_dir() / DATABASE_FOLDER)
        started = asyncio.get_running_loop().run_in_executor(None, server.start)

        async def end() -> None:
            await asyncio.wait({started})
            await asyncio.to_thread(server.stop)

        stack.push_async_callback(end)
        return server, started

    async def _embedded(self, stack: AsyncExitStack, starting: "_Starting") -> str:
        """The address of the embedded database, once it serves and is ours."""
        server, started = starting
        await started
        self._keep(stack, "the embedded PostgreSQL", lambda: server.running, server.start)
        await self._claim_databases(stack, server.dsn)
        return server.dsn

    async def _database(self, url: str) -> None:
        for claim in self._database_claims:
            await await_no_other_runtime(claim, cluster_id(), RUNTIME_GONE_S)
        dsns = (url, *self._config.storage.further_urls)
        for dsn in dsns:
            await migrate(dsn)
        await check_layout(dsns)
        await seal_stored(url, self._config.security.keys())
        self._classes = await settle(dsns, *self._config.kept)
        await note_configuration(url, self._config)
        self.database_dsn_redacted = urls.redacted(url)

    async def _claim_databases(self, stack: AsyncExitStack, url: str) -> None:
        """Be the only platform on the databases, from now to the end, once they all will do."""
        dsns = (url, *self._config.storage.further_urls)
        for dsn in dsns:
            for trouble in await check_server(dsn, connections_needed(self._config)):
                _log.warning("%s", trouble)
        for dsn in dsns:
            claim = Claim(dsn, Role.PLATFORM)
            stack.push_async_callback(claim.close)
            await claim.hold()
            task = asyncio.create_task(self._keep_claim(claim), name="keep the claim on a database")
            stack.push_async_callback(_cancelled, task)
            self._database_claims.append(claim)

    async def _keep_claim(self, claim: Claim) -> None:
        try:
            await claim.keep()
        except DatabaseClaimed as error:
            if not self._failure.done():
                self._failure.set_result(error)

    async def _broker(self, stack: AsyncExitStack) -> BrokerAddress:
        mqtt = self._config.mqtt
        if mqtt.url is None:
            broker = EmbeddedBroker(mqtt.port, self._data_dir())
            await stack.enter_async_context(broker)
            self.mqtt_url = f"mqtt://127.0.0.1:{mqtt.port}"
            return broker.direct
        address = self._config.broker
        self.mqtt_url = str(address)
        return address

    async def _runtime(self, stack: AsyncExitStack, dsn: str, address: BrokerAddress) -> None:
        config = self._config
        settings = HostSettings(
            profiles=config.device_profiles.kept_as(self._classes),
            auto_register_as=config.auto_register_as,
            activation=ActivationSettings(
                snapshot_every_turns=config.cluster.snapshot_every_turns,
                snapshot_every_s=config.cluster.snapshot_every_s,
                max_active=config.cluster.max_active_devices,
                max_active_bytes=config.cluster.max_active_mb << 20,
                idle_after_s=config.cluster.idle_after_s,
            ),
            local_calls=config.cluster.local_calls,
        )
        mqtt = MqttSettings(
            address=address,
            client_id=f"{config.mqtt.client_id}-ingest-0",
            # The embedded broker breaks down over shared subscriptions and raises messages to the QoS asked.
            share=None if config.mqtt.url is None else config.mqtt.share_group,
            max_qos=1 if config.mqtt.url is None else 2,
            options=MqttOptions(receive_maximum=_window(config)),
            bounds=config.bounds,
            limit=config.limits("mqtt"),
            max_pending=config.ingest.max_pending,
        )
        dsns = (dsn, *config.storage.further_urls)
        spec = RuntimeSpec(
            config.cluster.hosts,
            PgHostPorts(dsn, config.storage.further_urls),
            PgMembershipFactory(dsn, cluster_id(), self.ray_address, config.storage.further_urls),
            settings,
            [
                adapter_service("mqtt-0", "mqtt", NAMESPACE, mqtt_adapter, mqtt),
                *self._coap(dsns),
                *self._lorawan(mqtt),
                *lorawan_command_services(config, mqtt, dsns, NAMESPACE),
                *sparkplug_services(config, mqtt, dsns, NAMESPACE),
                self._commands(mqtt, dsns),
                *storage_services(config, dsns, self._database_folder()),
                *stream_services(config, dsns, NAMESPACE),
                *peer_services(config, dsns, NAMESPACE),
                *action_services(config, address, dsns, NAMESPACE),
            ],
            config.cluster.max_isolated_devices,
        )
        self._coordinator = start_coordinator(spec)
        stack.push_async_callback(self._stop_runtime)
        stack.push_async_callback(asyncio.to_thread, shutdown)
        # Side by side: each waits for processes of its own.
        await _all_of(steer_coordinator(self._coordinator, "start"), self._api(dsn, address))
        task = asyncio.create_task(self._keep_started(), name="keep the coordinator")
        stack.push_async_callback(_cancelled, task)

    def _coap(self, dsns: Sequence[str]) -> list[ServiceSpec]:
        coap = self._config.coap
        if not coap.enabled:
            return []
        settings = CoapSettings(
            host=coap.host,
            port=coap.port,
            contexts_dir=None if coap.contexts_dir is None else str(coap.contexts_dir.absolute()),
            require_oscore=coap.require_oscore,
            dtls_keys=None if coap.dtls_keys is None else str(coap.dtls_keys.absolute()),
            dtls_port=coap.dtls_port,
            bounds=self._config.bounds,
            max_pending=self._config.ingest.max_pending,
            limit=self._config.limits("coap"),
        )
        return [adapter_service("coap-0", "coap", NAMESPACE, coap_adapter, settings, dsns)]

    def _lorawan(self, mqtt: MqttSettings) -> list[ServiceSpec]:
        config = self._config
        if not config.lorawan.chirpstack:
            return []
        # A session of its own at the broker, since what a session subscribes to outlives the settings.
        events = msgspec.structs.replace(
            mqtt,
            client_id=f"{config.mqtt.client_id}-lorawan-0",
            lorawan=config.lorawan.settings(),
            limit=config.limits("lorawan"),
        )
        return [adapter_service("lorawan-0", "lorawan", NAMESPACE, mqtt_adapter, events)]

    def _commands(self, mqtt: MqttSettings, dsns: Sequence[str]) -> ServiceSpec:
        settings = downlink_settings(self._config, mqtt.address)
        return adapter_service("commands-0", None, NAMESPACE, command_adapter, settings, dsns)

    async def _keep_started(self) -> None:
        """Start the coordinator again whenever Ray had to make it anew."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._coordinator.call.remote("start")
            except RayActorError as error:
                _log.warning("the coordinator does not answer: %s", str(error).splitlines()[0])

    async def _stop_runtime(self) -> None:
        await steer_coordinator(self._coordinator, "stop")
        ray.kill(self._coordinator)

    async def _api(self, dsn: str, broker: BrokerAddress) -> None:
        http = self._config.http
        settings = api_settings(self._config, dsn, broker)
        await asyncio.to_thread(deploy, settings, http.host, http.port, http.replicas, http.proxies)
        self.http_url = f"http://{'127.0.0.1' if http.host == '0.0.0.0' else http.host}:{http.port}"

    def _keep(
        self, stack: AsyncExitStack, name: str, running: Callable[[], bool], start: Callable[[], None]
    ) -> None:
        """Start an embedded server again whenever it has died."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                if not running():
                    _log.warning("%s has died; starting it again", name)
                    try:
                        await asyncio.to_thread(start)
                    except (OSError, RuntimeError) as error:
                        _log.error("%s does not start: %s", name, error)

        task = asyncio.create_task(keep(), name=f"keep {name}")
        stack.push_async_callback(_cancelled, task)

    def _data_dir(self) -> Path:
        directory = self._config.storage.data_dir.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def _nodes_alive() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _all_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Await all of them; when one fails, the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            await _cancelled(task)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Undoes what Ray does to SIGTERM: how this process ends is for whoever runs it to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _window(config: Config) -> int:
    """Unacknowledged messages at an ingestor: those for a database that is away leave room for the others."""
    held = HELD_MOST if config.storage.further_urls else 0
    return min(config.ingest.receive_maximum + held, MAX_WINDOW)
