"""The read side of twins: which devices may be told of theirs now."""

from collections.abc import Sequence

from sensorium.actors.twin import TWIN
from sensorium.storage.database import Pool, acquired


class Twins:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def ready(self, limit: int, downlink: str) -> list[tuple[str, str, int]]:
        """Devices that may be told now by a protocol, as `PgCommands.ready` says it of commands: each with
        `TWIN` and 0; at most `limit` of each database."""
        found: list[tuple[str, str, int]] = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(
                    "SELECT device_id FROM twins WHERE ready AND downlink = $2 ORDER BY device LIMIT $1",
                    limit,
                    downlink,
                )
            found += [(row["device_id"], TWIN, 0) for row in rows]
        return found
