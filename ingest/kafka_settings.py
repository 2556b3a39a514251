"""What is read from Kafka and as whom, as values: whoever configures it needs no client."""

import msgspec

from sensorium.actors.profile import RateLimits
from sensorium.ingest.decode import Bounds
from sensorium.storage.kafka_settings import KafkaSettings


class KafkaIngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is read, and as whom.

    Attributes:
        topic: of telemetry; None: none is read.
        commands_topic: of what others ask devices to do; None: none is read.
        group: consumers of one group share the topics' partitions.
        batch: records that are on their way to a commit at once.
        drain_timeout_s: how long `stop` waits for them.
        limit: on the messages of each device, by the times of their records.
    """

    client: KafkaSettings
    topic: str | None = "sensor-readings-in"
    commands_topic: str | None = None
    group: str = "sensorium"
    batch: int = 5_000
    bounds: Bounds = Bounds()
    drain_timeout_s: float = 10.0
    limit: RateLimits | None = None

    @property
    def topics(self) -> tuple[str, ...]:
        """Those that are read."""
        return tuple(topic for topic in (self.topic, self.commands_topic) if topic is not None)
