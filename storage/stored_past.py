"""The stored past, streamed a device at a time: implements `sensorium.actors.past.StoredPast`."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sensorium.actors.metrics import MetricSet
from sensorium.actors.past import MAX_TWIN_CHANGES, Take, TwinThen, moments
from sensorium.actors.placement import device_key
from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration, TailReading
from sensorium.actors.rules import Rule
from sensorium.storage._known_sets import KnownSets
from sensorium.storage._read import twin_of
from sensorium.storage._readings_sql import Committed, between, readings
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import EPOCH_2000_MS, Pool, acquired, close_pool, open_pool
from sensorium.storage.decode_copy import COLUMNS, CopiedReading, CopiedReadings
from sensorium.storage.encode import decode_values
from sensorium.storage.events import as_written
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rules import PgRules
from sensorium.storage.spread import database_of_device
from sensorium.storage.spread_reads import SpreadRegistry
from sensorium.storage.twins import DOCUMENTS, PREFIX, document_at

PAGE_ROWS: Final = 2_000
STREAM_TIMEOUT_S: Final = 600.0
"""For all readings of one device; a page waits while the ones before are used."""

SORT_MEMORY: Final = "32MB"
"""For putting a device's readings in the order in which they came, before the server turns to its disk."""


def _readings(device: int, start: str, end: str, committed: Committed) -> str:
    where, rows, chunks = between(start, end, committed)
    columns = ", ".join(f"r.{name}" for name in COLUMNS.split(", "))
    found = readings(columns, f"r.device = {device:d} AND {where}", rows, chunks)
    return f"SELECT * FROM ({found}) AS found ORDER BY log_offset"


def _any_reading(committed: Committed) -> str:
    where, rows, chunks = between("$2::timestamptz", "$3::timestamptz", committed)
    found = readings("r.device", f"r.device = asked.device AND {where}", rows, chunks, "LIMIT 1")
    return f"""
        SELECT EXISTS (SELECT FROM unnest($1::bigint[]) AS asked (device), LATERAL ({found}) AS found)
    """


_TWIN_CHANGES: Final = f"""
SELECT kind, time, body FROM events
WHERE device = $1 AND kind = ANY($2::text[]) AND time > $3 AND time < $4
ORDER BY log_offset LIMIT {MAX_TWIN_CHANGES + 1}
"""

_ALARM_TIMES: Final = """
SELECT start_at, end_at FROM alarms
WHERE device = $1 AND device_id = $2 AND rule_id = $3 AND start_at >= $4 AND start_at < $5 ORDER BY start_at
"""


