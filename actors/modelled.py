"""What models remember of one device, and the episodes that they found at it. Pure, and needs no numpy.

A device whose type no model judges has none of it. What judges is `models.book`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sensorium.actors.detectors.score import AnomalySeverity, severity_of
from sensorium.actors.episodes import GAP_MS, Episodes, anomaly
from sensorium.actors.models.info import Contribution
from sensorium.actors.records import Anomaly, Commit, TailReading

if TYPE_CHECKING:
    from sensorium.actors.device import Device

DETECTOR: Final = "model:"
"""Begins the detector of an anomaly that a model found; NAME@VERSION follows."""
RISE: Final = 0.02
"""By how much a score has to rise for the peak to be told and explained anew."""
NEVER_MS: Final = -(2**62)


class ModelEpisode(msgspec.Struct, array_like=True):
    """Judgements of 0.5 and more so far. `quiet` counts the lower ones since the last of them; `metric` is
    what strayed most at the beginning."""

    metric: str
    start_ms: int
    peak_ms: int
    last_ms: int
    score: float
    value: float
    expected: float
    severity: AnomalySeverity
    explanation: list[Contribution]
    readings: int = 1
    quiet: int = 0


class ModelMemory(Episodes, msgspec.Struct, array_like=True):
    """What one model remembers of the device, and its present episode.

    `numbers` are a `Scorer`'s state: an array of doubles at work, their bytes before and in a snapshot.
    Readings before `last_ms` do not count any more.
    """

    label: str
    numbers: Any
    last_ms: int = NEVER_MS
    episode: ModelEpisode | None = None

    def found(
        self,
        device: "Device",
        score: float,
        time_ms: int,
        explanation: Sequence[Contribution] | None,
        effects: Commit | None,
    ) -> None:
        """A judgement of 0.5 or more: an episode begins, goes on or gets worse. See `asks`."""
        episode = self._goes_on(device, time_ms, effects)
        if episode is None:
            top = explanation[0] if explanation else Contribution("", "", 0.0, 0.0, 0.0)
            self.episode = ModelEpisode(
                *(top.metric, time_ms, time_ms, time_ms, score, top.value, top.expected),
                severity_of(score),
                list(explanation or ()),
            )
            self._begun(device, time_ms, effects)
        elif explanation:
            episode.explanation = list(explanation)
            self._peak(device, score, explanation[0].value, explanation[0].expected, time_ms, effects)

    def asks(self, score: float, time_ms: int) -> bool:
        """Whether `found` needs an explanation: at the beginning, and when the peak rises by `RISE`."""
        episode = self.episode
        return episode is None or time_ms - episode.last_ms > GAP_MS or score >= episode.score + RISE

    def record(self, device: "Device", episode: ModelEpisode, reason: str | None = None) -> Anomaly:
        """As `Episodes` says."""
        explanation = tuple(episode.explanation)
        return anomaly(device, episode.metric, DETECTOR + self.label, episode, reason, explanation)


class Modelled:
    """The memories of all models of one device.

    Attributes:
        missed: readings that the log had after the snapshot, which the models have to see before any other.
    """

    __slots__ = ("memories", "missed")

    def __init__(self, memories: Iterable[ModelMemory] = (), missed: Sequence[TailReading] = ()) -> None:
        self.memories = {memory.label: memory for memory in memories}
        self.missed = missed

    def fit(self, device: "Device", labels: Mapping[str, Any], effects: Commit | None) -> None:
        """Forget the models that are not at work any more, and end what they had found."""
        for label in self.memories.keys() - labels.keys():
            self.memories.pop(label).end(device, "detector_removed", effects)

    def end(self, device: "Device", reason: str, effects: Commit) -> None:
        """End all episodes: the device is not watched any more."""
        for memory in self.memories.values():
            memory.end(device, reason, effects)

    def dump(self) -> list[ModelMemory]:
        """For a snapshot."""
        return [msgspec.structs.replace(m, numbers=bytes(m.numbers)) for m in self.memories.values()]
