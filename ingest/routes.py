"""Where devices behind other systems are found, written into their metadata for commands. Not a queue."""

from collections import OrderedDict
from typing import Any, Final

from sensorium.actors.messages import Outcome, Patch, Refusal
from sensorium.ingest.pipeline import Router

KNOWN_ROUTES: Final = 262_144
"""Devices of which is remembered what they were told; of one beyond it, it is told again."""


class Routes:
    """Tells devices, once, where they are found by one protocol.

    A device that is not registered yet is told again when it is heard of next. What is told is not waited
    for: it is a hint that any later message repeats.
    """

    def __init__(self, router: Router, downlink: str) -> None:
        self._router = router
        self._downlink = downlink
        self._told: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def tell(self, device_id: str, route: dict[str, Any]) -> None:
        """Have it in the device's metadata, unless it is there. Call it after the device's reading."""
        if self._told.get(device_id) == route:
            return
        self._told[device_id] = route
        if len(self._told) > KNOWN_ROUTES:
            self._told.popitem(last=False)
        patch = Patch(device_id, metadata={self._downlink: route})
        self._router.message(patch, self._answered, device_id)

    def _answered(self, device_id: str, outcome: Outcome) -> None:
        if isinstance(outcome, Refusal):
            self._told.pop(device_id, None)