class PgStoredPast:
    """`StoredPast` over the pools of the log's databases, which it closes. One `readings` at a time."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools
        self._known = KnownSets()
        self._days = [CompactedDays() for _ in pools]
        self._sets: dict[int, MetricSet] = {}
        """Those of the device that is being read."""
        self._registry = SpreadRegistry(pools) if len(pools) > 1 else PgRegistry(pools[0])
        self._rules = PgRules(pools[0])

    async def devices(self, which: Filter, limit: int) -> list[Registration]:
        """As the port says."""
        found: list[Registration] = []
        after: str | None = None
        while len(found) < limit:
            page = await self._registry.page(which, after, min(limit - len(found), 1000))
            found += page.items
            after = page.next
            if after is None:
                break
        return found

    async def rule(self, rule_id: str, version: int | None = None) -> Rule | None:
        """As the port says."""
        return await self._rules.get(rule_id)

    async def rules(self) -> Sequence[Rule]:
        """As the port says."""
        return await self._rules.load()

    async def has_readings(self, device_ids: Sequence[str], start_ms: int, end_ms: int) -> bool:
        """As the port says."""
        keys: dict[int, list[int]] = {}
        for device_id in device_ids:
            keys.setdefault(self._database_of(device_id), []).append(device_key(device_id))
        for database, asked in keys.items():
            async with acquired(self._pools[database]) as connection:
                await self._days[database].refresh(connection)
                statement = _any_reading(self._days[database].committed(start_ms, end_ms))
                if await connection.fetchval(statement, asked, start_ms, end_ms):
                    return True
        return False

    async def readings(self, device_id: str, start_ms: int, end_ms: int, take: Take) -> None:
        """As the port says."""
        self._sets = {}
        database = self._database_of(device_id)
        pool, days = self._pools[database], self._days[database]
        copied = CopiedReadings()
        waiting: list[CopiedReading] = []

        async def sink(data: bytes) -> None:
            waiting.extend(copied.feed(data))
            if len(waiting) >= PAGE_ROWS:
                take(await self._resolved(waiting, pool))
                waiting.clear()

        async with acquired(pool) as connection, connection.transaction(readonly=True):
            await days.refresh(connection)
            committed = days.committed(start_ms, end_ms)
            statement = _readings(device_key(device_id), _time(start_ms), _time(end_ms), committed)
            await connection.execute(
                f"SET LOCAL work_mem = '{SORT_MEMORY}';"
                f" SET LOCAL statement_timeout = '{STREAM_TIMEOUT_S:.0f}s'"
            )
            await connection.copy_from_query(
                statement, output=sink, format="binary", timeout=STREAM_TIMEOUT_S
            )
        if waiting:
            take(await self._resolved(waiting, pool))

    async def twins(self, device_id: str, start_ms: int, end_ms: int) -> list[TwinThen]:
        """As the port says."""
        key = device_key(device_id)
        async with (
            acquired(self._pools[self._database_of(device_id)]) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            body = await connection.fetchval("SELECT body FROM twins WHERE device = $1", key)
            if body is None:
                return []
            state = twin_of(body)
            began = [
                await document_at(connection, key, name, start_ms, getattr(state, name)) for name in DOCUMENTS
            ]
            rows = await connection.fetch(
                *(_TWIN_CHANGES, key, [PREFIX + name for name in DOCUMENTS], start_ms, end_ms)
            )
        changes = [(row["kind"], row["time"], as_written(row["body"])["patch"]) for row in rows]
        values = []
        for name, document in zip(DOCUMENTS, began, strict=True):
            from_ms = document.changed_ms
            if from_ms is None or from_ms <= start_ms:
                values.append(document.values)
                continue
            # Its history is not kept so far back.
            values.append({})
            place = sum(time_ms <= from_ms for _, time_ms, _ in changes)
            changes.insert(place, (PREFIX + name, from_ms, document.values))
        desired, reported = values
        return moments(start_ms, desired, reported, changes, end_ms)

    async def alarm_times(
        self, device_id: str, rule_id: str, start_ms: int, end_ms: int
    ) -> list[tuple[int, int | None]]:
        """As the port says."""
        async with acquired(self._pools[self._database_of(device_id)]) as connection:
            rows = await connection.fetch(
                _ALARM_TIMES, device_key(device_id), device_id, rule_id, start_ms, end_ms
            )
        return [(row[0], row[1]) for row in rows]

    async def close(self) -> None:
        """As the port says."""
        await asyncio.gather(*map(close_pool, self._pools))

    def _database_of(self, device_id: str) -> int:
        return database_of_device(device_id, len(self._pools))

    async def _resolved(self, rows: Sequence[CopiedReading], pool: Pool) -> list[TailReading]:
        sets = self._sets
        new = {row[4] for row in rows} - sets.keys()
        if new:
            # The connection that streams is busy, so it is another one.
            async with acquired(pool) as connection:
                sets |= await self._known.find(connection, new)
        if len(sets) == 1 and (metrics := next(iter(sets.values()))).only_numbers:
            # Nearly always. Made as tuples: through its own constructor, each costs twice as much.
            new_row = tuple.__new__
            return [
                new_row(TailReading, (offset, time_ms, key, flags, metrics, numbers or []))
                for offset, time_ms, key, flags, _, numbers, _ in rows
            ]
        resolved = []
        for offset, time_ms, key, flags, set_id, numbers, texts in rows:
            metrics = sets[set_id]
            plain = metrics.only_numbers and numbers is not None
            values: list[Any] = cast(list[Any], numbers) if plain else decode_values(metrics, numbers, texts)
            resolved.append(TailReading(offset, time_ms, key, flags, metrics, values))
        return resolved


@dataclass(frozen=True, slots=True)
class PgStoredPastFactory:
    """An `StoredPastFactory` over the databases that the log is spread over; they are migrated."""

    dsn: str
    others: tuple[str, ...] = ()

    async def __call__(self) -> PgStoredPast:
        """Opens nothing yet; the first use connects."""
        dsns = (self.dsn, *self.others)
        return PgStoredPast([await open_pool(dsn, 3, "sensorium-past") for dsn in dsns])


def _time(ms: int) -> str:
    """A time as the server's literal, exact to the millisecond, and never beyond its range."""
    seconds, rest = divmod(ms - EPOCH_2000_MS, 1000)
    return f"(timestamptz '2000-01-01 00:00:00+00' + interval '{seconds} seconds {rest} milliseconds')"
