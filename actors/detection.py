"""What detectors find at one device: episodes of odd readings, with a beginning, a peak and an end. Pure."""

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sensorium.actors.detectors.catalogue import make_detector
from sensorium.actors.detectors.score import AnomalySeverity, Score, severity_of
from sensorium.actors.episodes import Episodes, anomaly
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.profile import MAX_WATCHED, DetectorSpec
from sensorium.actors.records import Anomaly, Commit

if TYPE_CHECKING:
    from sensorium.actors.device import Device

LARGEST: Final = 1e100
"""Values beyond it are not judged: their squares would not fit. Nor is NaN, which no comparison takes."""


class Episode(msgspec.Struct, array_like=True):
    """The odd readings so far. `quiet` counts those as ever since the last of them."""

    start_ms: int
    peak_ms: int
    last_ms: int
    score: float
    value: float
    expected: float
    severity: AnomalySeverity
    readings: int = 1
    quiet: int = 0


class WatcherState(msgspec.Struct, array_like=True):
    """A watcher as a snapshot keeps it; `memory` is the detector's, as doubles."""

    metric: str
    spec: DetectorSpec
    memory: bytes
    episode: Episode | None


class Watcher(Episodes):
    """One detector on one metric, and its present episode."""

    __slots__ = ("detector", "episode", "metric", "position", "score", "spec", "threshold", "update")

    def __init__(self, metric: str, position: int, spec: DetectorSpec) -> None:
        self.metric = metric
        self.position = position
        self.spec = spec
        self.threshold = spec.threshold
        self.detector = make_detector(spec)
        self.update = self.detector.update
        self.episode: Episode | None = None
        self.score = 0.0
        """Of the metric's newest reading."""

    def record(self, device: "Device", episode: Episode, reason: str | None = None) -> Anomaly:
        """As `Episodes` says."""
        return anomaly(device, self.metric, self.spec.detector, episode, reason)

    def odd(self, device: "Device", score: Score, value: float, time_ms: int, effects: Commit | None) -> None:
        """A reading at or above the threshold: an episode begins, goes on or gets worse."""
        episode = self._goes_on(device, time_ms, effects)
        if episode is None:
            severity = severity_of(score.value)
            if severity is AnomalySeverity.NONE:
                # A threshold below the least severity is what the profile wants to hear of.
                severity = AnomalySeverity.WARNING
            self.episode = Episode(time_ms, time_ms, time_ms, score.value, value, score.expected, severity)
            self._begun(device, time_ms, effects)
        elif score.value > episode.score:
            self._peak(device, score.value, value, score.expected, time_ms, effects)


class Detection:
    """The watchers of one device. Where it has none, the device has no detection at all.

    Writes of an episode: its beginning, each rise of its severity, its end; so four at most for
    `episodes.QUIET` readings of a metric, and usually none.
    """

    __slots__ = ("gone", "watchers")

    def __init__(self, watchers: Sequence[Watcher] = (), gone: Sequence[Watcher] = ()) -> None:
        self.watchers = list(watchers)
        self.gone = list(gone)
        """Not wanted any more, with an episode whose end is to be told."""

    def judge(self, device: "Device", values: Sequence[Any], time_ms: int, effects: Commit | None) -> None:
        """Judge the newest reading, before the device has taken it in. Without effects nothing is told."""
        for watcher in self.watchers:
            value = values[watcher.position]
            if value is None or not -LARGEST < value < LARGEST:
                continue
            score = watcher.update(time_ms, value)
            watcher.score = score.value
            if score.value >= watcher.threshold:
                watcher.odd(device, score, value, time_ms, effects)
            elif watcher.episode is not None:
                watcher.as_ever(device, effects)

    def reaches(self, metric: str, detector: str | None, score: float) -> bool | None:
        """Whether the metric's newest reading, or its present episode, has at least this score.

        None: no such detector watches the metric.
        """
        found = None
        for watcher in self.watchers:
            if watcher.metric == metric and detector in (None, watcher.spec.detector):
                episode = watcher.episode
                if watcher.score >= score or (episode is not None and episode.score >= score):
                    return True
                found = False
        return found

    def settle(self, device: "Device", effects: Commit) -> None:
        """Tell the ends of episodes whose detector is gone."""
        for watcher in self.gone:
            watcher.end(device, "detector_removed", effects)
        self.gone.clear()

    def end(self, device: "Device", reason: str, effects: Commit) -> None:
        """End all episodes: the device is not watched any more."""
        self.settle(device, effects)
        for watcher in self.watchers:
            watcher.end(device, reason, effects)

    def dump(self) -> list[WatcherState]:
        """For a snapshot."""
        return [
            WatcherState(w.metric, w.spec, array("d", w.detector.dump()).tobytes(), w.episode)
            for w in (*self.watchers, *self.gone)
        ]


