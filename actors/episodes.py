"""Episodes of what is odd at a device: begun, worse, ended, and told each time. Pure."""

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Protocol

from sensorium.actors.detectors.score import AnomalySeverity, severity_of
from sensorium.actors.records import Anomaly, Commit

if TYPE_CHECKING:
    from sensorium.actors.device import Device
    from sensorium.actors.models.info import Contribution

QUIET: Final = 20
"""Judgements as ever that end an episode, so that one that flickers is one row and not many."""
GAP_MS: Final = 3_600_000
"""What is odd this much later than the last that was begins an episode of its own."""

_ORDER: Final = list(AnomalySeverity)


class Span(Protocol):
    """An episode so far. `quiet` counts the judgements as ever since the last that was odd."""

    start_ms: int
    peak_ms: int
    last_ms: int
    score: float
    value: float
    expected: float
    severity: AnomalySeverity
    readings: int
    quiet: int


class Episodes:
    """Whoever judges a device: it has an `episode` or None, and says how to `record` one."""

    __slots__ = ()
    episode: Any

    def record(self, device: "Device", episode: Any, reason: str | None = None) -> Anomaly:
        """The episode as it is told; with a reason it has ended."""
        raise NotImplementedError

    def as_ever(self, device: "Device", effects: Commit | None) -> None:
        """Judged as nothing odd while an episode goes on."""
        self.episode.quiet += 1
        if self.episode.quiet >= QUIET:
            self.end(device, "quiet", effects)

    def end(self, device: "Device", reason: str, effects: Commit | None) -> None:
        """The episode is over, if there is one. Without effects nothing is told, here as everywhere."""
        episode, self.episode = self.episode, None
        if episode is not None:
            self._tell(device, "anomaly_ended", episode.last_ms, effects, episode, reason)

    def _begun(self, device: "Device", time_ms: int, effects: Commit | None) -> None:
        self._tell(device, "anomaly", time_ms, effects, self.episode)

    def _goes_on(self, device: "Device", time_ms: int, effects: Commit | None) -> Any:
        """The episode that something odd belongs to, counted there; None when it begins one."""
        episode = self.episode
        if episode is None:
            return None
        if time_ms - episode.last_ms > GAP_MS:
            self.end(device, "gap", effects)
            return None
        episode.readings += 1
        episode.quiet = 0
        episode.last_ms = time_ms
        return episode

    def _peak(
        self,
        device: "Device",
        score: float,
        value: float,
        expected: float,
        time_ms: int,
        effects: Commit | None,
    ) -> None:
        """The oddest so far of the episode; told when that makes it more severe."""
        episode = self.episode
        episode.score, episode.value, episode.expected, episode.peak_ms = score, value, expected, time_ms
        severity = severity_of(score)
        if _ORDER.index(severity) > _ORDER.index(episode.severity):
            episode.severity = severity
            self._tell(device, "anomaly_changed", time_ms, effects, episode)

    def _tell(
        self,
        device: "Device",
        kind: str,
        time_ms: int,
        effects: Commit | None,
        episode: Span,
        reason: str | None = None,
    ) -> None:
        if effects is not None:
            anomaly = self.record(device, episode, reason)
            effects.anomalies.append(anomaly)
            device.event(kind, time_ms, anomaly, effects)


def anomaly(
    device: "Device",
    metric: str,
    detector: str,
    episode: Span,
    reason: str | None,
    explanation: "tuple[Contribution, ...]" = (),
) -> Anomaly:
    """The row of an episode; its id follows from the device, the metric, the detector and the start."""
    assert device.registration is not None
    identity = f"{device.id}\0{metric}\0{detector}\0{episode.start_ms}".encode()
    return Anomaly(
        anomaly_id=blake2b(identity, digest_size=16).hexdigest(),
        device_id=device.id,
        device_type=device.registration.device_type,
        metric=metric,
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
        explanation=explanation,
    )
