"""Sinks that are rewound over compacted days: each has what it had from the rows, and that is the source."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from faulty_influx import FaultyInflux
from storage_rows import event, reading, registration
from tansu import Tansu

from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.compaction import CompactionSettings, compact, drop_emptied, due
from sensorium.storage.database import Pool, acquired
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.influx_sink import InfluxSink
from sensorium.storage.kafka_settings import KafkaSettings, KafkaSinkSettings
from sensorium.storage.kafka_sink import KafkaSink
from sensorium.storage.partitions import create
from sensorium.storage.projection import ProjectionSettings, Sink
from sensorium.storage.projection_control import Projections
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup_sink import RollupSink

pytestmark = [pytest.mark.database, pytest.mark.slow]
DEADLINE_S = 120.0
DAYS = 3
STEP_MS = 90_000
"""Between two commits of a shard."""
TOPIC = "rewound-readings"
DEVICES = ("often", "late", "once")


class Rig(Protocol):
    """A kind of sink, and what is in what it writes to."""

    name: str

    def sink(self) -> Sink: ...

    async def seen(self, count: int) -> Any:
        """All since `forget`, which is at least of so many readings; in no order but that of each device."""
        ...

    async def forget(self) -> None: ...

    def of_source(self, rows: Sequence[ReadingRow]) -> Any:
        """What `seen` is when it is right."""
        ...


class Rollups:
    name = "rollups"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def sink(self) -> Sink:
        return RollupSink()

    async def seen(self, count: int) -> Any:
        figures = "n, total, squares, least, most, first, last, first_at, last_at"
        found = {}
        for level, width_ms in (("1m", 60_000), ("1h", 3_600_000), ("1d", 86_400_000)):
            for device, bucket_ms, *rest in await self._pool.fetch(
                f"SELECT device, bucket, {figures} FROM rollups_{level}"
            ):
                found[width_ms, device, bucket_ms] = tuple(rest)
        return found

    async def forget(self) -> None:
        """Rewinding does."""

    def of_source(self, rows: Sequence[ReadingRow]) -> Any:
        buckets: dict[Any, list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            for width_ms in (60_000, 3_600_000, 86_400_000):
                start_ms = row.time_ms - row.time_ms % width_ms
                buckets[width_ms, row.device, start_ms].append((row.time_ms, float(row.values[0])))  # type: ignore[arg-type]
        found = {}
        for key, readings in buckets.items():
            values = [value for _, value in readings]
            by_time = sorted(readings, key=lambda r: r[0])
            (first_ms, first), (last_ms, last) = by_time[0], by_time[-1]
            squares = sum(v * v for v in values)
            ends = (min(values), max(values), first, last, first_ms, last_ms)
            found[key] = (len(values), sum(values), squares, *ends)
        return found


class Kafka:
    name = "kafka"

    def __init__(self, broker: Tansu) -> None:
        self._broker = broker
        self._read = 0

    def sink(self) -> Sink:
        client = KafkaSettings(brokers=(self._broker.address,))
        # Tansu answers UnknownError to idempotent producers.
        how = KafkaSinkSettings(client=client, readings_topic=TOPIC, partitions=1, idempotent=False)
        return KafkaSink(how)

    async def seen(self, count: int) -> Any:
        found: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for record in (await self._records(self._read + count))[self._read :]:
            told = (dict(record.headers)["ce_id"].decode(), msgspec.json.decode(record.value)["t"])
            if told not in found[record.key.decode()]:
                found[record.key.decode()].append(told)
        return dict(found)

    async def forget(self) -> None:
        self._read = len(await self._records(0))

    async def _records(self, at_least: int) -> list[Any]:
        topic = TopicPartition(TOPIC, 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._broker.address, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([topic])
            end = (await consumer.end_offsets([topic]))[topic]
            found: list[Any] = []
            while len(found) < max(at_least, end):
                for records in (await consumer.getmany(timeout_ms=50)).values():
                    found += records
            return found
        finally:
            await consumer.stop()

    def of_source(self, rows: Sequence[ReadingRow]) -> Any:
        names = {device_key(name): name for name in DEVICES}
        found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for row in rows:
            found[names[row.device]].append((f"{row.shard}-{row.offset}", row.values[0]))
        return dict(found)


class Influx:
    name = "influxdb"

    def __init__(self, server: FaultyInflux) -> None:
        self._server = server

    def sink(self) -> Sink:
        return InfluxSink(InfluxSettings(url=self._server.url))

    async def seen(self, count: int) -> Any:
        found = set()
        for line in self._server.points:
            tags, fields, at = line.split(b" ")
            device = tags.split(b"device_id=")[1].split(b",")[0].decode()
            found.add((device, float(fields.split(b"t=")[1].split(b",")[0]), int(at) // 1_000_000))
        return found

    async def forget(self) -> None:
        self._server.points.clear()

    def of_source(self, rows: Sequence[ReadingRow]) -> Any:
        names = {device_key(name): name for name in DEVICES}
        return {(names[row.device], row.values[0], row.time_ms) for row in rows}


@pytest.fixture(params=["rollups", "kafka", "influx"])
async def rig(request: pytest.FixtureRequest, pool: Pool) -> AsyncIterator[Rig]:
    if request.param == "rollups":
        yield Rollups(pool)
    elif request.param == "kafka":
        with Tansu() as broker:
            yield Kafka(broker)
    else:
        async with FaultyInflux() as server:
            yield Influx(server)


async def written(dsn: str, pool: Pool, rng: random.Random) -> list[ReadingRow]:
    """Readings of three days that are over, each device's in order; an event at the end of each."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = today - timedelta(days=DAYS + 1)
    begin_ms = int(begin.timestamp() * 1000)
    heads: dict[int, int] = defaultdict(int)
    rows = []
    for n in range(DAYS * 86_400_000 // STEP_MS):
        name = "once" if n % 900 == 0 else "late" if rng.random() < 0.1 else "often"
        heads[shard_of(name)] += 1
        offset = heads[shard_of(name)]
        lag_ms = rng.randrange(86_400_000) if name == "late" else 50
        time_ms = begin_ms + offset * STEP_MS - lag_ms
        rows.append(reading(name, offset, time_ms, rng.randrange(2**60), t=float(rng.randrange(1000))))
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    events = [event(name, heads[shard_of(name)] + 1) for name in DEVICES]
    registrations = [registration(name) for name in DEVICES]
    await log.commit(Commit(registrations=registrations, readings=rows, events=events))
    await log.close()
    async with acquired(pool) as connection:
        for day in range(DAYS + 1):
            for table in ("readings", "events"):
                await create(connection, table, (begin + timedelta(days=day)).date())
        for table in ("readings", "events"):
            # As if each had been committed as its shard went on.
            await connection.execute(
                f"UPDATE {table} SET committed_at = $1::timestamptz + log_offset * interval '1 ms' * $2::int",
                *(begin_ms, STEP_MS),
            )
    return rows


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.005)


