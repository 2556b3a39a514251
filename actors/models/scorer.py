"""What every model at work can do: judge the newest readings of many devices in one call."""

from collections.abc import Sequence
from typing import Final, Protocol

from sensorium.actors.models.features import Floats
from sensorium.actors.models.info import Contribution

TOP: Final = 5
"""Features that an explanation names at most."""


class Scorer(Protocol):
    """A model that judges readings. What it remembers of a device is a row of `state_size` numbers.

    Attributes:
        metrics: the names that the columns of a row of readings go with.
    """

    metrics: tuple[str, ...]
    state_size: int

    def reference(self, device_id: str) -> int:
        """The number of what was learnt about this device, or about all of them where it was not there."""
        ...

    def begin(self, references: Sequence[int]) -> Floats:
        """States of devices that were not judged before, one a row."""
        ...

    def step(self, states: Floats, rows: Floats, references: Sequence[int]) -> Floats:
        """Take one reading of each device into `states`, in place, and judge.

        A metric that is missing is NaN. Answers scores from 0 to 1, an anomaly from 0.5 on, and NaN where
        this reading decides nothing.
        """
        ...

    def explain(self, state: Floats, reference: int) -> list[Contribution]:
        """What speaks most for an anomaly in this state, the strongest first, at most `TOP`."""
        ...
