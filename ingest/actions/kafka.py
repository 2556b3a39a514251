"""Telling by Kafka: a message to a topic, acknowledged by all in-sync replicas."""

from aiokafka import AIOKafkaProducer

from sensorium.actors.actions import KafkaAction
from sensorium.actors.errors import InvalidMessage
from sensorium.ingest.actions.carriers import Undeliverable, Undelivered, message
from sensorium.storage.delivery_rows import Claimed
from sensorium.storage.kafka_client import close_producer, kafka_errors, options
from sensorium.storage.kafka_settings import KafkaSettings
from sensorium.storage.projection import SinkUnavailable


class KafkaCarrier:
    """A `Carrier`. The device's id is the key, the delivery's id the header `idempotency-key`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """As the port says: the brokers have it."""
        assert isinstance(delivery.action, KafkaAction)
        try:
            with kafka_errors():
                if self._producer is None:
                    producer = AIOKafkaProducer(**options(self._settings), acks="all")
                    try:
                        await producer.start()
                    except BaseException:
                        await close_producer(producer)
                        raise
                    self._producer = producer
                await self._producer.send_and_wait(
                    delivery.action.topic,
                    message(delivery),
                    key=delivery.device_id.encode() or None,
                    headers=[("idempotency-key", delivery.delivery_id.encode())],
                )
        except SinkUnavailable as error:
            raise Undelivered(str(error)) from None
        except InvalidMessage as error:
            raise Undeliverable(str(error)) from None

    async def close(self) -> None:
        """As the port says."""
        if self._producer is not None:
            await close_producer(self._producer)
