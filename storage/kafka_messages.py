"""What stands in Kafka for an entry of the log: a CloudEvent in binary mode. Sends nothing, reads no clock.

Source: CloudEvents 1.0.2, and its Kafka protocol binding, section 3.2. A reading's value is what a device
would have sent (see `ingest.decode`), so that one platform's readings are another's telemetry.
"""

from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import MetricSet
from sensorium.storage.encode import decode_values
from sensorium.storage.known_devices import KnownDevice
from sensorium.storage.projection import LogEntry

READING: Final = "sensorium.reading"
ALERT: Final = "alarm_"
COMMAND: Final = "command_"
"""What the kinds of events begin with that are about alarms and commands."""

TIMESTAMP: Final = "timestamp"
READING_KEY: Final = "ce_readingkey"
"""The reading's identity at its device: whoever stores it by that stores it once."""

Header = tuple[str, bytes]
_COMMON: Final[tuple[Header, ...]] = (("ce_specversion", b"1.0"), ("content-type", b"application/json"))


class KafkaMessage(NamedTuple):
    """A record to send. The key is the device id: one device's records stay in order."""

    topic: str
    key: str
    time_ms: int
    value: bytes
    headers: list[Header]


def reading(
    entry: LogEntry, device: KnownDevice, metrics: MetricSet, topic: str, source: str
) -> KafkaMessage:
    """The message of a reading.

    Raises:
        InvalidMessage: it has a metric called `timestamp`, or no values for its metrics.
    """
    if TIMESTAMP in metrics.names:
        raise InvalidMessage(f"a metric called {TIMESTAMP} cannot be told from the reading's time")
    try:
        values = decode_values(metrics, entry.numbers, entry.texts)
        body = {name: v for name, v in zip(metrics.names, values, strict=True) if v is not None}
    except (StopIteration, ValueError) as error:
        raise InvalidMessage(f"its values do not fit {metrics!r}") from error
    value = msgspec.json.encode({TIMESTAMP: entry.time_ms, **body})
    headers = _headers(entry, device, READING, source)
    headers.append((READING_KEY, str(entry.key).encode()))
    return KafkaMessage(topic, device.device_id, entry.time_ms, value, headers)


def happened(entry: LogEntry, device: KnownDevice, topic: str, source: str) -> KafkaMessage:
    """The message of an event: what it says, as it stands in the log."""
    assert entry.kind is not None
    value = msgspec.json.encode(entry.body)
    headers = _headers(entry, device, f"sensorium.{entry.kind.replace('_', '.', 1)}", source)
    return KafkaMessage(topic, device.device_id, entry.time_ms, value, headers)


def _headers(entry: LogEntry, device: KnownDevice, kind: str, source: str) -> list[Header]:
    return [
        *_COMMON,
        ("ce_id", b"%d-%d" % (entry.shard, entry.offset)),
        ("ce_source", source.encode()),
        ("ce_type", kind.encode()),
        ("ce_subject", device.device_id.encode()),
        ("ce_time", _rfc3339(entry.time_ms)),
        ("ce_devicetype", device.device_type.encode()),
    ]


def _rfc3339(time_ms: int) -> bytes:
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z".encode()
