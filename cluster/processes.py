"""What services open in processes of their own.

Their process imports this module for one of these functions, so each imports what it needs when it is called.
With all of it in every process, and the HTTP API by the way, each started with 1.5 s of a core more.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from sensorium.actors.router import Router
from sensorium.cluster.adapters import TaskAdapter, opened_pools

if TYPE_CHECKING:
    from sensorium.ingest.coap import CoapServer, CoapSettings
    from sensorium.ingest.downlink import Downlink, DownlinkSettings
    from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
    from sensorium.storage.projection_runner import ProjectionRunner


def rollup_service(dsn: str, position: int) -> "ProjectionRunner":
    """The projection of one database into its rollups."""
    from sensorium.storage.projection_runner import ProjectionRunner
    from sensorium.storage.rollup_sink import SETTINGS, RollupSink

    return ProjectionRunner(dsn, SETTINGS, RollupSink(), position=position)


async def mqtt_adapter(settings: "MqttSettings", router: Router, _: AsyncExitStack) -> "MqttIngestor":
    """Telemetry by MQTT, or what ChirpStack says there."""
    from sensorium.ingest.mqtt import MqttIngestor

    return MqttIngestor(settings, router)


async def coap_adapter(
    settings: "CoapSettings", dsns: Sequence[str], router: Router, _: AsyncExitStack
) -> "CoapServer":
    """All that devices do by CoAP."""
    from sensorium.ingest.coap import CoapServer
    from sensorium.storage.command_notices import PgReadyCommands

    return CoapServer(settings, router, sources=[PgReadyCommands(dsn, "coap") for dsn in dsns])


async def command_adapter(
    settings: "DownlinkSettings", dsns: Sequence[str], router: Router, stack: AsyncExitStack
) -> "CommandAdapter":
    """Commands and twins to devices by MQTT, and bulk jobs."""
    from sensorium.ingest.downlink import Downlink
    from sensorium.serve.spreader import Spreader
    from sensorium.storage.attendance import DOWNLINK, attend
    from sensorium.storage.bulk_jobs import BulkJobs
    from sensorium.storage.command_notices import PgReadyCommands
    from sensorium.storage.commands import PgCommands
    from sensorium.storage.spread_reads import SpreadCommands

    pools = await opened_pools(stack, dsns, "sensorium-bulk-jobs")
    commands = SpreadCommands(pools) if len(pools) > 1 else PgCommands(pools[0])
    downlink = Downlink(settings, router, [PgReadyCommands(dsn) for dsn in dsns])
    spreader = Spreader(router, BulkJobs(pools[0]), commands)
    jobs = TaskAdapter("bulk jobs", spreader.run, spreader.statistics)
    presence = TaskAdapter("presence", partial(attend, dsns[0], DOWNLINK), dict)
    return CommandAdapter(downlink, jobs, presence)


class CommandAdapter:
    """The downlink of MQTT, and beside it what gives out bulk jobs, to devices of all protocols.

    `presence` says to replicas of the API that answers are heard.
    """

    def __init__(self, downlink: "Downlink", jobs: TaskAdapter, presence: TaskAdapter) -> None:
        self._downlink = downlink
        self._jobs = jobs
        self._presence = presence

    async def start(self) -> None:
        """Begin to connect to the broker, and keep trying while it is away."""
        await self._downlink.start()
        await self._jobs.start()
        await self._presence.start()

    def check(self) -> None:
        """Raise what ended one of them."""
        self._downlink.check()
        self._jobs.check()
        self._presence.check()

    def statistics(self) -> dict[str, Any]:
        """Of the downlink, with those of bulk jobs under "bulk"."""
        return {**self._downlink.statistics(), "bulk": self._jobs.statistics()}

    async def stop(self) -> None:
        """Give out and claim nothing more, finish what is under way."""
        await self._presence.stop()
        await self._jobs.stop()
        await self._downlink.stop()


async def peer_adapter(
    dsns: Sequence[str], place_key: str, router: Router, stack: AsyncExitStack
) -> TaskAdapter:
    """Devices compared with their peers, as hours settle."""
    from sensorium.serve.peers import PeerWatch
    from sensorium.storage.peer_means import PeerMeans

    pools = await opened_pools(stack, dsns, "sensorium-peers")
    watch = PeerWatch(router, PeerMeans(pools), _now_ms, place_key)
    return TaskAdapter("peers", watch.run, watch.statistics)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
