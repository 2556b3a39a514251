"""How SKAB's board judges outliers: every row of every experiment counts, all of them together."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


class Counts(NamedTuple):
    """Rows by what they are and what they were taken for."""

    hits: int = 0
    false_alarms: int = 0
    missed: int = 0
    quiet: int = 0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 when nothing was hit."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false_alarms + self.missed)

    @property
    def false_alarm_rate(self) -> float:
        """Of the rows without an anomaly, how many were taken for one."""
        return self.false_alarms / max(1, self.false_alarms + self.quiet)

    @property
    def missed_alarm_rate(self) -> float:
        """Of the rows with an anomaly, how many were not taken for one."""
        return self.missed / max(1, self.missed + self.hits)


def count(labels: Flags, found: Flags) -> Counts:
    """One experiment's counts."""
    return Counts(
        int((found & labels).sum()),
        int((found & ~labels).sum()),
        int((~found & labels).sum()),
        int((~found & ~labels).sum()),
    )


def total(counts: Iterable[Counts]) -> Counts:
    """The sum over experiments."""
    return Counts(*(sum(column) for column in zip(*counts, strict=True)))
