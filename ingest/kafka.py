"""Telemetry and commands from Kafka: other systems, or other platforms, feed this one. Offsets follow the
log's commit.

A record's key is the device id and its value telemetry as `decode` says, or a command as `command_requests`
says, so that what one platform writes to its `sensor-readings` and `device-commands` is what another takes.
Not a projection: that is `storage.kafka_sink`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from zlib import crc32

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import Outcome
from sensorium.ingest.decode import Telemetry, TelemetryDecoder
from sensorium.ingest.kafka_commands import KafkaCommands, Known, place
from sensorium.ingest.kafka_settings import KafkaIngestSettings
from sensorium.ingest.pipeline import Pipeline, Router
from sensorium.storage.kafka_client import options
from sensorium.storage.kafka_messages import READING_KEY

_log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
POLL_MS: Final = 250
CLOSE_TIMEOUT_S: Final = 10.0
_INT64: Final = 2**63

Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class KafkaIngestor:
    """Takes a batch of records, waits until all of it is committed, stores the offsets, takes the next.

    What comes again after a failure or a rebalance is recognised by time and key. A reading that names no
    time has the record's; its key is of the payload, of the platform that it comes from, or of its place in
    the topic. Start and stop it once.

    Args:
        known: which commands there are; needed where commands are read.
    """

    def __init__(
        self,
        settings: KafkaIngestSettings,
        router: Router,
        known: Known | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if settings.commands_topic is not None and known is None:
            raise ValueError("commands are recognised by what is stored: give `known`")
        self._settings = settings
        self._pipeline = Pipeline(router, settings.bounds, "kafka", settings.limit)
        self._decoder = TelemetryDecoder(settings.bounds)
        self._commands = None if known is None else KafkaCommands(router, known)
        self._clock_ms = clock_ms
        self._name = ", ".join(settings.topics)
        self._origin = crc32((settings.topic or "").encode())
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = 0
        self._received = self._acked = self._redelivered = 0
        self._connected = False
        self._trouble = ""

    async def start(self) -> None:
        """Begin to connect, and keep trying while the brokers are away."""
        self._task = asyncio.create_task(self._run(), name=f"kafka {self._name}")

    def check(self) -> None:
        """Raise what ended the ingestor, if something but `stop` did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Stop reading, wait for what was read, store its offsets, leave the group."""
        self._stopping.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await asyncio.shield(self._task)
        except TimeoutError:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, of the pipeline too."""
        return {
            "received": self._received,
            "pending": self._open,
            "acked": self._acked,
            "redelivered": self._redelivered,
            "connected": self._connected,
            "trouble": self._trouble,
            **self._pipeline.statistics(),
            **({} if self._commands is None else self._commands.statistics()),
        }

    async def _run(self) -> None:
        wait_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            acked = self._acked
            try:
                await self._session()
            except (KafkaError, LogUnavailable, OSError) as error:
                self._trouble = f"{type(error).__name__}: {error}"
                wait_s = FIRST_RETRY_S if self._acked > acked else min(wait_s * 2, LONGEST_RETRY_S)
                _log.warning("kafka %s: %s; again in %.1f s", self._name, error, wait_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._stopping.wait()

    async def _session(self) -> None:
        settings = self._settings
        # A group that is new reads from the topic's beginning: a feed that was there first is not left out.
        consumer = AIOKafkaConsumer(
            *settings.topics,
            **options(settings.client),
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=settings.batch,
        )
        try:
            await consumer.start()
            self._connected, self._trouble = True, ""
            while not self._stopping.is_set():
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=settings.batch)
                if batches:
                    await self._take(batches)
                    await self._store(consumer, batches)
        finally:
            self._connected = False
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await consumer.stop()

    async def _take(self, batches: Batches) -> None:
        """Return when all of them are committed or are dead letters."""
        records = [record for batch in batches.values() for record in batch]
        received_ms = self._clock_ms()
        asking = [record for record in records if record.topic == self._settings.commands_topic]
        asked = await self._commands.asked(asking, received_ms) if self._commands and asking else []
        self._received += len(records)
        self._open += len(records) - len(asking) + len(asked)
        if not self._open:
            return
        self._idle.clear()
        for each in asked:
            assert self._commands is not None
            self._commands.take(each, received_ms, self._done)
        for record in records:
            if record.topic != self._settings.commands_topic:
                self._telemetry(record, received_ms)
        await self._idle.wait()

    def _telemetry(self, record: ConsumerRecord, received_ms: int) -> None:
        self._pipeline.telemetry(
            place(record),
            (record.key or b"").decode("utf-8", "replace"),
            record.value or b"",
            received_ms,
            self._origin << 40 | record.partition << 32 ^ record.offset,
            self._done,
            None,
            decode=partial(self._decode, record.timestamp),
            identity=_identity(record),
            sent_ms=record.timestamp if 0 < record.timestamp < received_ms else None,
        )

    def _decode(self, record_ms: int, payload: bytes, received_ms: int) -> list[Telemetry]:
        """A reading that names no time has its record's, so that it is the same when it comes again."""
        sent_ms = min(record_ms, received_ms) if record_ms > 0 else received_ms
        return [
            (time_ms if own_time else sent_ms, names, values, own_time)
            for time_ms, names, values, own_time in self._decoder.decode(payload, received_ms)
        ]

    def _done(self, token: None, outcome: Outcome) -> None:
        self._open -= 1
        if self._open == 0:
            self._idle.set()

    async def _store(self, consumer: AIOKafkaConsumer, batches: Batches) -> None:
        offsets = {place: records[-1].offset + 1 for place, records in batches.items()}
        try:
            await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            # The partitions are another member's now, which reads these records again and finds them known.
            _log.info("kafka %s: offsets not stored: %s", self._name, error)
            self._redelivered += sum(len(records) for records in batches.values())
        else:
            self._acked += sum(len(records) for records in batches.values())


def _identity(record: ConsumerRecord) -> int | None:
    """The key that a platform gave the reading, as far as it is one."""
    for name, value in record.headers:
        if name == READING_KEY:
            with suppress(ValueError):
                key = int(value)
                return key if -_INT64 <= key < _INT64 else None
    return None
