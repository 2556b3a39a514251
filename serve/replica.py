"""The services of one replica of the API: its own pool, router and pipeline."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.backtesting import Asked, Progress, backtest
from sensorium.actors.errors import Overloaded
from sensorium.actors.fleet import Fleet
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.actors.router import Router
from sensorium.actors.runtime import find_coordinator, make_router
from sensorium.ingest.direct import DirectDownlink
from sensorium.ingest.lorawan.adapter import LorawanAdapter
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.rate_limit import limiter
from sensorium.ingest.replay import Replay
from sensorium.serve.command_waits import CommandWaits
from sensorium.serve.deployment import ApiSettings
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

BACKTESTS_AT_ONCE: Final = 2
DRAIN_TIMEOUT_S: Final = 5.0
"""How long a replica that stops waits for the commits of what it has sent."""


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
        waits = CommandWaits([PgEndedCommands(dsn) for dsn in dsns], commands, router)
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
