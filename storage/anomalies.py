"""The read side of anomalies: pages of a device's, newest first, and those that peers have open."""

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from sensorium.actors.models.info import Contribution
from sensorium.actors.placement import device_key
from sensorium.actors.records import Anomaly
from sensorium.storage.database import Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor
from sensorium.storage.spread import database_of_device

COLUMNS: Final = (
    "anomaly_id, device_id, device_type, metric, detector, severity, score, value, expected, readings,"
    " start_at, peak_at, end_at, end_reason, peers, explanation"
)
SEVERITIES: Final = ("warning", "major", "critical")
"""Mildest first."""


def anomaly_of(row: asyncpg.Record) -> Anomaly:
    """From `COLUMNS`, which stand in the order of the fields."""
    *fields, explanation = row
    told = msgspec.convert(explanation, tuple[Contribution, ...] | None)
    return msgspec.structs.replace(Anomaly(*fields), explanation=told)


class Anomalies:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def page(
        self,
        device_id: str,
        detector: str | None = None,
        metric: str | None = None,
        min_score: float | None = None,
        severity: str | None = None,
        ongoing: bool | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Anomaly]:
        """Those of the device for which all holds that is given, newest first by when they began.

        Args:
            min_score: of the peak, included.
            severity: at least this one.
            ongoing: whether they have not ended.
            start_ms, end_ms: they touch this range of event times; start included, end not.
            after: the `next` of the page before.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        check_limit(limit)
        where = Where()
        where.add("device = ?", device_key(device_id))
        where.add("detector = ?", detector)
        where.add("metric = ?", metric)
        where.add("score >= ?", min_score)
        if severity is not None:
            where.add("severity = ANY(?)", list(SEVERITIES[SEVERITIES.index(severity) :]))
        where.add("(end_at IS NULL) = ?", ongoing)
        where.add("coalesce(end_at, 'infinity') >= ?", start_ms)
        where.add("start_at < ?", end_ms)
        if after is not None:
            where.add("(start_at, anomaly_id) < (?, ?)", *cursor(after, tuple[int, str]))
        async with acquired(self._pools[database_of_device(device_id, len(self._pools))]) as connection:
            rows = await connection.fetch(
                f"SELECT {COLUMNS} FROM anomalies {where}"
                f" ORDER BY start_at DESC, anomaly_id DESC LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [anomaly_of(row) for row in rows[:limit]]
        return Page(items, [items[-1].start_ms, items[-1].anomaly_id] if len(rows) > limit else None)

    async def open_of(self, detector: str, device_ids: Sequence[str]) -> list[Anomaly]:
        """What a detector has found at these devices that goes on."""
        keys = [device_key(device_id) for device_id in device_ids]
        found = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(
                    f"SELECT {COLUMNS} FROM anomalies"
                    " WHERE detector = $1 AND device = ANY($2::bigint[]) AND end_at IS NULL",
                    detector,
                    keys,
                )
            found += [anomaly_of(row) for row in rows]
        return found
