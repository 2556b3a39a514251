"""The projection into Kafka: readings, alarms and commands to topics. At least once, in order by device.

Everything a page holds is acknowledged by the brokers before the next page is read: what is in memory is a
page, and the database's transaction waits for nobody.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaTimeoutError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from sensorium.actors.errors import InvalidMessage
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Connection
from sensorium.storage.kafka_client import close_producer, delivery_timeout_s, kafka_errors, options
from sensorium.storage.kafka_messages import ALERT, COMMAND, KafkaMessage, happened, reading
from sensorium.storage.kafka_settings import NAME, KafkaSinkSettings
from sensorium.storage.known_devices import KnownDevices, named
from sensorium.storage.projection import LogEntry, ProjectionSettings

SETTINGS: Final = ProjectionSettings(NAME, page_entries=5_000)
"""A page is a few megabytes in messages, and a request to each broker."""

MAX_MESSAGE_BYTES: Final = 900_000
"""Below what a broker takes by default, headers included. A larger one becomes a dead letter."""
BATCH_BYTES: Final = 256 * 1024
REPLICAS: Final = 3
"""Of a topic that we create, where there are so many brokers."""
_HEADERS_BYTES: Final = 1_024
_KNOWN_KEYS: Final = 100_000


class KafkaSink:
    """A `Sink`."""

    def __init__(self, settings: KafkaSinkSettings) -> None:
        self._settings = settings
        self._devices = KnownDevices()
        self._sets = KnownSets()
        self._connection: Connection | None = None
        self._producer: AIOKafkaProducer | None = None
        self._partitions: dict[str, list[int]] = {}

    async def open(self, connection: Connection) -> None:
        """As the port says. Creates the topics that are missing."""
        settings = self._settings
        self._connection = connection
        with kafka_errors():
            client = options(settings.client)
            producer = AIOKafkaProducer(
                **client,
                acks="all",
                enable_idempotence=settings.idempotent,
                max_batch_size=BATCH_BYTES,
            )
            try:
                await producer.start()
                await _create_missing(client, settings)
                self._partitions = {
                    topic: sorted(await producer.partitions_for(topic)) for topic in settings.topics
                }
            except BaseException:
                await close_producer(producer)
                raise
        self._producer = producer

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        """As the port says: sends them, and returns when the brokers have them."""
        messages = await self._messages(entries)
        with kafka_errors():
            await self._send(messages)
        return False

    async def flush(self, transaction: Connection) -> None:
        """As the port says: what was taken has been acknowledged."""

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """As the port says. Readers see the same `ce_id` again."""

    async def close(self) -> None:
        """As the port says."""
        producer, self._producer, self._connection = self._producer, None, None
        if producer is not None:
            await close_producer(producer)

    async def _messages(self, entries: Sequence[LogEntry]) -> list[KafkaMessage]:
        assert self._connection is not None
        settings = self._settings
        devices = await self._devices.of(self._connection, entries)
        sets = await self._sets.find(
            self._connection, {e.metric_set for e in entries if e.metric_set is not None}
        )
        messages = []
        for entry in entries:
            if entry.metric_set is not None and settings.readings_topic is not None:
                metrics = sets[entry.metric_set]
                message = reading(
                    entry, named(devices, entry), metrics, settings.readings_topic, settings.source
                )
            elif (topic := self._topic_of(entry.kind)) is not None:
                message = happened(entry, named(devices, entry), topic, settings.source)
            else:
                continue
            if len(message.value) + _HEADERS_BYTES > MAX_MESSAGE_BYTES:
                raise InvalidMessage(f"a message of {len(message.value)} bytes is more than Kafka takes")
            messages.append(message)
        return messages

    def _topic_of(self, kind: str | None) -> str | None:
        if kind is not None and kind.startswith(ALERT):
            return self._settings.alerts_topic
        if kind is not None and kind.startswith(COMMAND):
            return self._settings.commands_topic
        return None

    async def _send(self, messages: Iterable[KafkaMessage]) -> None:
        producer = self._producer
        assert producer is not None
        open_batches: dict[tuple[str, int], Any] = {}
        finished: list[tuple[tuple[str, int], Any]] = []
        for topic, key, time_ms, value, headers in messages:
            partitions = self._partitions[topic]
            place = (topic, partitions[_hash(key) % len(partitions)])
            batch = open_batches.get(place)
            record = {"key": key.encode(), "value": value, "timestamp": max(time_ms, 0), "headers": headers}
            if batch is None or batch.append(**record) is None:
                if batch is not None:
                    finished.append((place, batch))
                batch = open_batches[place] = producer.create_batch()
                batch.append(**record)
        acks = []
        for (topic, partition), batch in (*finished, *open_batches.items()):
            batch.close()
            acks.append(await producer.send_batch(batch, topic, partition=partition))
        # All of them are waited for, so that none is under way when the first failure is told. An idempotent
        # producer would wait for brokers that are away for ever, and nobody would be told that they are.
        try:
            async with asyncio.timeout(delivery_timeout_s()):
                answers = await asyncio.gather(*acks, return_exceptions=True)
        except TimeoutError:
            raise KafkaTimeoutError(f"not acknowledged within {delivery_timeout_s():g} s") from None
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer


@lru_cache(_KNOWN_KEYS)
def _hash(key: str) -> int:
    """As Kafka's own clients partition, so that others' records of the device stand beside ours."""
    return int(murmur2(key.encode())) & 0x7FFFFFFF


async def _create_missing(client: dict[str, Any], settings: KafkaSinkSettings) -> None:
    admin = AIOKafkaAdminClient(**client)
    try:
        await admin.start()
        there = set(await admin.list_topics())
        missing = [topic for topic in settings.topics if topic not in there]
        if not missing:
            return
        brokers = len((await admin.describe_cluster())["brokers"])
        wanted = [NewTopic(t, settings.partitions, min(REPLICAS, max(1, brokers))) for t in missing]
        answer = await admin.create_topics(wanted)
        for topic, code, *why in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"the topic {topic} cannot be created: {why[0] if why else ''}")
    finally:
        await admin.close()
