"""The models that are at work: rows that every host reads, so that a host needs no registry."""

from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Pool, acquired
from sensorium.storage.notices import notices

CHANNEL: Final = "sensorium_models"
LOOK_EVERY_S: Final = 60.0
MAX_ACTIVE: Final = 64
MAX_A_TYPE: Final = 4
"""Models that judge the same readings."""


class PgActiveModels:
    """Over a pool of the main database, which stays the caller's; `changes` needs its `dsn` too."""

    def __init__(self, pool: Pool, dsn: str | None = None) -> None:
        self._pool = pool
        self._dsn = dsn

    async def load(self) -> list[ActiveModel]:
        """All of them with their numbers, by name. Raises `LogUnavailable`."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT info, numbers, activated_at FROM active_models ORDER BY name"
            )
        return [_active(row) for row in rows]

    async def infos(self) -> list[ActiveModel]:
        """All of them without their numbers. Raises `LogUnavailable`."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT info, ''::bytea AS numbers, activated_at FROM active_models ORDER BY name"
            )
        return [_active(row) for row in rows]

    async def put(self, info: ModelInfo, numbers: bytes) -> None:
        """Set a model to work, instead of any other version of it.

        Raises:
            InvalidMessage: too many are at work.
            LogUnavailable: the database does not answer.
        """
        async with acquired(self._pool) as connection, connection.transaction():
            await connection.execute("LOCK TABLE active_models IN SHARE ROW EXCLUSIVE MODE")
            counted = await connection.fetchrow(
                "SELECT count(*), count(*) FILTER (WHERE device_type = $2)"
                " FROM active_models WHERE name <> $1",
                info.name,
                info.device_type,
            )
            assert counted is not None
            if counted[0] >= MAX_ACTIVE or counted[1] >= MAX_A_TYPE:
                raise InvalidMessage(
                    f"{counted[1]} models of {info.device_type} and {counted[0]} in all are at work;"
                    f" at most {MAX_A_TYPE} and {MAX_ACTIVE}: deactivate one"
                )
            before = await connection.fetchval("SELECT info FROM active_models WHERE name = $1", info.name)
            await connection.execute(
                "INSERT INTO active_models (name, device_type, info, numbers) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (name) DO UPDATE SET device_type = excluded.device_type,"
                " info = excluded.info, numbers = excluded.numbers, activated_at = now()",
                info.name,
                info.device_type,
                info,
                numbers,
            )
            await record(connection, "model.activate", info.name, before, info)

    async def remove(self, name: str) -> bool:
        """Take a model from work; False when it was not. Raises `LogUnavailable`."""
        async with acquired(self._pool) as connection, connection.transaction():
            before = await connection.fetchval(
                "DELETE FROM active_models WHERE name = $1 RETURNING info", name
            )
            if before is not None:
                await record(connection, "model.deactivate", name, before)
        return before is not None

    async def changes(self) -> AsyncIterator[None]:
        """Yields when models may have changed: at notices, at the start, after reconnects, now and then."""
        if self._dsn is None:
            raise ValueError("PgActiveModels was made without a dsn, which changes() listens on")
        async for _ in notices(self._dsn, CHANNEL, LOOK_EVERY_S):
            yield None


def _active(row: asyncpg.Record) -> ActiveModel:
    return ActiveModel(msgspec.convert(row["info"], ModelInfo), row["numbers"], row["activated_at"])
