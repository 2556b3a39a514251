"""How good a device's data is: complete, in time, in range, alive and steady, each from 0 to 1. Pure.

It goes by hourly figures, so that it costs the same however many readings there are.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sensorium.actors.trend import DAY_MS, line_through

HOUR_MS: Final = 3_600_000
WEIGHTS: Final = {"completeness": 0.3, "timeliness": 0.2, "range": 0.2, "flatline": 0.15, "drift": 0.15}
FENCE: Final = 10.0
"""Deviations off the median, robust ones, from which an hour's least or greatest value is out of range."""
DRIFT_FROM: Final = 1.0
DRIFT_TO: Final = 5.0
"""A change over the range by so many deviations of the hours about the line begins to count, and is all."""
_MAD_TO_DEVIATION: Final = 1.4826
FORMULA: Final = (
    "score = sum of weight * part over the parts that are known, by the sum of their weights;"
    " completeness = readings, of each hour at most the usual number (median of the hours with any),"
    " by usual * hours;"
    " timeliness = share of readings stored within the lateness bound;"
    " range = share of readings not suspect by the profile * share of hours within 10 robust deviations;"
    " flatline = share of hours in which a metric that usually varies did vary;"
    " drift = 1 - (|change| / deviation of hours about the line - 1) / 4, within 0 and 1"
)


class Hour(msgspec.Struct, frozen=True):
    """A metric in one hour."""

    start_ms: int
    count: int
    least: float
    greatest: float
    mean: float


class Arrivals(msgspec.Struct, frozen=True):
    """How the newest readings of a range came: how many, stored late, suspect; delays to the commit."""

    readings: int
    late: int
    suspect: int
    median_delay_s: float | None
    p95_delay_s: float | None


class MetricQuality(msgspec.Struct, frozen=True):
    """One metric's parts; null where too little is known. `change` is that of the line over the range."""

    range: float | None
    flatline: float | None
    drift: float | None
    hours: int
    change: float | None


class DataQuality(msgspec.Struct, frozen=True):
    """The score with its parts, each from 0 to 1; null where nothing is known."""

    score: float | None
    completeness: float | None
    timeliness: float | None
    range: float | None
    flatline: float | None
    drift: float | None
    usual_readings_an_hour: float | None
    missing_hours: int
    metrics: dict[str, MetricQuality]


def data_quality(
    metrics: Mapping[str, Sequence[Hour]], counts: Mapping[int, int], hours: int, arrivals: Arrivals
) -> DataQuality:
    """The quality of one device's data.

    Args:
        metrics: of each number the hours that have any, in order.
        counts: readings by the start of their hour: of the metric that has most.
        hours: how many whole hours were looked at.
    """
    judged = {name: _metric(those) for name, those in metrics.items()}
    usual = _median(sorted(counts.values())) if counts else None
    completeness = None
    if hours:
        completeness = sum(min(n, usual) for n in counts.values()) / (usual * hours) if usual else 0.0
    timeliness = 1.0 - arrivals.late / arrivals.readings if arrivals.readings else None
    inside = _mean([m.range for m in judged.values()])
    if arrivals.readings:
        inside = (1.0 if inside is None else inside) * (1.0 - arrivals.suspect / arrivals.readings)
    parts = {
        "completeness": completeness,
        "timeliness": timeliness,
        "range": inside,
        "flatline": _mean([m.flatline for m in judged.values()]),
        "drift": _mean([m.drift for m in judged.values()]),
    }
    known = {name: value for name, value in parts.items() if value is not None}
    weight = sum(WEIGHTS[name] for name in known)
    score = sum(WEIGHTS[name] * value for name, value in known.items()) / weight if known else None
    return DataQuality(
        score=score,
        **parts,
        usual_readings_an_hour=usual,
        missing_hours=max(0, hours - len(counts)),
        metrics=judged,
    )


def _metric(hours: Sequence[Hour]) -> MetricQuality:
    if len(hours) < 5:
        return MetricQuality(None, None, None, len(hours), None)
    middle = _median(sorted(hour.mean for hour in hours))
    spread = _MAD_TO_DEVIATION * _median(
        sorted(max(abs(h.least - middle), abs(h.greatest - middle)) for h in hours)
    )
    inside = sum(
        max(abs(h.least - middle), abs(h.greatest - middle)) <= FENCE * spread + 1e-12 for h in hours
    )
    varied = sum(hour.greatest > hour.least for hour in hours if hour.count > 1)
    several = sum(hour.count > 1 for hour in hours)
    # What stands still most of the time is a set point or a state, and may.
    alive = varied / several if several and 2 * varied > several else None
    drift, change = _drift(hours)
    return MetricQuality(inside / len(hours), alive, drift, len(hours), change)


def _drift(hours: Sequence[Hour]) -> tuple[float | None, float | None]:
    line = line_through([(hour.start_ms, hour.mean) for hour in hours])
    if line is None:
        return None, None
    newest_ms = hours[-1].start_ms
    slope = line.slope_a_day / DAY_MS
    change = slope * (newest_ms - hours[0].start_ms)
    apart = sorted(abs(h.mean - line.value - slope * (h.start_ms - newest_ms)) for h in hours)
    deviation = _MAD_TO_DEVIATION * _median(apart)
    if line.slope_low <= 0.0 <= line.slope_high:
        return 1.0, change
    times = abs(change) / deviation if deviation else DRIFT_TO
    return 1.0 - min(max((times - DRIFT_FROM) / (DRIFT_TO - DRIFT_FROM), 0.0), 1.0), change


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
