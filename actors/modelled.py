"""What models remember of one device, and the episodes that they found at it. Pure, and needs no numpy.

A device whose type no model judges has none of it. What judges is `models.book`.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sensorium.actors.detection import GAP_MS
from sensorium.actors.detectors.score import AnomalySeverity, severity_of
from sensorium.actors.models.info import Contribution
from sensorium.actors.records import Anomaly, Commit, TailReading

if TYPE_CHECKING:
    from sensorium.actors.device import Device

DETECTOR: Final = "model:"
"""Begins the detector of an anomaly that a model found; NAME@VERSION follows."""
QUIET_JUDGEMENTS: Final = 20
"""Judgements as ever that end an episode."""
RISE: Final = 0.02
"""By how much a score has to rise for the peak to be told and explained anew."""
NEVER_MS: Final = -(2**62)

_ORDER: Final = list(AnomalySeverity)


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


class ModelMemory(msgspec.Struct, array_like=True):
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
        episode = self.episode
        if episode is not None and time_ms - episode.last_ms > GAP_MS:
            self.end(device, "gap", effects)
            episode = None
        if episode is None:
            top = explanation[0] if explanation else Contribution("", "", 0.0, 0.0, 0.0)
            self.episode = ModelEpisode(
                *(top.metric, time_ms, time_ms, time_ms, score, top.value, top.expected),
                severity_of(score),
                list(explanation or ()),
            )
            self._tell(device, "anomaly", time_ms, effects)
            return
        episode.readings += 1
        episode.quiet = 0
        episode.last_ms = time_ms
        if explanation:
            episode.score, episode.peak_ms = score, time_ms
            episode.value, episode.expected = explanation[0].value, explanation[0].expected
            episode.explanation = list(explanation)
            severity = severity_of(score)
            if _ORDER.index(severity) > _ORDER.index(episode.severity):
                episode.severity = severity
                self._tell(device, "anomaly_changed", time_ms, effects)

    def asks(self, score: float, time_ms: int) -> bool:
        """Whether `found` needs an explanation: at the beginning, and when the peak rises by `RISE`."""
        episode = self.episode
        return episode is None or time_ms - episode.last_ms > GAP_MS or score >= episode.score + RISE

    def as_ever(self, device: "Device", effects: Commit | None) -> None:
        """A judgement below 0.5 while an episode goes on."""
        assert self.episode is not None
        self.episode.quiet += 1
        if self.episode.quiet >= QUIET_JUDGEMENTS:
            self.end(device, "quiet", effects)

    def end(self, device: "Device", reason: str, effects: Commit | None) -> None:
        """The episode is over, if there is one."""
        episode, self.episode = self.episode, None
        if episode is not None and effects is not None:
            anomaly = self._record(device, episode, reason)
            effects.anomalies.append(anomaly)
            device.event("anomaly_ended", episode.last_ms, anomaly, effects)

    def _tell(self, device: "Device", kind: str, time_ms: int, effects: Commit | None) -> None:
        if effects is not None and self.episode is not None:
            anomaly = self._record(device, self.episode)
            effects.anomalies.append(anomaly)
            device.event(kind, time_ms, anomaly, effects)

    def _record(self, device: "Device", episode: ModelEpisode, reason: str | None = None) -> Anomaly:
        assert device.registration is not None
        detector = DETECTOR + self.label
        identity = f"{device.id}\0{episode.metric}\0{detector}\0{episode.start_ms}".encode()
        return Anomaly(
            anomaly_id=blake2b(identity, digest_size=16).hexdigest(),
            device_id=device.id,
            device_type=device.registration.device_type,
            metric=episode.metric,
            detector=detector,
            severity=episode.severity.value,
            score=episode.score,
            value=episode.value,
            expected=episode.expected,
            readings=episode.readings,
            start_ms=episode.start_ms,
            peak_ms=episode.peak_ms,
            end_ms=None if reason is None else episode.last_ms,
            end_reason=reason,
            explanation=tuple(episode.explanation),
        )


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
