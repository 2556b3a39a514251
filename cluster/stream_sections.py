"""The sections of the configuration for what is fed from the log, and what feeds it: InfluxDB, Kafka."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from sensorium.actors.profile import RateLimits
from sensorium.cluster.sections import Days, File, HttpUrl, Id, Seconds, Section
from sensorium.ingest.decode import Bounds
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.kafka_settings import KafkaSettings, KafkaSinkSettings


def _broker(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 1 <= int(port) <= 65_535) or "/" in address:
        raise ValueError("is HOST:PORT, such as kafka-1.internal:9092")
    return address


Broker = Annotated[str, AfterValidator(_broker)]
Topic = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9_.-]+$")]


class Timeseries(Section):
    """An InfluxDB v2 that is fed from the log."""

    url: HttpUrl | None = None
    org: Annotated[str, Field(min_length=1, max_length=128)] = "sensorium"
    bucket: Annotated[str, Field(min_length=1, max_length=128)] = "sensorium"
    token: SecretStr | None = None
    """What we may do there: read, write, create the bucket where it is missing. Or INFLUXDB_TOKEN."""
    token_file: File | None = None
    """The token, instead: read at each connection."""
    create_bucket: bool = True
    """Whether to create the bucket where it is missing; false for what speaks only line protocol."""
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Of a bucket that we create; without, it keeps everything."""
    hot_days: Days = 7
    """For so many days of their commit the log keeps readings; older history is read from InfluxDB."""
    gzip: bool = True
    timeout_s: Seconds = 10.0
    """Of one request."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file say the same; give one")
        return self

    def settings(self) -> InfluxSettings | None:
        """As the projection takes it; None when there is none."""
        if self.url is None:
            return None
        return InfluxSettings(
            url=self.url,
            org=self.org,
            bucket=self.bucket,
            token=None if self.token is None else self.token.get_secret_value(),
            token_file=None if self.token_file is None else str(self.token_file.absolute()),
            retention_days=self.retention_days,
            create_bucket=self.create_bucket,
            gzip=self.gzip,
            timeout_s=self.timeout_s,
        )


class Streaming(Section):
    """Kafka, which is fed from the log and feeds it."""

    brokers: Annotated[list[Broker], Field(min_length=1, max_length=100)] | None = None
    """HOST:PORT each. Without any, there is no Kafka."""
    readings_topic: Topic | None = "sensor-readings"
    """Every reading, once it is committed; `null` leaves it out."""
    alerts_topic: Topic | None = "iot-alerts"
    """Every alarm, when it is raised, cleared, or anything else becomes of it; `null` leaves it out."""
    commands_topic: Topic | None = "device-commands"
    """Every command, when it is queued, sent, delivered or ended; `null` leaves it out."""
    readings_in_topic: Topic | None = "sensor-readings-in"
    """Telemetry that others write for us: key device id, value as over MQTT. `null`: none is read."""
    commands_in_topic: Topic | None = "device-commands-in"
    """Commands that others give our devices: key device id, value as over HTTP, or another platform's
    `commands_topic`. `null`: none are read."""
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Of a topic that we have to create."""
    source: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")] = "/sensorium"
    """The CloudEvents' `source`, a URI reference. Two platforms on one topic need two."""
    client_id: Id = "sensorium"
    group: Id = "sensorium"
    """The consumer group that reads. Two platforms need two, unless they shall share the work."""
    idempotent: bool = True
    """Whether brokers recognise what is sent again after a lost answer; false for those that cannot."""
    tls: bool = False
    ca_file: File | None = None
    cert_file: File | None = None
    key_file: File | None = None
    username: Annotated[str, Field(min_length=1)] | None = None
    password: SecretStr | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        files = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        given = [name for name, value in files.items() if value is not None]
        if given and not self.tls:
            raise ValueError(f"{given[0]} needs tls: true")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        written = (self.readings_topic, self.alerts_topic, self.commands_topic)
        named = (*written, self.readings_in_topic, self.commands_in_topic)
        topics = [topic for topic in named if topic is not None]
        if len(set(topics)) < len(topics):
            raise ValueError("each topic has one purpose: two of them have the same name")
        return self

    @property
    def feeds_kafka(self) -> bool:
        """Whether there is anything to write."""
        return self.brokers is not None and bool(self.sink().topics)

    def client(self) -> KafkaSettings:
        """Where the brokers are, for whoever speaks to them."""
        ca_file, cert_file, key_file = (
            None if file is None else str(file.absolute())
            for file in (self.ca_file, self.cert_file, self.key_file)
        )
        return KafkaSettings(
            brokers=tuple(self.brokers or ()),
            client_id=self.client_id,
            tls=self.tls,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            username=self.username,
            password=None if self.password is None else self.password.get_secret_value(),
            sasl_mechanism=self.sasl_mechanism,
        )

    def sink(self) -> KafkaSinkSettings:
        """As the projection takes it."""
        return KafkaSinkSettings(
            client=self.client(),
            readings_topic=self.readings_topic,
            alerts_topic=self.alerts_topic,
            commands_topic=self.commands_topic,
            source=self.source,
            partitions=self.partitions,
            idempotent=self.idempotent,
        )

    def ingest(self, bounds: Bounds, limit: RateLimits | None = None) -> KafkaIngestSettings | None:
        """As the way in takes it; None when nothing is read."""
        settings = KafkaIngestSettings(
            client=self.client(),
            topic=self.readings_in_topic,
            commands_topic=self.commands_in_topic,
            group=self.group,
            bounds=bounds,
            limit=limit,
        )
        return settings if self.brokers is not None and settings.topics else None
