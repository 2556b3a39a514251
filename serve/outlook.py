"""`/api/analytics/devices/{id}/maintenance` and `/energy`: what history says of the future, and of waste."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Query, Response

from sensorium.actors.errors import NoHistory, Unavailable
from sensorium.actors.models.forecast import MIN_POINTS, Remaining, remaining
from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response
from sensorium.serve.problems import invalid_parameter, not_found
from sensorium.serve.query import (
    DevicePath,
    EndQuery,
    StartQuery,
    check_zone,
    interval_s,
    metric_names,
    time_range,
)
from sensorium.serve.services import Services

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
MAINTENANCE_DAYS: Final = 30
ENERGY_DAYS: Final = 7
BASELINE_DAYS: Final = 28
MAX_POINTS: Final = 10_000
MAX_COVARIATES: Final = 8
TOP_HOURS: Final = 5


class MaintenanceOutlook(msgspec.Struct, frozen=True):
    """When a metric will reach a threshold, by the line through its means by `interval_s`.

    Attributes:
        start_ms, end_ms: the first and the last interval that the line was fitted to.
        expected_ms, earliest_ms, latest_ms: `remaining` as times; None where it has none.
        formula: how that was reckoned, in words and figures.
    """

    device_id: str
    metric: str
    threshold: float
    direction: str
    confidence: float
    interval_s: int
    start_ms: int
    end_ms: int
    remaining: Remaining
    expected_ms: int | None
    earliest_ms: int | None
    latest_ms: int | None
    formula: str


class EnergyHour(msgspec.Struct, frozen=True):
    """An hour of the period: the metric's mean, what was to be expected, and what was wasted."""

    start_ms: int
    actual: float
    expected: float
    waste: float


class WasteAt(msgspec.Struct, frozen=True):
    """How much was wasted at an hour of the day, on working days or at weekends."""

    hour: int
    weekend: bool
    waste: float
    share: float


class Energy(msgspec.Struct, frozen=True):
    """What a consumer took, should have taken, and wasted, in the metric's unit times hours.

    Attributes:
        baseline_start_ms, baseline_end_ms, baseline_hours: what the expectation was learnt from.
        explained: the share of the baseline's variance that it explains; near 0, do not believe it.
        band: what errors are usual, from the 5th to the 95th hundredth of the baseline's.
        most: where most of the waste is.
    """

    device_id: str
    metric: str
    covariates: list[str]
    timezone: str
    baseline_start_ms: int
    baseline_end_ms: int
    baseline_hours: int
    explained: float
    band: tuple[float, float]
    hours: int
    actual: float
    expected: float
    waste: float
    waste_share: float
    most: list[WasteAt]
    formula: str
    items: list[EnergyHour]


