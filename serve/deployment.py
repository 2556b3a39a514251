"""The API on Ray Serve: each replica opens its own pool, router and pipeline. Set `serve_environment` before.

Ray Serve is imported when something is deployed, not with this module: it reads the environment at import.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import ray
from fastapi import FastAPI

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.backtesting import Asked, Progress, backtest
from sensorium.actors.errors import Overloaded
from sensorium.actors.fleet import Fleet
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.actors.profile import Profiles, RateLimits
from sensorium.actors.router import Router
from sensorium.actors.runtime import NAMESPACE, find_coordinator, make_router, spare_the_collector
from sensorium.ingest.decode import Bounds
from sensorium.ingest.direct import DirectDownlink
from sensorium.ingest.downlink import DownlinkSettings
from sensorium.ingest.lorawan.adapter import LorawanAdapter, LorawanSettings
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.rate_limit import limiter
from sensorium.ingest.replay import Replay
from sensorium.serve.app import build_app
from sensorium.serve.command_waits import CommandWaits
from sensorium.serve.feed import LiveFeed
from sensorium.serve.overview import Overview
from sensorium.serve.services import ActionSide, Services
from sensorium.storage.alarms import Alarms
from sensorium.storage.anomalies import Anomalies
from sensorium.storage.archive import Archive
from sensorium.storage.attendance import DOWNLINK, attended
from sensorium.storage.audit_chain import AuditLog
from sensorium.storage.batched import Batched
from sensorium.storage.bulk_jobs import BulkJobs
from sensorium.storage.command_notices import PgEndedCommands
from sensorium.storage.commands import PgCommands
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import Pool, acquired, close_pool, open_pool
from sensorium.storage.dead_letters import DeadLetters
from sensorium.storage.deliveries import Deliveries
from sensorium.storage.erasures import Erasures
from sensorium.storage.events import Events
from sensorium.storage.fleet_figures import FleetFigures
from sensorium.storage.history import History
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.live_log import LiveLog
from sensorium.storage.maintenance import PgMaintenance
from sensorium.storage.models.active import PgActiveModels
from sensorium.storage.models.opening import RegistrySettings
from sensorium.storage.models.registry import ModelRegistry
from sensorium.storage.past_states import PastStates
from sensorium.storage.projection_control import Projections
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rule_versions import RuleVersions
from sensorium.storage.rules import PgRules
from sensorium.storage.sealing import Keys
from sensorium.storage.spread_history import SpreadHistory
from sensorium.storage.spread_reads import (
    SpreadAlarms,
    SpreadCommands,
    SpreadDeadLetters,
    SpreadProjections,
    SpreadRegistry,
)
from sensorium.storage.twins import Twins
from sensorium.storage.webhooks import PgWebhooks

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION: Final = "sensorium"
DEPLOYMENT: Final = "api"
BACKTESTS_AT_ONCE: Final = 2
DRAIN_TIMEOUT_S: Final = 5.0
"""How long a replica that stops waits for the commits of what it has sent."""
STOP_TIMEOUT_S: Final = 15.0

# The app's own bound refuses first, with a problem document; Serve's only catches what slips by.
_ABOVE_OUR_BOUND: Final = 200
_QUEUED_REQUESTS: Final = 500
_QUIET: Final[dict[str, Any]] = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """What a replica is given. Must pickle.

    Attributes:
        dsn: the main database; `pool_size` connections a replica.
        further_dsns: the databases besides it that the log is spread over, as many connections each.
        namespace: the Ray namespace of the hosts' coordinator.
        timeout_s: how long a device may take to answer.
        max_body_bytes, max_requests: bounds of a request, and of requests at once in a replica.
        bounds: of telemetry, the same as the other ways in have.
        lorawan: codecs, and the secret of the webhook.
        limit, lorawan_limit: on what each device sends by HTTP and by LoRaWAN, held by each replica itself.
        profiles: of device types, as hosts have them.
        archive: where older history is.
        max_subscribers: of the live feed in a replica, besides its requests.
        webhook_schemes, webhook_networks: of the addresses that webhooks may have.
        keys: with what secrets are sealed at rest.
        models: where trained models are registered; None: they are not told of.
        downlink: how devices are told of commands; None: not by the replica itself.
    """

    dsn: str
    namespace: str = NAMESPACE
    pool_size: int = 8
    further_dsns: tuple[str, ...] = ()
    timeout_s: float = 10.0
    max_body_bytes: int = 1_048_576
    max_requests: int = 1000
    bounds: Bounds = field(default_factory=Bounds)
    lorawan: LorawanSettings = field(default_factory=LorawanSettings)
    limit: RateLimits | None = None
    lorawan_limit: RateLimits | None = None
    profiles: Profiles = field(default_factory=Profiles)
    archive: InfluxSettings | None = None
    max_subscribers: int = 2_000
    webhook_schemes: tuple[str, ...] = ("https", "http")
    webhook_networks: tuple[str, ...] = ("loopback",)
    keys: Keys = field(default_factory=Keys)
    models: RegistrySettings | None = None
    downlink: DownlinkSettings | None = None


@asynccontextmanager
async def opened(settings: ApiSettings) -> AsyncIterator[Services]:
    """The services of one replica, in a process that is connected to Ray."""
    async with AsyncExitStack() as stack:
        pools = []
        for dsn in (settings.dsn, *settings.further_dsns):
            pools.append(await open_pool(dsn, settings.pool_size, "sensorium api"))
            stack.push_async_callback(close_pool, pools[-1])
        pool = pools[0]
        spread = len(pools) > 1
        sender = f"http-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        router = await stack.enter_async_context(make_router(sender, settings.namespace))
        stack.push_async_callback(_drain, router)
        overview = Overview(find_coordinator(settings.namespace))
        rules = PgRules(pool)
        commands = SpreadCommands(pools) if spread else PgCommands(pool)
        dsns = (settings.dsn, *settings.further_dsns)
        waits = CommandWaits([PgEndedCommands(dsn) for dsn in dsns], commands)
        await waits.start()
        stack.push_async_callback(waits.close)
        uplinks = Pipeline(router, settings.bounds, "lorawan", settings.lorawan_limit)
        lorawan = LorawanAdapter(uplinks, router, settings.lorawan, settings.bounds)
        stack.push_async_callback(lorawan.close)
        replay = Replay(router, settings.bounds, settings.lorawan)
        stack.push_async_callback(replay.close)
        direct = None
        if settings.downlink is not None:
            direct = DirectDownlink(settings.downlink, router, attended(settings.dsn, DOWNLINK))
            await direct.start()
            stack.push_async_callback(direct.stop)
        archive = _archive(settings.archive, stack)
        alarms = SpreadAlarms(pools) if spread else Alarms(pool)
        feed = LiveFeed(lambda: [LiveLog(dsn) for dsn in dsns], alarms, _now_ms, settings.max_subscribers)
        stack.push_async_callback(feed.close)
        days = [CompactedDays() for _ in pools]
        audit = AuditLog(pools)
        settling = asyncio.create_task(audit.keep(), name="audit log")
        stack.push_async_callback(_ended, settling)
        yield Services(
            router=router,
            pipeline=Pipeline(router, settings.bounds, source="http"),
            registry=SpreadRegistry(pools) if spread else PgRegistry(pool),
            history=SpreadHistory(pools, archive, days) if spread else History(pool, archive, days[0]),
            projections=SpreadProjections(pools) if spread else Projections(pool),
            commands=commands,
            events=Events(pools),
            twins=Twins(pools),
            jobs=BulkJobs(pool),
            waits=waits,
            backtests=Backtests(settings.namespace),
            rules=rules,
            alarms=alarms,
            anomalies=Anomalies(pools),
            figures=FleetFigures(pools, days),
            dead_letters=SpreadDeadLetters(pools) if spread else DeadLetters(pool),
            audit=audit,
            erasures=Erasures(pools),
            past_states=PastStates(pools, settings.profiles),
            now_ms=_now_ms,
            checks={"database": lambda: _check_database(pools[0]), "hosts": overview.check_hosts},
            statistics=overview.statistics,
            cluster=overview,
            timeout_s=settings.timeout_s,
            max_body_bytes=settings.max_body_bytes,
            max_requests=settings.max_requests,
            bounds=settings.bounds,
            limiter=limiter(settings.limit, router),
            profiles=settings.profiles,
            replay=replay,
            lorawan=lorawan,
            tts_secret=settings.lorawan.tts_secret,
            direct=direct,
            feed=feed,
            batched=Batched(pools, days),
            models=None if settings.models is None else TrainedModels(settings.models, PgActiveModels(pool)),
            actions=ActionSide(
                Deliveries(pools),
                PgWebhooks(pool, settings.keys.sealer()),
                RuleVersions(pool),
                PgMaintenance(pool),
                settings.webhook_schemes,
                settings.webhook_networks,
            ),
        )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _archive(settings: InfluxSettings | None, stack: AsyncExitStack) -> Archive | None:
    if settings is None:
        return None
    from sensorium.storage.influx_archive import InfluxArchive

    archive = InfluxArchive(settings)
    stack.push_async_callback(archive.close)
    return archive


async def _check_database(pool: Pool) -> None:
    async with acquired(pool) as connection:
        await connection.fetchval("SELECT 1")


async def _drain(router: Router) -> None:
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await router.drained(1)
    except TimeoutError:
        logging.getLogger(__name__).warning(
            "stopped with %d messages whose commit nobody has seen; their senders got no 2xx", router.pending
        )


class TrainedModels:
    """See `services.ListsModels`. The registry is asked by a thread, and opened when it is asked first."""

    def __init__(self, settings: RegistrySettings, at_work: PgActiveModels) -> None:
        self._settings = settings
        self._at_work = at_work
        self._registry: ModelRegistry | None = None

    async def all(self) -> list[ModelInfo]:
        """See `ListsModels`."""
        return await asyncio.to_thread(self._all)

    async def active(self) -> list[ActiveModel]:
        """See `ListsModels`."""
        return await self._at_work.infos()

    def _all(self) -> list[ModelInfo]:
        if self._registry is None:
            self._registry = self._settings.open()
        return self._registry.all()


class Backtests:
    """Backtests by Ray tasks, which a thread waits for.

    At most `BACKTESTS_AT_ONCE` a replica; each takes what CPUs the cluster has.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._running = 0

    async def run(self, asked: Asked) -> AsyncGenerator[Progress | BacktestResult, None]:
        """See `services.TriesRules`. Raises `Overloaded` while too many run."""
        if self._running >= BACKTESTS_AT_ONCE:
            raise Overloaded(f"{BACKTESTS_AT_ONCE} backtests are running here already", 10.0)
        self._running += 1
        steps: Generator[Progress | BacktestResult, None, None] | None = None
        try:
            fleet = await asyncio.to_thread(Fleet, self._namespace)
            steps = backtest(fleet, asked)
            while True:
                taken = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
                try:
                    step = await asyncio.shield(taken)
                except asyncio.CancelledError:
                    # A thread cannot be stopped; the generator is closed once it stands still.
                    await asyncio.wait({taken})
                    raise
                if step is None:
                    return
                yield step
        finally:
            self._running -= 1
            if steps is not None:
                steps.close()


