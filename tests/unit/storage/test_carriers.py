"""Carriers of actions against real servers: a Kafka broker, and a mail server that wants a login."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword
from storage_rows import alarm
from tansu import Tansu
from tests.integration.certificates import issue

from sensorium.actors.actions import EmailAction, KafkaAction
from sensorium.ingest.actions.carriers import Undelivered
from sensorium.ingest.actions.kafka import KafkaCarrier
from sensorium.ingest.actions.mail import EmailCarrier, SmtpSettings
from sensorium.storage.delivery_rows import Claimed
from sensorium.storage.kafka_settings import KafkaSettings

DEADLINE_S = 30.0
TOPIC = "alarms"


def claimed(action: Any, delivery_id: str = "d1", device_id: str = "pump-1") -> Claimed:
    content = {
        "id": delivery_id,
        "transition": "raised",
        "alarm": msgspec.to_builtins(alarm("a1", device_id)),
    }
    return Claimed(delivery_id, action.queue, "r1", device_id, "raised", 1, 1, 1, action, content)


@pytest.fixture(scope="module")
def tansu() -> Iterator[Tansu]:
    with Tansu() as broker:
        yield broker


async def records(broker: Tansu, count: int) -> list[ConsumerRecord]:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, auto_offset_reset="earliest")
    await consumer.start()
    found: list[ConsumerRecord] = []
    try:
        consumer.assign([TopicPartition(TOPIC, n) for n in range(3)])
        await consumer.seek_to_beginning()
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < count:
                for part in (await consumer.getmany(timeout_ms=50)).values():
                    found += part
    finally:
        await consumer.stop()
    return found


async def with_topic(broker: Tansu) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, num_partitions=3, replication_factor=1)])
    finally:
        await admin.close()


async def test_a_message_is_at_the_broker_with_the_device_as_key(tansu: Tansu) -> None:
    await with_topic(tansu)
    carrier = KafkaCarrier(KafkaSettings(brokers=(tansu.address,)))
    try:
        for n in range(4):
            await carrier.send(claimed(KafkaAction(topic=TOPIC), f"d{n}", f"pump-{n % 2}"), 1)
        # The same again, as after a crash before it was noted: told by its id.
        await carrier.send(claimed(KafkaAction(topic=TOPIC), "d3", "pump-1"), 2)
        found = await records(tansu, 5)
    finally:
        await carrier.close()
    assert sorted(dict(r.headers)["idempotency-key"] for r in found) == [b"d0", b"d1", b"d2", b"d3", b"d3"]
    assert {r.key for r in found} == {b"pump-0", b"pump-1"}
    for key in (b"pump-0", b"pump-1"):
        assert len({r.partition for r in found if r.key == key}) == 1
    assert msgspec.json.decode(found[0].value)["alarm"]["alarm_id"] == "a1"


async def test_a_broker_that_is_away_is_tried_again_and_found() -> None:
    broker = Tansu()
    settings = KafkaSettings(brokers=(broker.address,))
    carrier = KafkaCarrier(settings)
    try:
        with pytest.raises(Undelivered):
            await carrier.send(claimed(KafkaAction(topic=TOPIC)), 1)
        with broker:
            await with_topic(broker)
            await carrier.send(claimed(KafkaAction(topic=TOPIC)), 2)
            assert len(await records(broker, 1)) == 1
    finally:
        await carrier.close()


class MailServer(NamedTuple):
    port: int
    ca_file: str
    envelopes: list[Envelope]


class _Keeping:
    def __init__(self, envelopes: list[Envelope]) -> None:
        self._envelopes = envelopes

    async def handle_DATA(  # noqa: N802 - aiosmtpd looks for this name
        self, server: Any, session: Any, envelope: Envelope
    ) -> str:
        self._envelopes.append(envelope)
        return "250 kept"


def _knows_ada(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (b"ada", b"correct horse")
    return AuthResult(success=known, handled=known)


@contextmanager
def mail_server(directory: Path) -> Iterator[MailServer]:
    """Takes no mail before STARTTLS and a login."""
    authority = issue("authority")
    ca_file, _ = authority.write(directory, "ca")
    cert, key = issue("server", authority).write(directory, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    envelopes: list[Envelope] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(
        _Keeping(envelopes),
        hostname="127.0.0.1",
        port=port,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=_knows_ada,
    )
    controller.start()
    try:
        yield MailServer(port, str(ca_file), envelopes)
    finally:
        controller.stop()


async def mailed(server: MailServer, **changes: Any) -> None:
    given = {
        "host": "127.0.0.1",
        "port": server.port,
        "security": "starttls",
        "username": "ada",
        "password": "correct horse",
        "ca_file": server.ca_file,
        "sender": "alarms@plant.example",
    }
    carrier = EmailCarrier(SmtpSettings(**given | changes))
    try:
        await carrier.send(claimed(EmailAction(to=("grace@example.com", "alan@example.com"))), 1)
    finally:
        await carrier.close()


async def test_mail_goes_by_starttls_with_a_login(tmp_path: Path) -> None:
    with mail_server(tmp_path) as server:
        await mailed(server)
        [envelope] = server.envelopes
    assert envelope.rcpt_tos == ["grace@example.com", "alan@example.com"]
    assert envelope.mail_from == "alarms@plant.example"
    assert isinstance(envelope.content, bytes)
    mail = message_from_bytes(envelope.content)
    assert mail["Message-ID"] == "<d1@plant.example>"
    assert "pump-1" in mail["Subject"]


async def test_nothing_is_said_to_who_cannot_be_trusted_or_does_not_know_us(tmp_path: Path) -> None:
    with mail_server(tmp_path) as server:
        with pytest.raises(Undelivered) as unknown:
            await mailed(server, password="hunter2")
        assert "hunter2" not in str(unknown.value)
        with pytest.raises(Undelivered, match="530"):
            await mailed(server, security="none", username=None, password=None)
        with pytest.raises(Undelivered, match=r"(?i)certificate"):
            await mailed(server, ca_file=None)
        assert server.envelopes == []
