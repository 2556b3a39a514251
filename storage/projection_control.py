"""The projections as people see and steer them: asked for in the database, done by whoever runs them."""

from typing import Final

from sensorium.actors.errors import InvalidMessage
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Pool, acquired
from sensorium.storage.projection import ProjectionStatus
from sensorium.storage.rollup_sink import NAME as ROLLUPS

_LIST: Final = """
SELECT p.name, p.state, p.read_from, p.updated_at, p.rewind_to IS NOT NULL AS rewinding,
       (SELECT coalesce(sum(greatest(s.head - p.cursors[s.shard + 1], 0)), 0)::bigint FROM shards s) AS behind
FROM projections p ORDER BY p.name
"""
_STANDS: Final = "SELECT state, rewind_to AS rewind_to_ms FROM projections WHERE name = $1 FOR UPDATE"
_STATE: Final = "UPDATE projections SET state = $2 WHERE name = $1"
_REWIND: Final = "UPDATE projections SET rewind_to = $2 WHERE name = $1"


class Projections:
    """What the database knows of projections. Every call raises `LogUnavailable` when it does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list(self) -> list[ProjectionStatus]:
        """All that have ever run, by name."""
        async with acquired(self._pool) as connection:
            return [ProjectionStatus(*row) for row in await connection.fetch(_LIST)]

    async def pause(self, name: str) -> bool:
        """Let it flush what it has and stand still until `resume`; False when there is no such projection."""
        return await self._change("pause", _STATE, name, "paused")

    async def resume(self, name: str) -> bool:
        """Let it go on from where it stands; False when there is no such projection."""
        return await self._change("resume", _STATE, name, "running")

    async def rewind(self, name: str, to_ms: int = 0) -> bool:
        """Let it take again what was committed since `to_ms`; False when there is no such projection.

        Rollups forget all they have counted and count again, from the beginning of the log only.

        Raises:
            InvalidMessage: retention has removed readings that the rollups still count, or the time is not 0.
        """
        if name == ROLLUPS:
            if to_ms > 0:
                raise InvalidMessage("rollups are rewound to the beginning of the log only")
            async with acquired(self._pool) as connection:
                if await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM retention WHERE kind ~ '^(log$|reading_chunks/)')"
                ):
                    raise InvalidMessage("retention has removed readings that the rollups still count")
        return await self._change("rewind", _REWIND, name, to_ms)

    async def _change(self, how: str, statement: str, name: str, value: str | int) -> bool:
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchrow(_STANDS, name)
            if old is None:
                return False
            await connection.execute(statement, name, value)
            new = await connection.fetchrow(_STANDS, name)
            assert new is not None
            if how == "rewind" or old["state"] != new["state"]:
                await record(connection, f"projection.{how}", name, dict(old), dict(new))
        return True
