"""Reads for many devices in one statement each: what lists of devices need beside every device.

Not for one device: see `history`, `alarms` and `commands`. Over several databases it is a statement for each.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import asyncpg

from sensorium.actors.messages import Quality
from sensorium.actors.metrics import MetricSet
from sensorium.actors.placement import device_key
from sensorium.actors.records import Alarm, Command, Registration
from sensorium.storage._known_sets import KnownSets
from sensorium.storage._read import (
    ALARM_COLUMNS,
    DEVICE_COLUMNS,
    alarm_of,
    command_of,
    registration_of,
)
from sensorium.storage._readings_sql import Committed, newest
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import Pool, acquired
from sensorium.storage.encode import decode_values
from sensorium.storage.history import Point
from sensorium.storage.pages import check_limit
from sensorium.storage.spread import database_of_device

T = TypeVar("T")
_READ_ALL: Final = (
    "SELECT asked.device AS asked, found.* FROM unnest($1::bigint[]) AS asked (device), LATERAL ("
)

REGISTRATIONS: Final = f"SELECT {DEVICE_COLUMNS} FROM devices WHERE device_id = ANY($1::text[])"
ALARMS: Final = (
    f"{_READ_ALL} SELECT {ALARM_COLUMNS} FROM alarms WHERE device = asked.device"
    " AND ($2::text IS NULL OR state = $2) ORDER BY start_at DESC, alarm_id DESC LIMIT $3) AS found"
)
COMMANDS: Final = (
    f"{_READ_ALL} SELECT body FROM commands WHERE device = asked.device"
    " AND ($2::text IS NULL OR state = $2) ORDER BY number DESC LIMIT $3) AS found"
)


@lru_cache(maxsize=256)
def newest_readings(quality: Quality | None, committed: Committed) -> str:
    """The newest $4 between $2 and $3 of each of the devices $1."""
    found = newest(
        "r.time, r.flags, r.metric_set, r.numbers, r.texts",
        *("asked.device", "$4"),
        *("coalesce($2::timestamptz, '-infinity')", "coalesce($3::timestamptz, 'infinity')"),
        *(quality, committed),
    )
    return f"{_READ_ALL}{found}) AS found"


def _alarm(row: Any) -> Alarm:
    """From the columns behind that of the key."""
    columns: Any = tuple(row)[1:]
    return alarm_of(columns)


def _point(row: asyncpg.Record, metrics: MetricSet) -> Point:
    values = decode_values(metrics, row["numbers"], row["texts"])
    named = {k: v for k, v in zip(metrics.names, values, strict=True) if v is not None}
    return Point(row["time"], named, row["flags"])


class Batched:
    """Over the pools of the log's databases, in their order. Raises `LogUnavailable`.

    `days` is what is known of each; other readers may share it.
    """

    def __init__(self, pools: Sequence[Pool], days: Sequence[CompactedDays] | None = None) -> None:
        self._pools = pools
        self._sets = [KnownSets() for _ in pools]
        self._days = days or [CompactedDays() for _ in pools]

    async def registrations(self, device_ids: Sequence[str]) -> dict[str, Registration]:
        """Those of the ids that were ever registered."""

        async def read(n: int, ids: Sequence[str]) -> dict[str, Registration]:
            async with acquired(self._pools[n]) as connection:
                rows = await connection.fetch(REGISTRATIONS, list(ids))
            return {row["device_id"]: registration_of(row) for row in rows}

        return await self._everywhere([i for i in device_ids if "\0" not in i], read)

    async def alarms(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Alarm]]:
        """The newest of each device, newest first."""
        return await self._lists(device_ids, ALARMS, (state, check_limit(limit)), _alarm)

    async def commands(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Command]]:
        """The newest of each device, newest first."""
        return await self._lists(
            device_ids, COMMANDS, (state, check_limit(limit)), lambda row: command_of(row["body"])
        )

    async def readings(
        self,
        device_ids: Sequence[str],
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        quality: Quality | None = None,
    ) -> dict[str, list[Point]]:
        """The newest of each device by event time, newest first, as far back as the log goes."""
        check_limit(limit)

        async def read(n: int, ids: Sequence[str]) -> dict[str, list[Point]]:
            keys = {device_key(device_id): device_id for device_id in ids}
            rows: dict[int, list[asyncpg.Record]] = {key: [] for key in keys}
            days = self._days[n]
            async with acquired(self._pools[n]) as connection:
                await days.refresh(connection)
                for from_ms, until_ms in days.windows("desc", start_ms, end_ms):
                    left = [key for key, of_device in rows.items() if len(of_device) < limit]
                    if not left:
                        break
                    statement = newest_readings(quality, days.committed(from_ms, until_ms))
                    for row in await connection.fetch(statement, left, from_ms, until_ms, limit):
                        rows[row[0]].append(row)
                used = {row["metric_set"] for of_device in rows.values() for row in of_device}
                sets = await self._sets[n].find(connection, used)
            return {
                keys[key]: [_point(row, sets[row["metric_set"]]) for row in of_device[:limit]]
                for key, of_device in rows.items()
                if of_device
            }

        return await self._everywhere(device_ids, read)

    async def _lists(
        self,
        device_ids: Sequence[str],
        statement: str,
        arguments: tuple[Any, ...],
        made: Callable[[asyncpg.Record], T],
    ) -> dict[str, list[T]]:
        async def read(n: int, ids: Sequence[str]) -> dict[str, list[T]]:
            keys = {device_key(device_id): device_id for device_id in ids}
            async with acquired(self._pools[n]) as connection:
                rows = await connection.fetch(statement, list(keys), *arguments)
            found: dict[str, list[T]] = {}
            for row in rows:
                found.setdefault(keys[row["asked"]], []).append(made(row))
            return found

        return await self._everywhere(device_ids, read)

    async def _everywhere(
        self, device_ids: Sequence[str], read: Callable[[int, Sequence[str]], Awaitable[dict[str, T]]]
    ) -> dict[str, T]:
        """What `read` finds of the ids of each database."""
        count = len(self._pools)
        parts: dict[int, list[str]] = {}
        for device_id in dict.fromkeys(device_ids):
            parts.setdefault(database_of_device(device_id, count), []).append(device_id)
        found: dict[str, T] = {}
        for part in await asyncio.gather(*(read(n, ids) for n, ids in parts.items())):
            found |= part
        return found
