"""The projection into Kafka and the way in from it, against a real broker (Tansu)."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from apache_kafka import ApacheKafka
from msgspec.structs import replace
from storage_rows import NOON_MS, alarm, event, reading, registration
from tansu import Tansu
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import ACCEPTED, Refusal, SendCommand
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Command, CommandState, Commit
from sensorium.ingest.command_requests import keyed_id
from sensorium.ingest.kafka import KafkaIngestor
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.dead_letters import DeadLetters
from sensorium.storage.kafka_settings import KafkaSettings, KafkaSinkSettings
from sensorium.storage.kafka_sink import MAX_MESSAGE_BYTES, KafkaSink
from sensorium.storage.projection import ProjectionSettings
from sensorium.storage.projection_runner import ProjectionRunner

pytestmark = [pytest.mark.database, pytest.mark.slow]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def tansu() -> Iterator[Tansu]:
    with Tansu() as broker:
        yield broker


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


def settings(broker: Tansu, prefix: str) -> KafkaSinkSettings:
    # Tansu answers UnknownError to idempotent producers.
    return KafkaSinkSettings(
        client=KafkaSettings(brokers=(broker.address,)),
        readings_topic=f"{prefix}-readings",
        alerts_topic=f"{prefix}-alerts",
        commands_topic=f"{prefix}-commands",
        partitions=3,
        idempotent=False,
    )


def runner(dsn: str, sink: KafkaSink, page: int = 50) -> ProjectionRunner:
    return ProjectionRunner(dsn, ProjectionSettings("kafka", page, poll_s=0.02), sink)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def reader(broker: Tansu | ApacheKafka, topic: str) -> AsyncIterator[Callable[[int], Any]]:
    """`await read(n)`: the next records of the topic, at least n of them."""
    # Of a topic that is new, or whose broker has come back, it asks in vain at first: for 40 s by default.
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.address, auto_offset_reset="earliest", request_timeout_ms=2_000
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, n) for n in range(3)])

        async def read(at_least: int) -> list[ConsumerRecord]:
            found: list[ConsumerRecord] = []
            async with asyncio.timeout(DEADLINE_S):
                while len(found) < at_least:
                    for records in (await consumer.getmany(timeout_ms=50)).values():
                        found += records
            return found

        yield read
    finally:
        await consumer.stop()


async def test_readings_and_alarms_are_cloud_events_by_device(tansu: Tansu, dsn: str, log: PgLog) -> None:
    raised = msgspec.json.encode(alarm("a1", "d"))
    await log.commit(
        Commit(
            registrations=[registration("d"), registration("e", "fan")],
            readings=[
                reading("d", 1, key=-7, temperature=20.5, door=True, mode="eco"),
                reading("e", 1, NOON_MS + 5, key=8),
            ],
            events=[
                event("d", 2),
                event("d", 3, "alarm_raised", raised),
                event("d", 4, "command_queued", b'{"command_id": "c1"}'),
            ],
        )
    )
    sink = KafkaSink(settings(tansu, "events"))
    running = runner(dsn, sink)
    await running.start()
    async with reader(tansu, "events-readings") as read:
        by_key = {record.key: record for record in await read(2)}
    async with reader(tansu, "events-alerts") as read:
        [alert] = await read(1)
    async with reader(tansu, "events-commands") as read:
        [command] = await read(1)
    await running.stop()
    record = by_key[b"d"]
    assert msgspec.json.decode(record.value) == {
        "timestamp": NOON_MS, "temperature": 20.5, "door": True, "mode": "eco",
    }  # fmt: skip
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "content-type": b"application/json",
        "ce_id": f"{shard_of('d')}-1".encode(),
        "ce_source": b"/sensorium",
        "ce_type": b"sensorium.reading",
        "ce_subject": b"d",
        "ce_time": b"2024-01-01T12:00:00.000Z",
        "ce_devicetype": b"pump",
        "ce_readingkey": b"-7",
    }
    assert record.timestamp == NOON_MS
    assert dict(by_key[b"e"].headers)["ce_time"] == b"2024-01-01T12:00:00.005Z"
    assert (alert.key, dict(alert.headers)["ce_type"]) == (b"d", b"sensorium.alarm.raised")
    assert msgspec.json.decode(alert.value) == msgspec.json.decode(raised)
    assert (command.key, command.value) == (b"d", b'{"command_id":"c1"}')
    assert dict(command.headers)["ce_type"] == b"sensorium.command.queued"
    assert running.statistics()["lag_entries"] == 0


# aiokafka leaves a connection unclosed when it is cancelled while it opens it, as here it may be.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_everything_arrives_in_order_although_everything_dies(
    tansu: Tansu, dsn: str, log: PgLog
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    devices = [f"device-{n}" for n in range(5)]
    assert len({shard_of(d) for d in devices}) == 5
    heads = dict.fromkeys(devices, 0)
    how = settings(tansu, "deaths")
    running = runner(dsn, KafkaSink(how), page=20)
    await running.start()
    await log.commit(Commit(registrations=[registration(d) for d in devices]))
    for _ in range(12):
        rows = []
        for _ in range(rng.randrange(1, 60)):
            device = rng.choice(devices)
            heads[device] += 1
            rows.append(reading(device, heads[device], key=heads[device]))
        await log.commit(Commit(readings=rows))
        if rng.random() < 0.5:
            # As if its process had died: nothing is flushed, at whatever point it is.
            await asyncio.sleep(rng.uniform(0, 0.1))
            assert running._task is not None
            running._task.cancel()
            await asyncio.gather(running._task, return_exceptions=True)
            running = runner(dsn, KafkaSink(how), page=rng.choice([1, 7, 500]))
            await running.start()
    places: dict[str, list[int]] = {device: [] for device in devices}
    async with reader(tansu, "deaths-readings") as read:
        async with asyncio.timeout(DEADLINE_S):
            while any(max(places[d], default=0) < heads[d] for d in devices):
                for record in await read(1):
                    headers = dict(record.headers)
                    places[record.key.decode()].append(int(headers["ce_id"].split(b"-")[1]))
    await running.stop()
    for device, seen in places.items():
        first_times = list(dict.fromkeys(seen))
        assert first_times == list(range(1, heads[device] + 1)), device


async def test_an_outage_of_the_broker_is_survived(
    dsn: str, log: PgLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.kafka_client.REQUEST_TIMEOUT_MS", 1_000)
    with Tansu() as broker:
        how = settings(broker, "outage")
        running = runner(dsn, KafkaSink(how))
        await log.commit(Commit(registrations=[registration("d")], readings=[reading("d", 1)]))
        await running.start()
        async with reader(broker, "outage-readings") as read:
            await read(1)
        broker.stop()
        await log.commit(Commit(readings=[reading("d", 2)]))
        await log.save([], {shard_of("d"): 2})
        await until(lambda: running.statistics()["state"] == "failing")
        await until(lambda: running.statistics()["lag_entries"] == 1)
        assert running.statistics()["lag_s"] > 0
        broker.start()
        async with reader(broker, "outage-readings") as read:
            found = await read(1)
        await until(lambda: running.statistics()["state"] == "running")
        await running.stop()
    assert dict(found[-1].headers)["ce_id"].endswith(b"-2")


async def test_what_kafka_cannot_take_is_a_dead_letter(
    tansu: Tansu, dsn: str, pool: Pool, log: PgLog
) -> None:
    await log.commit(
        Commit(
            registrations=[registration("d")],
            readings=[
                reading("d", 1),
                reading("d", 2, key=2, log="x" * MAX_MESSAGE_BYTES),
                reading("d", 3, key=3, timestamp=4.0),
                reading("unregistered", 1),
                reading("d", 4, key=4),
            ],
        )
    )
    running = runner(dsn, KafkaSink(settings(tansu, "poison")))
    await running.start()
    await until(lambda: running.statistics()["poisoned"] == 3)
    await running.stop()
    page = await DeadLetters(pool).page(reason="projection:kafka")
    assert sorted(d.address for d in page.items) == sorted(
        [
            *(f"shard {shard_of('d')} offset {n}" for n in (2, 3)),
            f"shard {shard_of('unregistered')} offset 1",
        ]
    )
    async with reader(tansu, "poison-readings") as read:
        found = {dict(r.headers)["ce_id"].split(b"-")[1] for r in await read(2)}
    assert found == {b"1", b"4"}


async def test_records_are_taken_once_committed_and_again_when_not(tansu: Tansu) -> None:
    client = KafkaSettings(brokers=(tansu.address,))
    how = KafkaIngestSettings(client=client, topic="feed-in", group="feed", drain_timeout_s=0.1)
    producer = AIOKafkaProducer(bootstrap_servers=tansu.address)
    await producer.start()
    keyed = [("ce_readingkey", b"-42")]
    await producer.send_and_wait("feed-in", b'{"timestamp": %d, "t": 1}' % NOON_MS, b"d", headers=keyed)
    await producer.send_and_wait("feed-in", b'{"t": 2}', b"d", timestamp_ms=NOON_MS + 7)
    await producer.send_and_wait("feed-in", b"no telemetry", b"d")
    await producer.send_and_wait("feed-in", b'{"t": 3}')
    await producer.stop()

    router, others = RecordingRouter(), RecordingRouter()
    first, other = KafkaIngestor(how, router), KafkaIngestor(replace(how, group="other"), others)
    await first.start()
    await other.start()
    await until(lambda: router.pending == others.pending == 4)
    first_read = router.readings[0]
    assert (first_read.device_id, first_read.time_ms, first_read.key) == ("d", NOON_MS, -42)
    assert (first_read.names, first_read.values) == (("t",), [1.0])
    assert router.readings[1][:2] == ("d", NOON_MS + 7)
    assert sorted(letter.reason for letter in router.letters) == ["bad_device_id", "malformed_json"]
    # Whoever reads the same records again has the same readings.
    assert [r._replace(received_ms=0) for r in others.readings] == [
        r._replace(received_ms=0) for r in router.readings
    ]
    router.commit()
    await until(lambda: first.statistics()["acked"] == 4)
    await first.stop()
    # This one was not committed in time: its offsets stay where they were.
    await other.stop()
    assert (other.statistics()["acked"], other.statistics()["connected"]) == (0, False)
    assert (await stored_offset(tansu, "feed"), await stored_offset(tansu, "other")) == (4, 0)


async def test_commands_are_given_once_and_what_is_no_command_is_a_dead_letter(tansu: Tansu) -> None:
    client = KafkaSettings(brokers=(tansu.address,))
    how = KafkaIngestSettings(client=client, topic=None, commands_topic="ask", group="ask")
    queued = Command("c-7", "d", "beep", {}, CommandState.QUEUED, 1, 1, 9_000, NOON_MS + 9_000, 5)
    records = [
        (b'{"command": "open", "parameters": {"by": 3}, "idempotency_key": "k"}', []),
        (b'{"command": "close"}', []),
        (msgspec.json.encode(queued), [("ce_type", b"sensorium.command.queued")]),
        (msgspec.json.encode(queued), [("ce_type", b"sensorium.command.sent")]),
        (b'{"command": "", "colour": 3}', []),
        (b'{"command": "ended long ago", "idempotency_key": "old"}', []),
    ]
    producer = AIOKafkaProducer(bootstrap_servers=tansu.address)
    await producer.start()
    for value, headers in records:
        await producer.send_and_wait("ask", value, b"d", timestamp_ms=NOON_MS, headers=headers)
    await producer.stop()
    old = keyed_id("d", "old")

    async def known(ids: list[str]) -> list[str]:
        return [old] if old in ids else []

    first, second = RecordingRouter(), RecordingRouter()
    for router, group in ((first, "ask"), (second, "again")):
        ingestor = KafkaIngestor(replace(how, group=group), router, known, lambda: 2**41)
        await ingestor.start()
        # The refused one among them becomes a letter of its own once the device has said so.
        await until(lambda router=router: router.pending == 4)
        router.commit(ACCEPTED, Refusal("overloaded", "100 commands are open"))
        await until(lambda router=router: len(router.letters) == 2)
        router.commit()
        await until(lambda ingestor=ingestor: ingestor.statistics()["acked"] == len(records))
        await ingestor.stop()
    statistics = ingestor.statistics()
    assert {name: n for name, n in statistics.items() if name.startswith("commands")} == {
        "commands": 3, "commands_repeated": 1, "commands_passed_over": 1, "commands_refused": 2,
    }  # fmt: skip
    asked, again = (
        [message for message in router.messages if isinstance(message, SendCommand)]
        for router in (first, second)
    )
    assert asked == again
    assert [(m.command, m.parameters) for m in asked] == [("open", {"by": 3}), ("close", {}), ("beep", {})]
    assert (asked[0].command_id, asked[0].expires_ms) == (keyed_id("d", "k"), NOON_MS + 86_400_000)
    assert asked[2] == SendCommand("d", "c-7", "beep", {}, 9_000, NOON_MS + 9_000)
    assert [(letter.source, letter.reason) for letter in first.letters] == [
        ("kafka-commands", "wrong_type"), ("kafka-commands", "command_refused"),
    ]  # fmt: skip


async def stored_offset(broker: Tansu, group: str) -> int:
    """Over all partitions of the feed."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        await consumer.topics()
        places = [TopicPartition("feed-in", n) for n in consumer.partitions_for_topic("feed-in") or ()]
        consumer.assign(places)
        return sum([max(await consumer.committed(place) or 0, 0) for place in places])
    finally:
        await consumer.stop()