def restored(states: Iterable[WatcherState], metrics: MetricSet) -> Detection | None:
    """From what `dump` gave; None for nothing. What no longer fits begins anew."""
    watchers = []
    for state in states:
        watcher = Watcher(state.metric, metrics.index[state.metric], state.spec)
        memory = array("d")
        memory.frombytes(state.memory)
        try:
            watcher.detector.restore(memory.tolist())
        except ValueError:
            # Of a release whose detector kept something else.
            watcher = Watcher(state.metric, watcher.position, state.spec)
        watcher.episode = state.episode
        watchers.append(watcher)
    return Detection(watchers) if watchers else None


def fitted(
    old: Detection | None,
    specs: Iterable[DetectorSpec],
    asked: Iterable[tuple[str, str]],
    metrics: MetricSet,
) -> Detection | None:
    """The detection that a device with these metrics should have; `old` itself where that fits.

    Args:
        specs: what the profile says; of two for the same metric and detector the first counts.
        asked: (metric, detector) that rules ask for besides; "" for any detector, by default the ensemble.
    """
    if old is None and not specs and not asked:
        return None
    wanted = _wanted(specs, asked, metrics)
    if old is None:
        return Detection([Watcher(m, metrics.index[m], spec) for m, spec in wanted]) if wanted else None
    if [(w.metric, w.spec) for w in old.watchers] == wanted:
        return old
    had = {(w.metric, *_memory_of(w.spec)): w for w in old.watchers}
    watchers = []
    for metric, spec in wanted:
        watcher = had.pop((metric, *_memory_of(spec)), None)
        if watcher is None:
            watcher = Watcher(metric, metrics.index[metric], spec)
        watcher.spec, watcher.threshold = spec, spec.threshold
        watchers.append(watcher)
    gone = old.gone + [watcher for watcher in had.values() if watcher.episode is not None]
    return Detection(watchers, gone) if watchers or gone else None


def _memory_of(spec: DetectorSpec) -> tuple[str, float | None, str]:
    """What a detector's memory depends on; its threshold may change."""
    return spec.detector, spec.limit, spec.period


def _wanted(
    specs: Iterable[DetectorSpec], asked: Iterable[tuple[str, str]], metrics: MetricSet
) -> list[tuple[str, DetectorSpec]]:
    numbers = [n for n, kind in zip(metrics.names, metrics.kinds, strict=True) if kind == NUMBER]
    found: dict[tuple[str, str], DetectorSpec] = {}
    for spec in specs:
        own = msgspec.structs.replace(spec, metrics=())
        for metric in spec.metrics or numbers[:MAX_WATCHED]:
            if metric in numbers:
                found.setdefault((metric, spec.detector), own)
    for metric, detector in list(asked)[:MAX_WATCHED]:
        if metric in numbers and not (not detector and any(name == metric for name, _ in found)):
            detector = detector or "ensemble"
            found.setdefault((metric, detector), DetectorSpec(detector))
    return [(metric, spec) for (metric, _), spec in found.items()]
