"""The read side of alarms: pages newest first, one by id, and counts."""

from typing import Any, Final, NamedTuple

from sensorium.actors.placement import device_key
from sensorium.actors.records import Alarm
from sensorium.storage._read import ALARM_COLUMNS, alarm_of
from sensorium.storage.database import Pool, acquired
from sensorium.storage.events import as_written
from sensorium.storage.pages import Page, Where, check_limit, cursor

LIFE_EVENTS: Final = 1_000
"""Events of one alarm that are told at most, the newest."""


class AlarmEvent(NamedTuple):
    """Something that happened to an alarm, such as "alarm_raised", with what it left behind."""

    time_ms: int
    kind: str
    body: dict[str, Any]


class Alarms:
    """Alarms as the log has them. Every call raises `LogUnavailable` when the database does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        state: str | None = None,
        severity: str | None = None,
        device_id: str | None = None,
        device_type: str | None = None,
        rule_id: str | None = None,
        acknowledged: bool | None = None,
        assignee: str | None = None,
        shelved: bool | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Alarm]:
        """Those for which all holds that is given, newest first by the event time they were raised at.

        `shelved` goes by the database's clock. `start_ms` is included, `end_ms` is not; `after` is the `next`
        of the page before.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = Where()
        where.add("state = ?", state)
        where.add("severity = ?", severity)
        where.add("device = ?", None if device_id is None else device_key(device_id))
        where.add("device_type = ?", device_type)
        where.add("rule_id = ?", rule_id)
        where.add("acknowledged = ?", acknowledged)
        where.add("assignee = ?", assignee)
        where.add("coalesce(shelved_until > now(), false) = ?", shelved)
        where.add("start_at >= ?", start_ms)
        where.add("start_at < ?", end_ms)
        if after is not None:
            where.add("(start_at, alarm_id) < (?, ?)", *cursor(after, tuple[int, str]))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {ALARM_COLUMNS} FROM alarms {where}"
                f" ORDER BY start_at DESC, alarm_id DESC LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [alarm_of(row) for row in rows[:limit]]
        return Page(items, [items[-1].start_ms, items[-1].alarm_id] if len(rows) > limit else None)

    async def get(self, alarm_id: str) -> Alarm | None:
        """One alarm, active or cleared."""
        if "\0" in alarm_id:
            return None
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {ALARM_COLUMNS} FROM alarms WHERE alarm_id = $1", alarm_id
            )
        return None if row is None else alarm_of(row)

    async def life(self, alarm: Alarm, limit: int = LIFE_EVENTS) -> list[AlarmEvent]:
        """What happened to it, and what people said, in order; the last `limit` of it.

        Events that retention has removed are not told.
        """
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT time, kind, body FROM events WHERE device = $1 AND kind LIKE 'alarm\\_%'"
                " AND body ->> 'alarm_id' = $2 ORDER BY log_offset DESC LIMIT $3",
                device_key(alarm.device_id),
                alarm.alarm_id,
                limit,
            )
        return [AlarmEvent(row["time"], row["kind"], as_written(row["body"])) for row in reversed(rows)]

    async def active_devices(self, rule_id: str) -> list[str]:
        """Ids of the devices on which the rule has an active alarm, in order."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT device_id FROM alarms WHERE rule_id = $1 AND state = 'ACTIVE' ORDER BY 1",
                rule_id,
            )
        return [row["device_id"] for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many alarms are active, by severity."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT severity, count(*) AS n FROM alarms WHERE state = 'ACTIVE' GROUP BY 1 ORDER BY 1"
            )
        return {row["severity"]: row["n"] for row in rows}
