"""The metric sets that are known to stand in the database, remembered up to a bound."""

from collections.abc import Collection, Iterable
from typing import Final

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.metrics import MetricSet, metric_set
from sensorium.storage.database import Connection

KNOWN_SETS: Final = 65_536
"""Beyond it all are forgotten, and read again as they are needed."""

_SELECT: Final = "SELECT id, names, kinds FROM metric_sets WHERE id = ANY($1::bigint[])"


class KnownSets:
    """Metric sets by id."""

    def __init__(self) -> None:
        self._by_id: dict[int, MetricSet] = {}

    def missing(self, used: Iterable[MetricSet]) -> dict[int, MetricSet]:
        """Those of `used` that may not be in the database yet, by id."""
        return {metrics.id: metrics for metrics in used if metrics.id not in self._by_id}

    def add(self, committed: dict[int, MetricSet]) -> None:
        """Remember sets of which the database has said that they are committed."""
        if len(self._by_id) + len(committed) > KNOWN_SETS:
            self._by_id = {}
        self._by_id |= committed

    async def find(self, connection: Connection, ids: Collection[int]) -> dict[int, MetricSet]:
        """The sets of these ids. The caller keeps the answer: a later call may forget."""
        found = {set_id: self._by_id[set_id] for set_id in ids if set_id in self._by_id}
        asked = [set_id for set_id in ids if set_id not in found]
        if asked:
            rows = await connection.fetch(_SELECT, asked)
            read = {row["id"]: metric_set(tuple(row["names"]), row["kinds"]) for row in rows}
            if lost := [set_id for set_id in asked if set_id not in read]:
                raise LogUnavailable(f"readings refer to metric sets that the database lacks: {lost}")
            self.add(read)
            found |= read
        return found
