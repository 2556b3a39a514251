"""A device under a clock of its own that event time drives: for forks, for the past, for "why". Pure.

The device is the same `Device` that hosts run; only what surrounds it differs. Nothing it says goes anywhere.
"""

from typing import Any, Final

from sensorium.actors.device import Device, Surroundings
from sensorium.actors.messages import Message, Outcome, Reading, RefreshRules, TimerFired, Value
from sensorium.actors.records import Alarm, Commit, TwinState
from sensorium.actors.turns import Names
from sensorium.actors.twin import Twin
from sensorium.actors.twin_documents import Document

NEVER_DUE_MS: Final = 2**62


class Relived:
    """One device, its clock, and what its rules find.

    The clock moves on with each reading's event time and by `advance`, never back; timers fire on the way, at
    their due times. A reading at the very moment that a timer is due comes first.

    Attributes:
        now_ms: the clock.
        emitted: the alarms that the last call raised and cleared, each as it stood then, in order.
    """

    __slots__ = ("_around", "_due_ms", "_effects", "device", "emitted", "now_ms")

    def __init__(self, device: Device, around: Surroundings, now_ms: int) -> None:
        self.device = device
        self.now_ms = now_ms
        self.emitted: list[Alarm] = []
        self._around = around
        self._effects = Commit()
        self._due_ms = self._next_due_ms()

    def take(
        self, time_ms: int, key: int, flags: int, names: Names, values: list[Value], known: bool = False
    ) -> Outcome:
        """The turn of a reading, received at its own time or, when it is late, now. See `Device.read`."""
        if self.emitted:
            self.emitted = []
        if self._due_ms < time_ms:
            self._fire_until(time_ms - 1)
        if time_ms > self.now_ms:
            self.now_ms = time_ms
        reading = Reading(self.device.id, time_ms, self.now_ms, key, 0, values, flags)
        effects = self._effects
        outcome = self.device.read(reading, names, self.now_ms, self._around, effects, known)
        effects.readings.clear()
        if effects.events or effects.timers or effects.alarms or effects.dead_letters:
            self._absorb()
        return outcome

    def tell(self, message: Message) -> Outcome:
        """The turn of any other message, now."""
        self.emitted = []
        outcome = self.device.handle(message, self.now_ms, self._around, self._effects)
        self._absorb()
        return outcome

    def advance(self, to_ms: int) -> None:
        """Move the clock on, if it lies behind; timers that are due by then fire."""
        self.emitted = []
        self._fire_until(to_ms)
        self.now_ms = max(self.now_ms, to_ms)

    def surround(self, around: Surroundings) -> None:
        """Take other rules at once: alarms that none of them can clear are cleared."""
        self._around = around
        self.tell(RefreshRules(self.device.id))

    def turn_twin(self, time_ms: int, desired: dict[str, Any], reported: dict[str, Any]) -> None:
        """From then on its twin says this. Rules hear of it, the device is told nothing."""
        self.emitted = []
        self._fire_until(time_ms - 1)
        self.now_ms = max(self.now_ms, time_ms)
        device = self.device
        device.twin = Twin(TwinState(device.id, Document(values=desired), Document(values=reported)))
        device.twin.listening = False
        device.twin_changed(self._around, self.now_ms, self._effects)
        self._absorb()

    def _fire_until(self, to_ms: int) -> None:
        timers = self.device.watch.timers
        while self._due_ms <= to_ms:
            name, timer = min(timers.items(), key=lambda item: (item[1].due_ms, item[0]))
            self.now_ms = max(self.now_ms, timer.due_ms)
            fired = TimerFired(self.device.id, name, timer.due_ms)
            self.device.handle(fired, self.now_ms, self._around, self._effects)
            if timers.get(name) == timer:
                del timers[name]  # nobody claims it, and it must not fire for ever
            self._absorb()

    def _absorb(self) -> None:
        effects = self._effects
        self.emitted += effects.alarms
        if effects.timers:
            self._due_ms = self._next_due_ms()
        for kept in (effects.readings, effects.events, effects.registrations, effects.dead_letters):
            kept.clear()
        effects.alarms.clear()
        effects.timers.clear()
        effects.twins.clear()

    def _next_due_ms(self) -> int:
        return min((timer.due_ms for timer in self.device.watch.timers.values()), default=NEVER_DUE_MS)
