"""What feeds other systems from the log and takes readings from them, as services of the coordinator.

The clients of those systems are imported where they are configured, and in the process that uses them.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from sensorium.actors.coordinator import ServiceSpec
from sensorium.actors.router import Router
from sensorium.cluster.adapters import adapter_service, opened_pools
from sensorium.cluster.config import Config
from sensorium.ingest.adapter import Adapter
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.storage import influx_settings, kafka_settings
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
        services.append(adapter_service("kafka-0", "kafka", namespace, kafka_adapter, settings, tuple(dsns)))
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


async def kafka_adapter(
    settings: KafkaIngestSettings, dsns: Sequence[str], router: Router, stack: AsyncExitStack
) -> Adapter:
    """The way in from Kafka."""
    from sensorium.ingest.kafka import KafkaIngestor

    if settings.commands_topic is None:
        return KafkaIngestor(settings, router)
    commands = SpreadCommands(await opened_pools(stack, dsns, "sensorium kafka"))

    async def known(command_ids: list[str]) -> list[str]:
        return [found.command_id for found in await commands.find(command_ids)]

    return KafkaIngestor(settings, router, known)
