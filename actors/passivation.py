"""Lets devices leave a host's memory: the idle, and those beyond its bounds in number and in bytes.

A device with unsaved turns is saved first. When more come than can be saved, `room` makes turns wait.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import psutil

from sensorium.actors.activations import Activations, Leaving
from sensorium.actors.errors import Fenced, LogUnavailable
from sensorium.actors.records import Snapshot

SWEEP_EVERY_S: Final = 1.0
"""How often idle devices are looked for, and the process's memory is."""
BATCH: Final = 500
"""Devices that leave together: their snapshots are taken between two turns, and stored by one transaction."""
HEADROOM_SHARE: Final = 1 / 16
"""How far above its bounds a host may be before turns wait until devices have left."""
ROOM_WAIT_S: Final = 5.0
"""How long they wait at most: while nothing can be saved, a turn finds out by itself what is wrong."""
MEASURABLE_BYTES: Final = 32 << 20
"""Below it the estimate says too little about the process to be corrected by it."""
MOST_CORRECTION: Final = 4.0
"""Beyond it, something else than devices takes the memory, which evicting them would not give back."""

_Save = Callable[[Sequence[Snapshot]], Awaitable[None]]


def resident_bytes() -> int:
    """What this process takes in memory."""
    return int(_process(os.getpid()).memory_info().rss)


@lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


class Correction:
    """How many bytes the process takes for one that is estimated of its devices.

    Memory that was given back may stay with the process, so only a process that is as full as never before
    says anything.

    Args:
        estimated: what all devices of the process take, uncorrected, in bytes.
    """

    def __init__(self, estimated: Callable[[], int], resident: Callable[[], int] = resident_bytes) -> None:
        self._estimated = estimated
        self._resident = resident
        self._empty_bytes = resident()
        self._fullest_bytes = MEASURABLE_BYTES
        self.factor = 1.0

    def measure(self) -> None:
        """Learn from the process as it is now."""
        estimated_bytes = self._estimated()
        if estimated_bytes > self._fullest_bytes:
            self._fullest_bytes = estimated_bytes
            real = (self._resident() - self._empty_bytes) / estimated_bytes
            self.factor = min(max(real, 1.0), MOST_CORRECTION)


class Passivation:
    """The task by which devices leave.

    Args:
        ahead: held while memory may be ahead of the log.
        save: stores snapshots; raises `LogUnavailable` or `Fenced`.
    """

    def __init__(
        self,
        activations: Activations,
        ahead: asyncio.Lock,
        save: _Save,
        correction: Correction,
    ) -> None:
        self._activations = activations
        self._ahead = ahead
        self._save = save
        self._correction = correction
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._reasons: Counter[str] = Counter()
        self._saved = 0
        self._waits = 0

    async def run(self) -> None:
        """Let devices leave until cancelled."""
        clock_s = asyncio.get_running_loop().time
        while True:
            due_s = clock_s() + SWEEP_EVERY_S
            while await self._round():
                pass
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(max(due_s, clock_s())):
                    await self._wake.wait()

    async def room(self) -> None:
        """Return once there is room for a few more devices; nearly always at once."""
        if not any(self._beyond()):
            return
        self._wake.set()
        if not self._crowded():
            return
        self._waits += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_WAIT_S):
                while self._crowded():
                    self._left.clear()
                    self._wake.set()
                    await self._left.wait()

    def statistics(self) -> dict[str, Any]:
        """Who left why, how many of them had to be saved, and how full the memory is."""
        estimated_bytes = int(self._activations.estimated_bytes * self._correction.factor)
        return {
            "passivations": sum(self._reasons.values()),
            "evictions": dict(self._reasons),
            "passivations_saved": self._saved,
            "room_waits": self._waits,
            "active_bytes": estimated_bytes,
        }

    def _beyond(self) -> tuple[int, int]:
        return self._activations.beyond(self._correction.factor)

    def _crowded(self) -> bool:
        over, over_bytes = self._beyond()
        settings = self._activations.settings
        return (
            over > settings.max_active * HEADROOM_SHARE
            or over_bytes > settings.max_active_bytes * HEADROOM_SHARE
        )

    async def _round(self) -> bool:
        """Let a batch leave; whether there may be more to do at once."""
        activations = self._activations
        self._correction.measure()
        async with self._ahead:
            leaving = activations.let_go(BATCH, self._correction.factor)
        if leaving.snapshots and not await self._store(leaving):
            return False
        self._reasons.update(leaving.reasons)
        self._left.set()
        return sum(leaving.reasons.values()) == BATCH or any(self._beyond())

    async def _store(self, leaving: Leaving) -> bool:
        try:
            await self._save(leaving.snapshots)
        except (LogUnavailable, Fenced):
            # They stay, and the next sweep tries again; whoever asks for them learns what is wrong himself.
            self._activations.back(leaving)
            return False
        except BaseException:
            self._activations.back(leaving)
            raise
        self._activations.gone(leaving)
        self._saved += len(leaving.snapshots)
        return True
