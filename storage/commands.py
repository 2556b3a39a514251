"""The read side of commands: one by id, pages newest first, counts, and those that may be sent now."""

from collections.abc import Sequence
from typing import Any

from sensorium.actors.placement import device_key
from sensorium.actors.records import Command
from sensorium.storage._read import command_of
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor


class PgCommands:
    """Commands as the log has them. Every call raises `LogUnavailable` when the database does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        device_id: str | None = None,
        state: str | None = None,
        command: str | None = None,
        job_id: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Command]:
        """Those for which all holds that is given, the newest first; `start_ms` is included, `end_ms` is not.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = Where()
        where.add("device = ?", None if device_id is None else device_key(device_id))
        where.add("state = ?", state)
        where.add("command = ?", command)
        where.add("job_id = ?", job_id)
        where.add("created_at >= ?", start_ms)
        where.add("created_at < ?", end_ms)
        if after is not None:
            where.add("(created_at, command_id) < (?, ?)", *cursor(after, tuple[int, str]))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT body FROM commands {where} ORDER BY created_at DESC, command_id DESC"
                f" LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [command_of(row["body"]) for row in rows[:limit]]
        return Page(items, [items[-1].created_ms, items[-1].command_id] if len(rows) > limit else None)

    async def get(self, command_id: str) -> Command | None:
        """One command, open or ended."""
        found = await self.find([command_id])
        return found[0] if found else None

    async def find(self, command_ids: Sequence[str]) -> list[Command]:
        """Those of the ids that there are."""
        wanted = [command_id for command_id in command_ids if "\0" not in command_id]
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT body FROM commands WHERE command_id = ANY($1::text[])", wanted
            )
        return [command_of(row["body"]) for row in rows]

    async def ready(self, limit: int, downlink: str = "mqtt") -> list[tuple[str, str, int]]:
        """Commands that may be sent now by a protocol: device id, command id, and which attempt it is."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT device_id, command_id, (body->>'attempt')::int + 1 AS attempt FROM commands"
                " WHERE ready AND downlink = $2 ORDER BY number LIMIT $1",
                limit,
                downlink,
            )
        return [(row["device_id"], row["command_id"], row["attempt"]) for row in rows]

    async def counts(self, job_id: str) -> dict[str, int]:
        """How many commands of a bulk job are in each state."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT state, count(*) AS n FROM commands WHERE job_id = $1 GROUP BY 1 ORDER BY 1", job_id
            )
        return {row["state"]: row["n"] for row in rows}
