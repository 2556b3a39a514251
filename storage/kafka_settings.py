"""How Kafka is reached and what goes where, as values: whoever configures it needs no client."""

from typing import Final

import msgspec

NAME: Final = "kafka"
"""Of the projection."""


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the brokers are and who we are to them.

    Attributes:
        brokers: `host:port` each; one that answers is enough.
        tls: whether to encrypt. `ca_file` says whom to trust then (None: the system's), `cert_file` and
            `key_file` who we are (PEM).
        username, password: by SASL with `sasl_mechanism`, when given.
    """

    brokers: tuple[str, ...]
    client_id: str = "sensorium"
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    username: str | None = None
    password: str | None = None
    sasl_mechanism: str = "PLAIN"

    def __repr__(self) -> str:
        return f"KafkaSettings({', '.join(self.brokers)})"


class KafkaSinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What goes where.

    Attributes:
        readings_topic, alerts_topic, commands_topic: None leaves them out.
        source: the CloudEvents' `source`, unique among platforms.
        partitions: of a topic that has to be created.
        idempotent: whether brokers recognise what is sent again after a lost answer. Not all that speak
            Kafka's protocol can.
    """

    client: KafkaSettings
    readings_topic: str | None = "sensor-readings"
    alerts_topic: str | None = "iot-alerts"
    commands_topic: str | None = "device-commands"
    source: str = "/sensorium"
    partitions: int = 6
    idempotent: bool = True

    @property
    def topics(self) -> list[str]:
        """Those that are written to."""
        return [
            topic
            for topic in (self.readings_topic, self.alerts_topic, self.commands_topic)
            if topic is not None
        ]
