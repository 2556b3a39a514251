"""Figures over a fleet for analytics: who has sent, how alarms were answered, energy by rollups of days."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sensorium.actors.data_quality import Arrivals
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import ReadingFlag
from sensorium.actors.placement import device_key
from sensorium.storage._readings_sql import Committed, newest
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.database import Pool, acquired
from sensorium.storage.spread import database_of_device

MAX_READINGS: Final = 100_000
"""Of a device that are looked at one by one, the newest."""
MAX_ALARMS: Final = 100_000
MAX_DEVICES: Final = 100_000
"""In each database, the newest."""

# One probe of an index a device: a rollup of any day says that it has sent.
_ACTIVATION: Final = """
SELECT count(*) AS registered, count(*) FILTER (WHERE sent) AS activated,
       count(*) FILTER (WHERE recent) AS recent, count(*) FILTER (WHERE fresh) AS fresh,
       count(*) FILTER (WHERE fresh AND sent) AS fresh_activated
FROM (SELECT d.registered_at >= $2 AND d.registered_at < $3 AS fresh,
             EXISTS (SELECT FROM rollups_1d r WHERE r.device = d.device) AS sent,
             EXISTS (SELECT FROM rollups_1d r WHERE r.device = d.device
                     AND r.bucket >= $2::timestamptz - interval '1 day' AND r.bucket < $3
                     AND r.last_at >= $2) AS recent
      FROM devices d
      WHERE d.status = 'active' AND ($1::text IS NULL OR d.device_type = $1) AND d.registered_at < $3) v
"""
_FIRST: Final = f"""
SELECT extract(epoch FROM greatest(f.first_at - d.registered_at, interval '0'))::float8 AS wait_s
FROM (SELECT device, registered_at FROM devices
      WHERE status = 'active' AND ($1::text IS NULL OR device_type = $1)
          AND registered_at >= $2 AND registered_at < $3
      ORDER BY registered_at DESC LIMIT {MAX_DEVICES}) d
CROSS JOIN LATERAL (SELECT min(r.first_at) AS first_at FROM rollups_1d r
                    WHERE r.device = d.device AND r.bucket >= d.registered_at - interval '1 day'
                        AND r.bucket < d.registered_at + interval '92 days') f
WHERE f.first_at IS NOT NULL
"""
_ALARMS: Final = f"""
SELECT severity, acknowledged,
       CASE WHEN acknowledged_at IS NOT NULL
            THEN extract(epoch FROM greatest(acknowledged_at - start_at, interval '0'))
       END::float8 AS to_ack_s,
       extract(epoch FROM end_at - start_at)::float8 AS to_end_s
FROM alarms WHERE start_at >= $2 AND start_at < $3 AND ($1::text IS NULL OR device_type = $1)
ORDER BY start_at DESC, alarm_id DESC LIMIT {MAX_ALARMS}
"""
# A counter that fell was reset: what it shows is what was used since.
_COUNTER: Final = """
SELECT count(*) AS days, count(DISTINCT device) AS devices,
       sum(CASE WHEN before IS NULL THEN greatest(last - first, 0)
                WHEN last >= before THEN last - before ELSE last END)::float8 AS energy
FROM (SELECT r.device, r.first, r.last,
             lag(r.last) OVER (PARTITION BY r.device ORDER BY r.bucket, r.first_at) AS before
      FROM rollups_1d r JOIN rollup_metrics m ON m.id = r.metric AND m.kind = 'n' AND m.name = $4
      JOIN devices d ON d.device = r.device AND ($1::text IS NULL OR d.device_type = $1)
      WHERE r.bucket >= $2 AND r.bucket < $3) v
"""
_POWER: Final = """
SELECT count(*) AS days, count(DISTINCT r.device) AS devices,
       sum(r.total / r.n * extract(epoch FROM r.last_at - r.first_at) / 3600.0)::float8 AS energy
