"""The read side of presence: when devices came and went, from the events in the log."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sensorium.actors.placement import device_key
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor
from sensorium.storage.spread import database_of_device


class Connection(NamedTuple):
    """A device said, or it was said of it, that it is there from now on, or is not."""

    time_ms: int
    online: bool


class Connections:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def page(
        self,
        device_id: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Connection]:
        """The newest first; `start_ms` is included, `end_ms` is not. As old as retention has left.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = Where()
        where.add("device = ?", device_key(device_id))
        where.add("kind = ANY(?)", ["online", "offline"])
        where.add("time >= ?", start_ms)
        where.add("time < ?", end_ms)
        if after is not None:
            where.add("(time, log_offset) < (?, ?)", *cursor(after, tuple[int, int]))
        async with acquired(self._pools[database_of_device(device_id, len(self._pools))]) as connection:
            rows = await connection.fetch(
                f"SELECT time, kind, log_offset FROM events {where} ORDER BY time DESC, log_offset DESC"
                f" LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [Connection(row["time"], row["kind"] == "online") for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items)
        last = rows[limit - 1]
        return Page(items, [last["time"], last["log_offset"]])
