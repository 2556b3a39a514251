"""What every detector answers and how it is asked; not how any of them decides."""

import math
from enum import StrEnum
from typing import Final, Protocol

import msgspec

State = list[float]
"""A detector's memory as plain numbers: fit for JSON once NaN, which means "not yet", is taken for null."""


class AnomalySeverity(StrEnum):
    """How odd a reading is, by its score."""

    NONE = "none"
    WARNING = "warning"
    MAJOR = "major"
    CRITICAL = "critical"


WARNING_FROM: Final = 0.5
MAJOR_FROM: Final = 0.8
CRITICAL_FROM: Final = 0.95


def severity_of(score: float) -> AnomalySeverity:
    """The class of a score: warning from 0.5, major from 0.8, critical from 0.95."""
    if score < WARNING_FROM:
        return AnomalySeverity.NONE
    if score < MAJOR_FROM:
        return AnomalySeverity.WARNING
    return AnomalySeverity.MAJOR if score < CRITICAL_FROM else AnomalySeverity.CRITICAL


class Score(msgspec.Struct, frozen=True, gc=False):
    """A detector's answer to one reading: `value` from 0 (as ever) to 1, and what it had `expected`."""

    value: float
    expected: float
    detector: str

    @property
    def severity(self) -> AnomalySeverity:
        """The score's class: warning from 0.5, major from 0.8, critical from 0.95."""
        return severity_of(self.value)


class Detector(Protocol):
    """One metric of one device, reading by reading; memory does not grow with the number of readings.

    `value` must be finite. `restore(dump())` into a detector of the same settings continues exactly.
    """

    def update(self, time_ms: int, value: float) -> Score:
        """Judge the reading by what came before it, then learn from it."""
        ...

    def dump(self) -> State:
        """The whole memory; always as many numbers for the same settings."""
        ...

    def restore(self, state: State) -> None:
        """Take over a memory that `dump` gave. Raises ValueError when its length is not ours."""
        ...


def half_at(measure: float, limit: float) -> float:
    """Map a measure from 0 to infinity to 0..1 so that `limit` is 0.5: m² / (m² + limit²)."""
    if math.isinf(measure):
        return 1.0
    ratio = measure / limit
    if ratio > 1e150:
        return 1.0
    squared = ratio * ratio
    return squared / (squared + 1.0)


def check_length(state: State, expected: int) -> None:
    """Refuse a memory of another kind or other settings."""
    if len(state) != expected:
        raise ValueError(
            f"a state of {len(state)} numbers where {expected} belong; start with an empty detector"
        )
