"""Compares the devices of each type and place with each other, hour after hour, and tells those that are odd.

It writes nothing: a device commits what is told of it in a turn of its own. Telling the same again changes
nothing, so it may be ended at any time, and several at once do no harm.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import Accepted, Message, Outcome, ReportAnomaly
from sensorium.actors.peer_watch import DETECTOR, HOUR_MS, HourMean, compared
from sensorium.actors.records import Anomaly
from sensorium.ingest.pipeline import Router

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 60.0
SETTLED_MS: Final = 300_000
"""So long after an hour its rollups are read: late readings and the projection have come by then, mostly."""
AT_ONCE: Final = 200
"""Reports that are under way."""


class ReadsHours(Protocol):
    """The means of devices over an hour, and what stands, as `storage.peer_means.PeerMeans` has them."""

    async def types(self) -> Sequence[str]: ...
    async def means(self, device_type: str, hour_ms: int) -> list[HourMean]: ...
    async def standing(self, detector: str, device_type: str) -> list[Anomaly]: ...


class PeerWatch:
    """Runs until cancelled. `place_key`: the entry of the metadata that says where a device is."""

    def __init__(
        self, router: Router, hours: ReadsHours, now_ms: Callable[[], int], place_key: str = "place"
    ) -> None:
        self._router = router
        self._hours = hours
        self._now_ms = now_ms
        self._place_key = place_key
        self._done_ms = 0
        self._compared = self._told = self._refused = 0
        self._trouble = ""

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, the hour that was compared last, and why it cannot at present."""
        return {
            "compared": self._compared,
            "told": self._told,
            "refused": self._refused,
            "hour_ms": self._done_ms,
            "trouble": self._trouble,
        }

    async def run(self) -> None:
        """Compare each hour once it has settled."""
        while True:
            hour_ms = (self._now_ms() - SETTLED_MS) // HOUR_MS * HOUR_MS - HOUR_MS
            if hour_ms > self._done_ms:
                try:
                    await self.compare(hour_ms)
                except LogUnavailable as error:
                    self._trouble = str(error)
                    _log.warning("peers: %s; again in %.0f s", error, LOOK_EVERY_S)
                else:
                    self._trouble = ""
                    self._done_ms = hour_ms
            await asyncio.sleep(LOOK_EVERY_S)

    async def compare(self, hour_ms: int) -> None:
        """Compare the hour that began then, type after type."""
        for device_type in await self._hours.types():
            means = await self._hours.means(device_type, hour_ms)
            standing = await self._hours.standing(DETECTOR, device_type)
            self._compared += len(means)
            found = compared(means, standing, hour_ms, self._place_key)
            known = set(standing)
            changed = [anomaly for anomaly in found if anomaly not in known]
            for start in range(0, len(changed), AT_ONCE):
                await self._tell(changed[start : start + AT_ONCE])

    async def _tell(self, anomalies: Sequence[Anomaly]) -> None:
        left, outcomes = asyncio.Event(), []

        def done(_: Any, outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) == len(anomalies):
                left.set()

        for anomaly in anomalies:
            message: Message = ReportAnomaly(anomaly.device_id, anomaly)
            self._router.message(message, done, None)
        await left.wait()
        told = sum(isinstance(outcome, Accepted) for outcome in outcomes)
        self._told += told
        self._refused += len(outcomes) - told