class Api:
    """A replica. Ray Serve calls its parts; everything else is the app's."""

    # Ray Serve awaits the constructor, in the event loop that serves the requests.
    async def __init__(self, settings: ApiSettings) -> None:  # type: ignore[misc]
        self._stack = AsyncExitStack()
        self._services = await self._stack.enter_async_context(opened(settings))
        spare_the_collector()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._services)

    async def check_health(self) -> None:
        """Fails once the router is broken, so that Ray Serve replaces the replica.

        What lies behind the router is `readyz`'s: a restart would not mend it.
        """
        self._services.router.check()
        self._services.waits.check()
        if self._services.feed is not None:
            self._services.feed.check()

    async def __del__(self) -> None:
        # Ray Serve awaits it when a replica stops; a constructor that failed leaves nothing to close.
        if hasattr(self, "_services"):
            await self._stack.aclose()


def deploy(
    settings: ApiSettings, host: str, port: int, replicas: int = 1, proxies: str = "every_node"
) -> None:
    """Start Ray Serve's proxy on `host` and `port`, and the API behind it; returns when it serves.

    On a cluster of several nodes, `host` must be an address that all of them reach, such as 0.0.0.0.
    `proxies` is "every_node" (that has a replica, and the head) or "head".

    Raises:
        RuntimeError: Ray Serve could not bring the API up; its message says why.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    location = ProxyLocation.EveryNode if proxies == "every_node" else ProxyLocation.HeadOnly
    serve.start(location, HTTPOptions(host=host, port=port), logging_config=_QUIET)
    serve.run(application(settings, replicas), name=APPLICATION, route_prefix="/")


def application(settings: ApiSettings, replicas: int = 1) -> "Application":
    """The API as an application of Ray Serve."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=settings.max_requests + settings.max_subscribers + _ABOVE_OUR_BOUND,
        max_queued_requests=_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=STOP_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=_QUIET,
    )
    bound: Application = deployment(serve.ingress()(Api)).bind(settings)
    return bound


def shutdown() -> None:
    """Stop the API and the proxy: requests under way are answered first. Ray itself stays."""
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()  # type: ignore[no-untyped-call]
