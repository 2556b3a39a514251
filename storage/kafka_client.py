"""What every client of Kafka has in common: its options, what failures mean, how it is closed."""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError, RecordTooLargeError

from sensorium.actors.errors import InvalidMessage
from sensorium.storage.kafka_settings import KafkaSettings
from sensorium.storage.projection import SinkUnavailable

REQUEST_TIMEOUT_MS = 15_000
"""Of one request, and of a batch with all of its retries."""
CLOSE_TIMEOUT_S = 5.0
RETRY_BACKOFF_MS = 500

# It repeats itself at every try, for as long as a broker is away; we are told by the error that it raises.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def delivery_timeout_s() -> float:
    """How long a page may wait for its acknowledgement: two requests."""
    return 2 * REQUEST_TIMEOUT_MS / 1000


def options(settings: KafkaSettings) -> dict[str, Any]:
    """What each of aiokafka's clients takes.

    Raises:
        OSError: a certificate file cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.brokers),
        "client_id": settings.client_id,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
    }
    if settings.tls:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        options["ssl_context"] = context
    if settings.username is not None:
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password,
        }
    protocol = ("SASL_" if settings.username is not None else "") + ("SSL" if settings.tls else "PLAINTEXT")
    return options | {"security_protocol": protocol}


@contextmanager
def kafka_errors() -> Iterator[None]:
    """Turn what aiokafka raises into our errors.

    Raises:
        InvalidMessage: the broker takes no message of this size.
        SinkUnavailable: everything that another attempt, or a person at the broker, may mend.
    """
    try:
        yield
    except (MessageSizeTooLargeError, RecordListTooLargeError, RecordTooLargeError) as error:
        raise InvalidMessage(f"larger than the broker takes: {error}") from error
    except (KafkaError, OSError) as error:
        raise SinkUnavailable(f"Kafka: {error or type(error).__name__}") from error


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Close its connections; what it has not delivered by then is given up."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
    except TimeoutError:
        # It still waits for batches that no broker takes. Left alone, its sender would connect again and
        # deliver them behind what a later producer has sent; there is no public way to end it.
        await producer._sender.close()
        await producer.client.close()