VALUES: Final = (MaintenanceOutlook, Energy)
_AT_MS: Final = 1_767_225_600_000
_MAINTENANCE: Final[dict[str, Any]] = {
    "device_id": "pump-7",
    "metric": "vibration",
    "threshold": 7.1,
    "direction": "rising",
    "confidence": 0.9,
    "interval_s": 3600,
    "start_ms": _AT_MS - 30 * DAY_MS,
    "end_ms": _AT_MS,
    "remaining": {
        "outlook": "approaching",
        "remaining_s": 864000.0,
        "earliest_s": 800000.0,
        "latest_s": 960000.0,
        "level": 5.1,
        "slope_a_day": 0.2,
        "slope_error_a_day": 0.004,
        "points": 720,
        "independent_points": 310.0,
    },
    "expected_ms": _AT_MS + 864_000_000,
    "earliest_ms": _AT_MS + 800_000_000,
    "latest_ms": _AT_MS + 960_000_000,
    "formula": "(7.1 - 5.1) / 0.2 a day = 10.0 days",
}
_ENERGY: Final[dict[str, Any]] = {
    "device_id": "hall-3",
    "metric": "power_kw",
    "covariates": ["outside_temperature"],
    "timezone": "UTC",
    "baseline_start_ms": _AT_MS - 35 * DAY_MS,
    "baseline_end_ms": _AT_MS - 7 * DAY_MS,
    "baseline_hours": 672,
    "explained": 0.93,
    "band": [-1.1, 1.2],
    "hours": 168,
    "actual": 2010.0,
    "expected": 1890.0,
    "waste": 131.0,
    "waste_share": 0.065,
    "most": [{"hour": 23, "weekend": False, "waste": 40.0, "share": 0.31}],
    "formula": "waste = sum of (actual - expected) over the hours in which it is above 1.2",
    "items": [{"start_ms": _AT_MS - DAY_MS, "actual": 14.0, "expected": 9.5, "waste": 4.5}],
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["analytics"])

    @router.get(
        "/api/analytics/devices/{device_id}/maintenance",
        response_model=None,
        summary="Remaining time to a threshold",
        responses=answer(MaintenanceOutlook, "The outlook.", _MAINTENANCE, problems=(404,)),
    )
    async def maintenance(
        device_id: DevicePath,
        metric: Annotated[str, Query(min_length=1, description="A number that grows worse.")],
        threshold: Annotated[float, Query(allow_inf_nan=False, description="At which something is due.")],
        direction: Annotated[
            Literal["rising", "falling"], Query(description="Whether the threshold is above or below.")
        ] = "rising",
        confidence: Annotated[float, Query(ge=0.5, le=0.999, description="Of the interval.")] = 0.9,
        interval: Annotated[
            str | None, Query(description="Of the means that the line is fitted to; 1h by default.")
        ] = None,
        start: StartQuery = None,
        end: EndQuery = None,
    ) -> Response:
        """By default from the last 30 days. Begin at the last repair: a line through it says nothing."""
        start_ms, end_ms = time_range(start, end)
        end_ms = services.now_ms() if end_ms is None else end_ms
        start_ms = end_ms - MAINTENANCE_DAYS * DAY_MS if start_ms is None else start_ms
        every_s = interval_s(interval) or 3600
        await _known(services, device_id)
        rows = await _means(services, device_id, start_ms, end_ms, [metric], every_s)
        points = [(at_ms, values[metric]) for at_ms, values in rows]
        if len(points) < MIN_POINTS:
            raise NoHistory(
                f"{len(points)} intervals have numbers of {metric}; at least {MIN_POINTS} are needed"
            )
        times_s = [at_ms / 1000 + every_s / 2 for at_ms, _ in points]
        rising = direction == "rising"
        found = await asyncio.to_thread(
            remaining, times_s, [v for _, v in points], threshold, rising=rising, confidence=confidence
        )
        ends_ms = round(times_s[-1] * 1000)
        return json_response(
            MaintenanceOutlook(
                device_id,
                metric,
                threshold,
                direction,
                confidence,
                every_s,
                points[0][0],
                points[-1][0],
                found,
                _at(ends_ms, found.remaining_s),
                _at(ends_ms, found.earliest_s),
                _at(ends_ms, found.latest_s),
                _maintenance_formula(found, threshold),
            )
        )

    @router.get(
        "/api/analytics/devices/{device_id}/energy",
        response_model=None,
        summary="Energy above what is usual",
        responses=answer(Energy, "What was wasted.", _ENERGY, problems=(404,)),
    )
    async def energy(
        device_id: DevicePath,
        metric: Annotated[str, Query(min_length=1, description="A power, such as kW; no counter.")],
        covariates: Annotated[
            str | None, Query(description="Metrics of the device that it depends on, with commas.")
        ] = None,
        start: StartQuery = None,
        end: EndQuery = None,
        baseline_start: Annotated[
            str | None, Query(description="As `start`; by default 28 days before it.")
        ] = None,
        timezone: Annotated[str, Query(description="Whose hours and weekends count.")] = "UTC",
    ) -> Response:
        """By default of the last 7 days, against the 28 days before them.

        Expected is what was usual at the hour, on working days and at weekends each, and with the covariates
        as they were. Waste is what is above it, in hours in which that is more than nearly ever before.
        """
        start_ms, end_ms = time_range(start, end)
        end_ms = services.now_ms() if end_ms is None else end_ms
        start_ms = end_ms - ENERGY_DAYS * DAY_MS if start_ms is None else start_ms
        from_ms, _ = time_range(baseline_start, None)
        from_ms = start_ms - BASELINE_DAYS * DAY_MS if from_ms is None else from_ms
        if from_ms >= start_ms or start_ms >= end_ms:
            raise invalid_parameter("baseline_start", "must be before start, and start before end")
        if end_ms - from_ms > MAX_POINTS * HOUR_MS:
            raise invalid_parameter("baseline_start", f"the whole is more than {MAX_POINTS} hours")
        check_zone(timezone)
        names = metric_names(covariates) or []
        if len(names) > MAX_COVARIATES or metric in names:
            raise invalid_parameter("covariates", f"at most {MAX_COVARIATES}, and not the metric itself")
        await _known(services, device_id)
        rows = await _means(services, device_id, from_ms, end_ms, [metric, *names], 3600)
        return json_response(
            await asyncio.to_thread(_energy, device_id, metric, names, timezone, from_ms, start_ms, rows)
        )

    return router


