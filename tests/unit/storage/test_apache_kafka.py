"""The projection into Kafka and the way in from it, against Apache Kafka: what Tansu cannot do, too."""

from collections.abc import AsyncIterator, Iterator

import apache_kafka
import pytest
from aiokafka import AIOKafkaProducer
from apache_kafka import ApacheKafka
from msgspec.structs import replace
from storage_rows import NOON_MS, reading, registration
from test_kafka import reader, runner, until
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import SendCommand
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Commit
from sensorium.ingest.kafka import KafkaIngestor
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.kafka_client import options
from sensorium.storage.kafka_settings import KafkaSettings, KafkaSinkSettings
from sensorium.storage.kafka_sink import KafkaSink

_missing = apache_kafka.missing()
pytestmark = [
    pytest.mark.database,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(_missing is not None, reason=_missing or ""),
    # aiokafka leaves a connection unclosed when it is cancelled while it opens it, or its broker is killed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


def secure(broker: ApacheKafka, password: str = apache_kafka.PASSWORD) -> KafkaSettings:
    return KafkaSettings(
        brokers=(broker.secure_address,),
        tls=True,
        ca_file=str(broker.ca_file),
        username=apache_kafka.USER,
        password=password,
        sasl_mechanism="SCRAM-SHA-512",
    )


async def test_an_idempotent_producer_goes_on_after_the_broker_was_killed(
    kafka: ApacheKafka, dsn: str, log: PgLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.kafka_client.REQUEST_TIMEOUT_MS", 3_000)
    how = KafkaSinkSettings(
        client=KafkaSettings(brokers=(kafka.address,)), readings_topic="killed", partitions=3
    )
    assert how.idempotent
    running = runner(dsn, KafkaSink(how))
    await log.commit(Commit(registrations=[registration("d")], readings=[reading("d", 1)]))
    await running.start()
    async with reader(kafka, "killed") as read:
        await read(1)
    kafka.stop()
    await log.commit(Commit(readings=[reading("d", n, key=n) for n in range(2, 200)]))
    await until(lambda: running.statistics()["state"] == "failing")
    kafka.start()
    async with reader(kafka, "killed") as read:
        found = []
        while not found or not dict(found[-1].headers)["ce_id"].endswith(b"-199"):
            found += await read(1)
    await running.stop()
    # A producer that was given up may have been heard all the same.
    places = dict.fromkeys(int(dict(record.headers)["ce_id"].split(b"-")[1]) for record in found)
    assert list(places) == list(range(1, 200))
    assert {dict(record.headers)["ce_id"].split(b"-")[0] for record in found} == {b"%d" % shard_of("d")}


async def test_readings_and_commands_come_in_over_tls_with_a_password(kafka: ApacheKafka) -> None:
    client = secure(kafka)
    how = KafkaIngestSettings(client=client, topic="readings-in", commands_topic="commands-in", group="in")
    async with AIOKafkaProducer(**options(client), enable_idempotence=True, acks="all") as producer:
        await producer.send_and_wait("readings-in", b'{"t": 2}', b"d", timestamp_ms=NOON_MS)
        await producer.send_and_wait("commands-in", b'{"command": "open"}', b"d", timestamp_ms=NOON_MS)

    async def known(ids: list[str]) -> list[str]:
        return []

    routers = [RecordingRouter(commits=False), RecordingRouter(commits=True)]
    for router in routers:
        ingestor = KafkaIngestor(replace(how, drain_timeout_s=0.1), router, known, lambda: NOON_MS + 5_000)
        await ingestor.start()
        await until(lambda router=router: len(router.readings) == len(router.messages) == 1)
        if router.commits:
            await until(lambda ingestor=ingestor: ingestor.statistics()["acked"] == 2)
        await ingestor.stop()
    # What was not committed came again, as the same reading and the same command.
    assert routers[0].readings == routers[1].readings
    assert routers[0].messages == routers[1].messages
    [asked] = routers[0].messages
    assert isinstance(asked, SendCommand)
    third = RecordingRouter(commits=True)
    ingestor = KafkaIngestor(how, third, known)
    await ingestor.start()
    await until(lambda: ingestor.statistics()["connected"])
    await ingestor.stop()
    assert (third.readings, third.messages) == ([], [])


async def test_a_wrong_password_is_told_and_tried_again(kafka: ApacheKafka) -> None:
    how = KafkaIngestSettings(client=secure(kafka, "wrong"), topic="readings-in", group="thief")
    ingestor = KafkaIngestor(how, RecordingRouter())
    await ingestor.start()
    await until(lambda: ingestor.statistics()["trouble"] != "")
    assert not ingestor.statistics()["connected"]
    ingestor.check()
    await ingestor.stop()