FROM rollups_1d r JOIN rollup_metrics m ON m.id = r.metric AND m.kind = 'n' AND m.name = $4
JOIN devices d ON d.device = r.device AND ($1::text IS NULL OR d.device_type = $1)
WHERE r.bucket >= $2 AND r.bucket < $3 AND r.n > 0
"""
_HAS_ROLLUPS: Final = "SELECT EXISTS (SELECT FROM projections WHERE name = 'rollups')"


def _arrivals(committed: Committed) -> str:
    """Of the device $1 between $2 and $3."""
    asked = ("$1", str(MAX_READINGS), "$2::timestamptz", "$3::timestamptz")
    return f"""
        SELECT count(*) AS readings, count(*) FILTER (WHERE flags & {ReadingFlag.LATE} <> 0) AS late,
               count(*) FILTER (WHERE flags & {ReadingFlag.SUSPECT} <> 0) AS suspect,
               percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP
                   (ORDER BY extract(epoch FROM committed_at - time)) AS delays
        FROM ({newest("r.flags, r.committed_at, r.time", *asked, committed=committed)}) r
    """


class Activation(NamedTuple):
    """Active devices that were registered before the end of a range: how many there are, have ever sent, have
    sent in it; were registered in it, and have sent of those. `waits_s`: from registration to first reading,
    of those."""

    registered: int
    activated: int
    recent: int
    fresh: int
    fresh_activated: int
    waits_s: list[float]


class AlarmTimes(NamedTuple):
    """An alarm: seconds from its start until it was acknowledged, and until it ended; None: not yet."""

    severity: str
    acknowledged: bool
    to_ack_s: float | None
    to_end_s: float | None


class Energy(NamedTuple):
    """What was used, in the metric's unit (of a power, times hours), over so many days of devices."""

    energy: float
    device_days: int
    devices: int


class FleetFigures:
    """Over the databases of a log. Every call raises `LogUnavailable` when one is away.

    `days` is what is known of each; other readers may share it.
    """

    def __init__(self, pools: Sequence[Pool], days: Sequence[CompactedDays] | None = None) -> None:
        self._pools = pools
        self._days = days or [CompactedDays() for _ in pools]

    async def arrivals(self, device_id: str, start_ms: int, end_ms: int) -> Arrivals:
        """How the newest `MAX_READINGS` readings of a device in the range came."""
        database = database_of_device(device_id, len(self._pools))
        days = self._days[database]
        async with acquired(self._pools[database]) as connection:
            await days.refresh(connection)
            statement = _arrivals(days.committed(start_ms, end_ms))
            row = await connection.fetchrow(statement, device_key(device_id), start_ms, end_ms)
        assert row is not None
        middle, most = row["delays"] or (None, None)
        return Arrivals(row["readings"], row["late"], row["suspect"], middle, most)

    async def activation(self, device_type: str | None, start_ms: int, end_ms: int) -> Activation:
        """Who has sent.

        Raises:
            InvalidMessage: no rollups are kept.
        """
        sums, waits = [0] * 5, []
        for pool in self._pools:
            async with acquired(pool) as connection:
                if not await connection.fetchval(_HAS_ROLLUPS):
                    raise InvalidMessage("no rollups are kept, by which this is counted (storage.rollups)")
                row = await connection.fetchrow(_ACTIVATION, device_type, start_ms, end_ms)
                assert row is not None
                sums = [a + b for a, b in zip(sums, row, strict=True)]
                waits += [
                    one["wait_s"] for one in await connection.fetch(_FIRST, device_type, start_ms, end_ms)
                ]
        registered, activated, recent, fresh, fresh_activated = sums
        return Activation(registered, activated, recent, fresh, fresh_activated, waits)

    async def alarms(self, device_type: str | None, start_ms: int, end_ms: int) -> list[AlarmTimes]:
        """Those that were raised in the range, the newest `MAX_ALARMS` of each database."""
        found = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(_ALARMS, device_type, start_ms, end_ms)
            found += [AlarmTimes(*row) for row in rows]
        return found

    async def energy(
        self, metric: str, counts_up: bool, device_type: str | None, start_ms: int, end_ms: int
    ) -> Energy:
        """What was used on whole days (UTC) from `start_ms` up to `end_ms`.

        Args:
            counts_up: the metric is a meter's; else a power.

        Raises:
            InvalidMessage: no rollups are kept.
        """
        total, days, devices = 0.0, 0, 0
        for pool in self._pools:
            async with acquired(pool) as connection:
                if not await connection.fetchval(_HAS_ROLLUPS):
                    raise InvalidMessage("no rollups are kept, by which this is counted (storage.rollups)")
                row = await connection.fetchrow(
                    _COUNTER if counts_up else _POWER, device_type, start_ms, end_ms, metric
                )
            assert row is not None
            total, days, devices = (
                total + (row["energy"] or 0.0),
                days + row["days"],
                devices + row["devices"],
            )
        return Energy(total, days, devices)
