"""Devices against their peers over one hour: what begins, goes on and ends. Pure; it reads and sends nothing.

Peers are devices of one type at one place: an entry of their metadata, or else a cell of the map.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.detectors.peers import compare_peers
from sensorium.actors.detectors.score import AnomalySeverity, severity_of
from sensorium.actors.messages import Location
from sensorium.actors.records import Anomaly

HOUR_MS: Final = 3_600_000
DETECTOR: Final = "peers"
CELL_DEGREES: Final = 0.1
"""The side of a cell: about 11 km of latitude."""
FORGOTTEN_MS: Final = 7 * 24 * HOUR_MS
"""A device that was silent for so long, or is gone, is odd no more."""
LEAST_SCATTER: Final = 0.005
"""The least deviation to assume, as a share of the median: what is below a sensor's accuracy says nothing."""


class HourMean(NamedTuple):
    """A metric of a device over one hour."""

    device_id: str
    device_type: str
    location: Location | None
    metadata: Mapping[str, Any]
    metric: str
    mean: float


def place_of(location: Location | None, metadata: Mapping[str, Any], key: str) -> str:
    """Where the device is: the metadata's entry `key`, else its cell; \"\" for nobody knows where."""
    named = metadata.get(key)
    if isinstance(named, str | int | float | bool):
        return f"={named}"
    if location is None or location.latitude is None or location.longitude is None:
        return ""
    return f"{location.latitude // CELL_DEGREES:.0f}/{location.longitude // CELL_DEGREES:.0f}"


def compared(
    means: Iterable[HourMean],
    standing: Iterable[Anomaly],
    hour_ms: int,
    place_key: str = "place",
    limit: float = 5.0,
    threshold: float = 0.5,
) -> list[Anomaly]:
    """What is to be reported of the hour that began at `hour_ms`: anomalies that begin, go on or end.

    The same again gives the same. A device whose group is too small, or that was silent, ends nothing, but
    after `FORGOTTEN_MS`.

    Args:
        standing: those of this detector that have not ended.
        limit: deviations of the group that score 0.5.
    """
    groups: dict[tuple[str, str, str], dict[str, HourMean]] = {}
    for mean in means:
        place = place_of(mean.location, mean.metadata, place_key)
        groups.setdefault((mean.device_type, place, mean.metric), {})[mean.device_id] = mean
    open_ = {(a.device_id, a.metric): a for a in standing}
    told = []
    for (device_type, _, metric), members in groups.items():
        values = {device_id: member.mean for device_id, member in members.items()}
        ordered = sorted(values.values())
        scatter = LEAST_SCATTER * abs(ordered[len(ordered) // 2]) + 1e-12
        for device_id, found in compare_peers(values, limit, scatter).items():
            before = open_.get((device_id, metric))
            score = found.score.value
            if score < threshold:
                if before is not None and hour_ms > before.start_ms:
                    told.append(_ended(before, hour_ms))
                continue
            if before is None:
                before = _began(device_id, device_type, metric, hour_ms)
            told.append(
                _odd(before, values[device_id], found.score.expected, score, len(values) - 1, hour_ms)
            )
    there = {(mean.device_id, metric) for (_, _, metric), group in groups.items() for mean in group.values()}
    for key, before in open_.items():
        if key not in there and hour_ms - _odd_until(before) >= FORGOTTEN_MS:
            told.append(_ended(before, hour_ms, "gap"))
    return told


def _odd_until(anomaly: Anomaly) -> int:
    return anomaly.start_ms + anomaly.readings * HOUR_MS


def _began(device_id: str, device_type: str, metric: str, hour_ms: int) -> Anomaly:
    identity = f"{device_id}\0{metric}\0{DETECTOR}\0{hour_ms}".encode()
    return Anomaly(
        anomaly_id=blake2b(identity, digest_size=16).hexdigest(),
        device_id=device_id,
        device_type=device_type,
        metric=metric,
        detector=DETECTOR,
        severity=AnomalySeverity.WARNING.value,
        score=0.0,
        value=0.0,
        expected=0.0,
        readings=0,
        start_ms=hour_ms,
        peak_ms=hour_ms,
    )


def _odd(before: Anomaly, mean: float, median: float, score: float, peers: int, hour_ms: int) -> Anomaly:
    hours = max((hour_ms - before.start_ms) // HOUR_MS + 1, before.readings)
    if score <= before.score:
        return msgspec.structs.replace(before, readings=hours)
    severity = severity_of(score)
    if severity is AnomalySeverity.NONE:
        severity = AnomalySeverity.WARNING
    return msgspec.structs.replace(
        before,
        severity=severity.value,
        score=score,
        value=mean,
        expected=median,
        readings=hours,
        peak_ms=hour_ms,
        peers=peers,
    )


def _ended(before: Anomaly, hour_ms: int, reason: str = "quiet") -> Anomaly:
    return msgspec.structs.replace(before, end_ms=min(hour_ms, _odd_until(before)), end_reason=reason)
