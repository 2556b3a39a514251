"""What is read from Kafka and as whom, as values: whoever configures it needs no client."""

import msgspec

from sensorium.ingest.decode import Bounds
from sensorium.storage.kafka_settings import KafkaSettings


class KafkaIngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is read, and as whom.

    Attributes:
        group: consumers of one group share the topic's partitions.
        batch: records that are on their way to a commit at once.
        drain_timeout_s: how long `stop` waits for them.
    """

    client: KafkaSettings
    topic: str = "sensor-readings-in"
    group: str = "sensorium"
    batch: int = 5_000
    bounds: Bounds = Bounds()
    drain_timeout_s: float = 10.0
