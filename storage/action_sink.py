"""The projection of alarms' transitions into deliveries: what is sent about them, each exactly once a row.

Only decides and stores. Who sends is in `ingest.actions`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.action_plan import (
    COLLAPSED,
    SUPPRESSED,
    Delivery,
    Happening,
    Recent,
    plan,
    raise_id,
    told_before,
)
from sensorium.actors.actions import Transition, actions_of
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.records import Alarm
from sensorium.actors.rules import RuleSpec
from sensorium.storage import delivery_rows
from sensorium.storage._read import ALARM_COLUMNS, alarm_of
from sensorium.storage.database import Connection, connect
from sensorium.storage.maintenance import windows
from sensorium.storage.projection import LogEntry, ProjectionSettings
from sensorium.storage.rule_versions import CachedVersions

NAME: Final = "actions"
SETTINGS: Final = ProjectionSettings(NAME, page_entries=10_000)

SEEDED: Final = 20_000
"""Rows of a rule that are read to know what it has told lately."""

TRANSITIONS: Final = {
    "alarm_raised": Transition.RAISED,
    "alarm_changed": Transition.CHANGED,
    "alarm_escalated": Transition.ESCALATED,
    "alarm_cleared": Transition.CLEARED,
    "alarm_ack": Transition.ACKNOWLEDGED,
}

_ALARMS: Final = f"SELECT {ALARM_COLUMNS} FROM alarms WHERE alarm_id = ANY($1::text[])"
_METADATA: Final = "SELECT device_id, metadata FROM devices WHERE device_id = ANY($1::text[])"
_UNTOLD: Final = "SELECT delivery_id FROM deliveries WHERE delivery_id = ANY($1::text[]) AND state = ANY($2)"
_LATELY: Final = """
SELECT rule_id, device_id, transition, created_at, told FROM (
    SELECT rule_id, device_id, transition, created_at, max(number) AS number,
           bool_or(state NOT IN ('SUPPRESSED', 'COLLAPSED')) AS told
    FROM deliveries WHERE rule_id = $1 AND created_at > now() - interval '7 days' AND alarm_id <> ''
    GROUP BY rule_id, device_id, alarm_id, transition, created_at
    ORDER BY created_at DESC LIMIT $2) AS newest
ORDER BY created_at, number
"""


class ActionSink:
    """A `Sink`. Rules are read from the main database, which need not be the one of the log.

    `planned` is called when there is something new to send, before it is committed.
    """

    def __init__(self, main_dsn: str, planned: Callable[[], None] = lambda: None) -> None:
        self._main_dsn = main_dsn
        self._planned = planned
        self._main: Connection | None = None
        self._versions = CachedVersions()
        self._recent = Recent()
        self._seeded: set[str] = set()
        self._taken: list[LogEntry] = []

    async def open(self, connection: Connection) -> None:
        """As the port says."""
        self._taken.clear()
        # What was planned and not committed must not count as told.
        self._recent, self._seeded = Recent(), set()
        self._main = await connect(self._main_dsn, "sensorium-actions-rules")

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        """As the port says."""
        about_alarms = [entry for entry in entries if entry.kind in TRANSITIONS]
        for entry in about_alarms:
            if entry.kind != "alarm_ack":
                _alarm(entry)
        self._taken += about_alarms
        return False

    async def flush(self, transaction: Connection) -> None:
        """As the port says: the deliveries are there exactly once."""
        if not self._taken:
            return
        happenings = await self._happenings(transaction)
        assert self._main is not None
        versions = await self._versions.find(
            self._main, {(h.alarm.rule_id, h.alarm.rule_version) for h in happenings}
        )
        telling = [
            (happening, versions[key])
            for happening in happenings
            if (key := (happening.alarm.rule_id, happening.alarm.rule_version)) in versions
            and _names_actions(versions[key])
        ]
        if telling:
            for rule_id in sorted({happening.alarm.rule_id for happening, _ in telling} - self._seeded):
                rows = await transaction.fetch(_LATELY, rule_id, SEEDED)
                told_before(self._recent, (tuple(row) for row in rows))
                self._seeded.add(rule_id)
            untold = await self._untold(transaction, telling)
            quiet = await self._quiet(transaction, telling)
            planned: list[Delivery] = []
            for happening, spec in telling:
                for delivery in plan(happening, spec, self._recent, untold, quiet):
                    if delivery.state in (SUPPRESSED, COLLAPSED):
                        untold.add(delivery.delivery_id)
                    planned.append(delivery)
            if planned:
                await delivery_rows.insert(transaction, planned)
                self._planned()
        self._taken = []

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """As the port says. What has a row already is not sent again."""

    async def close(self) -> None:
        """As the port says."""
        main, self._main = self._main, None
        self._taken = []
        if main is not None:
            main.terminate()

    async def _happenings(self, transaction: Connection) -> list[Happening]:
        acknowledged = [e.body["alarm_id"] for e in self._taken if e.kind == "alarm_ack"]
        alarms = {}
        if acknowledged:
            rows = await transaction.fetch(_ALARMS, acknowledged)
            alarms = {row["alarm_id"]: alarm_of(row) for row in rows}
        happenings = []
        for entry in self._taken:
            assert entry.kind is not None
            acknowledges = entry.kind == "alarm_ack"
            alarm = alarms.get(entry.body["alarm_id"]) if acknowledges else _alarm(entry)
            if alarm is not None:
                happenings.append(
                    Happening(
                        *(entry.shard, entry.offset, entry.time_ms, entry.committed_ms),
                        *(TRANSITIONS[entry.kind], alarm),
                    )
                )
        return happenings

    async def _quiet(
        self, transaction: Connection, telling: Sequence[tuple[Happening, RuleSpec]]
    ) -> Callable[[Happening], str | None]:
        """Why nothing is told of a device, by the maintenance windows as they are now."""
        assert self._main is not None
        maintained = await windows(self._main)
        metadata: dict[str, Any] = {}
        if maintained.ask_for_metadata:
            ids = sorted({happening.alarm.device_id for happening, _ in telling})
            metadata = {row[0]: row[1] for row in await transaction.fetch(_METADATA, ids)}

        def quiet(happening: Happening) -> str | None:
            alarm = happening.alarm
            return maintained.reason(
                *(alarm.device_id, alarm.device_type, metadata.get(alarm.device_id, {})),
                happening.committed_ms,
            )

        return quiet

    async def _untold(
        self, transaction: Connection, telling: Sequence[tuple[Happening, RuleSpec]]
    ) -> set[str]:
        """Ids of deliveries about raises that were kept back, of alarms that end or are acknowledged now."""
        asked = [
            raise_id(happening.alarm.alarm_id, place)
            for happening, spec in telling
            if happening.transition in (Transition.CLEARED, Transition.ACKNOWLEDGED)
            for place, _ in actions_of(spec, happening.alarm.severity)
        ]
        if not asked:
            return set()
        rows = await transaction.fetch(_UNTOLD, asked, [SUPPRESSED, COLLAPSED])
        return {row["delivery_id"] for row in rows}


def _names_actions(spec: RuleSpec) -> bool:
    return bool(spec.actions) or any(level.actions for level in spec.levels)


def _alarm(entry: LogEntry) -> Alarm:
    try:
        alarm = msgspec.convert(entry.body, Alarm)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"an event {entry.kind} without an alarm: {error}") from None
    return alarm