async def _known(services: Services, device_id: str) -> None:
    if await services.registry.get(device_id) is None:
        raise not_found(f"no device {device_id} is registered")


async def _means(
    services: Services, device_id: str, start_ms: int, end_ms: int, names: Sequence[str], every_s: int
) -> list[tuple[int, dict[str, float]]]:
    """Means by interval, of the intervals that have all of the metrics. Raises a problem for too many."""
    if (end_ms - start_ms) / 1000 / every_s > MAX_POINTS:
        raise invalid_parameter("interval", f"the range has more than {MAX_POINTS} intervals of {every_s} s")
    buckets = await services.history.aggregate(
        device_id, start_ms, end_ms, list(names), "mean", every_s, MAX_POINTS, "asc"
    )
    found = []
    for bucket in buckets:
        values = {name: value for name in names if isinstance(value := bucket.values.get(name), float)}
        if len(values) == len(names):
            found.append((bucket.start_ms, values))
    return found


def _at(ends_ms: int, after_s: float | None) -> int | None:
    return None if after_s is None else ends_ms + round(after_s * 1000)


def _maintenance_formula(found: Remaining, threshold: float) -> str:
    slope, level = found.slope_a_day, found.level
    if found.outlook == "reached":
        return f"the line is at {level:.6g}, at or beyond {threshold:g}"
    if found.outlook == "none" or found.remaining_s is None:
        error = found.slope_error_a_day
        return (
            f"a trend of {slope:.3g} a day (standard error {error:.3g})"
            f" does not lead from {level:.6g} to {threshold:g}"
        )
    return f"({threshold:g} - {level:.6g}) / {slope:.6g} a day = {found.remaining_s / 86_400:.1f} days"


def _energy(
    device_id: str,
    metric: str,
    names: list[str],
    timezone: str,
    from_ms: int,
    start_ms: int,
    rows: Sequence[tuple[int, dict[str, float]]],
) -> Energy:
    try:
        import numpy as np

        from sensorium.actors.models import energy
    except ImportError as error:
        raise Unavailable("energy baselines need the extra `models` where the API runs") from error
    before = [row for row in rows if row[0] < start_ms]
    period = [row for row in rows if row[0] >= start_ms]
    if len(before) < energy.MIN_HOURS or not period:
        raise NoHistory(
            f"{len(before)} hours of the baseline and {len(period)} of the period have"
            f" {', '.join([metric, *names])}; at least {energy.MIN_HOURS} and 1 are needed"
        )
    zone = ZoneInfo(timezone)

    def clock(part: Sequence[tuple[int, dict[str, float]]]) -> tuple[list[int], list[int]]:
        local = [datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone) for at_ms, _ in part]
        return [t.hour for t in local], [t.weekday() for t in local]

    def columns(part: Sequence[tuple[int, dict[str, float]]]) -> dict[str, Any]:
        return {name: np.array([values[name] for _, values in part]) for name in names}

    baseline = energy.fit(*clock(before), np.array([values[metric] for _, values in before]), columns(before))
    hours, weekdays = clock(period)
    expected = baseline.expected(hours, weekdays, columns(period))
    items = []
    wasted: dict[tuple[int, bool], float] = {}
    for i, (at_ms, values) in enumerate(period):
        above = values[metric] - float(expected[i])
        waste = above if above > max(baseline.high, 0.0) else 0.0
        items.append(EnergyHour(at_ms, values[metric], float(expected[i]), waste))
        if waste:
            place = (hours[i], weekdays[i] >= 5)
            wasted[place] = wasted.get(place, 0.0) + waste
    total = sum(wasted.values())
    actual = sum(item.actual for item in items)
    most = sorted(wasted.items(), key=lambda pair: -pair[1])[:TOP_HOURS]
    return Energy(
        device_id,
        metric,
        names,
        timezone,
        before[0][0],
        start_ms,
        len(before),
        baseline.explained,
        (baseline.low, baseline.high),
        len(items),
        actual,
        sum(item.expected for item in items),
        total,
        total / actual if actual > 0 else 0.0,
        [WasteAt(hour, weekend, waste, waste / total) for (hour, weekend), waste in most],
        "waste = sum of (actual - expected) over the hours in which it is above"
        f" {max(baseline.high, 0.0):.6g}",
        items,
    )