async def test_what_is_rewound_over_compacted_days_is_the_source(
    rig: Rig, dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.projection_runner.LOCK_RETRY_S", 0.01)
    monkeypatch.setattr("sensorium.storage.projection_runner.IDLE_FLUSH_S", 0.1)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows = await written(dsn, pool, rng)
    source = rig.of_source(rows)
    today_ms = await pool.fetchval("SELECT date_trunc('day', now())")
    heads = {row.shard: row.offset + 1 for row in rows}
    flush_every_s = 0.3 if rig.name == "rollups" else 0.0
    settings = ProjectionSettings(rig.name, 400, flush_every_s, poll_s=0.02)

    async def fed() -> None:
        """Run until it has all of the log; it is killed at some point in between."""
        running = ProjectionRunner(dsn, settings, rig.sink())
        some = rng.randrange(1, len(rows))

        async def has_some() -> bool:
            return int(running.statistics()["entries"]) >= some

        async def has_all() -> bool:
            statement = "SELECT cursors, read_from FROM projections WHERE name = $1 AND rewind_to IS NULL"
            row = await pool.fetchrow(statement, rig.name)
            if row is None or row["read_from"] < today_ms:
                return False
            return all(row["cursors"][shard] == head for shard, head in heads.items())

        await running.start()
        await until(has_some)
        assert running._task is not None
        running._task.cancel()
        await asyncio.gather(running._task, return_exceptions=True)
        again = ProjectionRunner(dsn, settings, rig.sink())
        await again.start()
        await until(has_all)
        await again.stop()

    await fed()
    assert await rig.seen(len(rows)) == source
    async with acquired(pool) as connection:
        for day in await due(connection, CompactionSettings(), (rig.name,), datetime.now(UTC)):
            await compact(connection, day, (rig.name,), asyncio.sleep)
        await drop_emptied(connection)
        assert await connection.fetchval("SELECT sum(count) FROM reading_chunks") == len(rows)
    await rig.forget()
    assert await Projections(pool).rewind(rig.name)
    await fed()
    assert await rig.seen(len(rows)) == source
