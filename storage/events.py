"""The read side of what happened to devices besides readings: the events in the log."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.placement import device_key
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor
from sensorium.storage.spread import database_of_device


class Event(NamedTuple):
    """Something that happened to a device, such as "registered" or "alarm_raised", and its details."""

    time_ms: int
    kind: str
    body: dict[str, Any]


class Events:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def page(
        self,
        device_id: str,
        kinds: Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        order: str = "desc",
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Event]:
        """In order of time; `start_ms` is included, `end_ms` is not. As old as retention has left.

        Args:
            device_id: whose.
            kinds: only these; one that ends with `*` stands for all that begin so.
            start_ms, end_ms: in milliseconds since 1970 UTC.
            order: "desc", the newest first, or "asc".
            after: `next` of the page before.
            limit: how many at most.

        Raises:
            InvalidMessage: `order`, `after` or `limit` is out of its range.
        """
        check_limit(limit)
        if order not in ("asc", "desc"):
            raise InvalidMessage(f'the order is "asc" or "desc", not {order!r}')
        where = Where()
        where.add("device = ?", device_key(device_id))
        where.add("kind LIKE ANY(?)", None if kinds is None else [_pattern(kind) for kind in kinds])
        where.add("time >= ?", start_ms)
        where.add("time < ?", end_ms)
        if after is not None:
            beyond = "<" if order == "desc" else ">"
            where.add(f"(time, log_offset) {beyond} (?, ?)", *cursor(after, tuple[int, int]))
        async with acquired(self._pools[database_of_device(device_id, len(self._pools))]) as connection:
            rows = await connection.fetch(
                f"SELECT time, kind, body, log_offset FROM events {where}"
                f" ORDER BY time {order}, log_offset {order} LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [Event(row["time"], row["kind"], as_written(row["body"])) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items)
        last = rows[limit - 1]
        return Page(items, [last["time"], last["log_offset"]])


def _pattern(kind: str) -> str:
    """The same for LIKE, in which `_` and `%` have meanings of their own."""
    name = kind.removesuffix("*")
    escaped = name.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")
    return escaped + ("%" if name != kind else "")


def as_written(value: Any) -> Any:
    """JSON as it came: jsonb writes a large float, such as 1e300, with all its digits."""
    if isinstance(value, dict):
        return {name: as_written(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_written(inner) for inner in value]
    large = isinstance(value, int) and not -(2**63) <= value < 2**64
    return float(value) if large else value
