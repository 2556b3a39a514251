"""What peers are compared by: the mean of each number of each device over an hour, from the rollups."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sensorium.actors.messages import Location
from sensorium.actors.peer_watch import DETECTOR, HourMean
from sensorium.actors.records import Anomaly
from sensorium.storage.anomalies import COLUMNS, anomaly_of
from sensorium.storage.database import Pool, acquired

MAX_TYPES: Final = 10_000
MAX_MEANS: Final = 1_000_000
"""Of one type and hour, in one database: 100,000 devices of ten metrics. The last by id are left out."""

_TYPES: Final = f"""
(SELECT device_type FROM devices WHERE status = 'active' GROUP BY 1 ORDER BY 1 LIMIT $1) UNION
(SELECT device_type FROM anomalies WHERE detector = '{DETECTOR}' AND end_at IS NULL
 GROUP BY 1 ORDER BY 1 LIMIT $1)
"""
_MEANS: Final = """
SELECT d.device_id, d.device_type, d.location, d.metadata, m.name, r.total / r.n AS mean
FROM devices d
JOIN rollups_1h r ON r.device = d.device AND r.bucket = $2
JOIN rollup_metrics m ON m.id = r.metric AND m.kind = 'n'
WHERE d.device_type = $1 AND d.status = 'active' AND r.n > 0 ORDER BY d.device_id, m.name LIMIT $3
"""
_STANDING: Final = f"""
SELECT {COLUMNS} FROM anomalies WHERE detector = $1 AND device_type = $2 AND end_at IS NULL LIMIT $3
"""


class PeerMeans:
    """Over the databases of a log. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def types(self) -> list[str]:
        """The types of active devices, and of those with something that stands, in order."""
        found: set[str] = set()
        for pool in self._pools:
            async with acquired(pool) as connection:
                found.update(row["device_type"] for row in await connection.fetch(_TYPES, MAX_TYPES))
        return sorted(found)

    async def means(self, device_type: str, hour_ms: int) -> list[HourMean]:
        """Of all active devices of the type, over the hour that began then."""
        found = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(_MEANS, device_type, hour_ms, MAX_MEANS)
            for device_id, kind, location, metadata, metric, mean in rows:
                place = None if location is None else msgspec.convert(location, Location)
                found.append(HourMean(device_id, kind, place, metadata, metric, mean))
        return found

    async def standing(self, detector: str, device_type: str) -> list[Anomaly]:
        """What the detector has found at devices of the type that has not ended."""
        found = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(_STANDING, detector, device_type, MAX_MEANS)
            found += [anomaly_of(row) for row in rows]
        return found
