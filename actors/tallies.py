"""How often an active alarm's condition was met, counted in memory and written now and then. Pure.

A row for each reading would be a write for each; so an alarm's row is at most `WRITE_AFTER_MS` of event time
behind. What is not written yet is in the device's snapshot, and counted again from the log after a crash.
"""

from typing import Final

import msgspec

from sensorium.actors.records import Alarm

WRITE_AFTER_MS: Final = 60_000


class Tally:
    """Counts of one active alarm. Attributes are as in `Alarm`; from `due_ms` on its row is written again."""

    __slots__ = ("due_ms", "last_met_ms", "last_reading_ms", "met", "readings")

    def __init__(self, alarm: Alarm) -> None:
        self.met = alarm.met
        self.readings = alarm.readings
        self.last_met_ms = alarm.start_ms if alarm.last_met_ms is None else alarm.last_met_ms
        self.last_reading_ms = alarm.start_ms if alarm.last_reading_ms is None else alarm.last_reading_ms
        self.due_ms = self.last_reading_ms + WRITE_AFTER_MS

    def count(self, holds: bool, time_ms: int) -> bool:
        """A reading was judged; whether the row should be written again.

        Readings of one millisecond count once: after a crash only their times tell which were counted.
        """
        if time_ms <= self.last_reading_ms:
            return False
        self.readings += 1
        self.last_reading_ms = time_ms
        if holds:
            self.met += 1
            self.last_met_ms = time_ms
        return time_ms >= self.due_ms

    def onto(self, alarm: Alarm) -> Alarm:
        """The alarm with these counts, about to be written."""
        self.due_ms = self.last_reading_ms + WRITE_AFTER_MS
        return msgspec.structs.replace(
            alarm,
            met=self.met,
            readings=self.readings,
            last_met_ms=self.last_met_ms,
            last_reading_ms=self.last_reading_ms,
        )

    def dump(self) -> tuple[int, int, int, int]:
        """For a snapshot."""
        return self.met, self.readings, self.last_met_ms, self.last_reading_ms

    def restore(self, dump: tuple[int, int, int, int]) -> None:
        """Take in what a snapshot has, unless the row is newer."""
        if dump[3] >= self.last_reading_ms:
            self.met, self.readings, self.last_met_ms, self.last_reading_ms = dump
