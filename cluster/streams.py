"""What feeds other systems from the log and takes readings from them, as services of the coordinator.

The clients of those systems are imported where they are configured, and in the process that uses them.
"""

import os
from collections.abc import Sequence
from typing import Any

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.runtime import make_router
from sensorium.cluster.config import Config
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.storage import close_pool, influx_settings, kafka_settings, open_pool
from sensorium.storage.database import Pool
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.kafka_settings import KafkaSinkSettings
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.spread_reads import SpreadCommands


def stream_services(config: Config, dsns: Sequence[str], namespace: str) -> list[ServiceSpec]:
    """Those that are configured; a projection for each database of the log."""
    services = []
    streaming = config.streaming
    for position, dsn in enumerate(dsns):
        of_it = f"-{position}" if position else ""
        if (influx := config.timeseries.settings()) is not None:
            given = (dsn, influx, position)
            services.append(ServiceSpec(f"projection-influxdb{of_it}", influx_projection, given))
        if streaming.feeds_kafka:
            sink = (dsn, streaming.sink(), position)
            services.append(ServiceSpec(f"projection-kafka{of_it}", kafka_projection, sink))
    if (settings := streaming.ingest(config.bounds, config.limits("kafka"))) is not None:
        given_in = ("kafka-0", settings, namespace, tuple(dsns))
        services.append(ServiceSpec("kafka-0", KafkaService, given_in))
    return services


def projections(config: Config) -> tuple[str, ...]:
    """The names of the projections among them: the log keeps what they have yet to read."""
    influxdb = (influx_settings.NAME,) if config.timeseries.url is not None else ()
    kafka = (kafka_settings.NAME,) if config.streaming.feeds_kafka else ()
    return influxdb + kafka


def influx_projection(dsn: str, settings: InfluxSettings, position: int) -> ProjectionRunner:
    """The projection into InfluxDB, in a process of its own."""
    from sensorium.storage.influx_sink import SETTINGS, InfluxSink

    return ProjectionRunner(dsn, SETTINGS, InfluxSink(settings), position=position)


def kafka_projection(dsn: str, settings: KafkaSinkSettings, position: int) -> ProjectionRunner:
    """The projection into Kafka, in a process of its own."""
    from sensorium.storage.kafka_sink import SETTINGS, KafkaSink

    return ProjectionRunner(dsn, SETTINGS, KafkaSink(settings), position=position)


class KafkaService:
    """The way in from Kafka, in a process of its own."""

    def __init__(self, name: str, settings: KafkaIngestSettings, namespace: str, dsns: Sequence[str]) -> None:
        self._name = name
        self._settings = settings
        self._dsns = dsns
        self._pools: list[Pool] = []
        self._router = make_router(f"{name}.{os.getpid()}", namespace)

    async def start(self) -> None:
        """Begin to connect to the brokers, and keep trying while they are away."""
        from sensorium.ingest.kafka import KafkaIngestor

        await self._router.start()
        if self._settings.commands_topic is not None:
            self._pools = [await open_pool(dsn, 1, "sensorium kafka") for dsn in self._dsns]
        self._ingestor = KafkaIngestor(self._settings, self._router, self._known)
        await self._ingestor.start()

    async def _known(self, command_ids: list[str]) -> list[str]:
        return [found.command_id for found in await SpreadCommands(self._pools).find(command_ids)]

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        self._ingestor.check()

    def statistics(self) -> dict[str, Any]:
        """Of the ingestor, with the router's under "router"."""
        return {
            "name": self._name,
            "protocol": "kafka",
            **self._ingestor.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Stop reading, wait for what was read, store its offsets."""
        await self._ingestor.stop()
        await self._router.close()
        for pool in self._pools:
            await close_pool(pool)
