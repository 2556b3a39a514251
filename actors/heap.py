"""Keeps Python's cycle collector off the devices: there are so many that a round through them is felt.

A full round goes through every object that has ever survived two: with 50,000 devices a pause of 0.1-0.2 s.
Devices hold no cycles and are freed as soon as they are dropped, so there is nothing there to find.
"""

import gc
from typing import Final

SETTLE_EVERY: Final = 2_000
"""New devices after which the heap is settled: few enough for the round to take some milliseconds."""


class Heap:
    """What has come since the last time goes out of the collector's sight, once garbage is out of it."""

    def __init__(self) -> None:
        self._new = 0

    def grew(self, devices: int) -> None:
        """So many devices were built."""
        self._new += devices
        if self._new >= SETTLE_EVERY:
            self._new = 0
            gc.collect()
            gc.freeze()
