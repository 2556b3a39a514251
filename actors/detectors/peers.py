"""A device against its peers: the same type at the same place should say about the same."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from sensorium.actors.detectors.score import Score, half_at

FEWEST_PEERS: Final = 4
"""Devices that a group must have: with fewer, nobody can say who is the odd one."""
_MAD_TO_DEVIATION: Final = 1.4826


class PeerScore(msgspec.Struct, frozen=True, gc=False):
    """One device in its group: its mean's robust distance (signed, in deviations), and the score of that."""

    distance: float
    score: Score


def compare_peers(
    means: Mapping[str, float], limit: float = 5.0, scatter: float = 0.0
) -> dict[str, PeerScore]:
    """Each device's window mean (by device id, finite) against the group's median and MAD; `limit`
    scores 0.5.

    `scatter` is the least deviation to assume, in the metric's unit: what is below a sensor's accuracy is no
    difference. Empty for a group smaller than `FEWEST_PEERS`.
    """
    if len(means) < FEWEST_PEERS:
        return {}
    middle = _median(means.values())
    deviation = max(_MAD_TO_DEVIATION * _median(abs(mean - middle) for mean in means.values()), scatter)
    found = {}
    for device_id, mean in means.items():
        apart = mean - middle
        distance = apart / deviation if deviation else 0.0 if not apart else float("inf") * apart
        found[device_id] = PeerScore(distance, Score(half_at(abs(distance), limit), middle, "peers"))
    return found


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0
