"""`/api/analytics/devices/{id}/quality`, `…/uptime` and `…/trends`: how well a device does."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from sensorium.actors.data_quality import FORMULA, HOUR_MS, Hour, data_quality
from sensorium.actors.trend import DAY_MS, DaysLeft, Line, days_left, line_through, since_renewal
from sensorium.actors.uptime import Uptime, from_buckets, from_presence
from sensorium.serve import measure_examples as examples
from sensorium.serve.describe import answer
from sensorium.serve.measure_models import MetricTrend, QualityReport, TrendReport, UptimeReport
from sensorium.serve.pages import json_response
from sensorium.serve.problems import invalid_parameter, not_found
from sensorium.serve.query import DevicePath, EndQuery, StartQuery, metric_names, time_range
from sensorium.serve.services import Services

MAX_DAYS: Final = 92
DEFAULT_DAYS: Final = 7
MAX_CHANGES: Final = 10_000
"""Comings and goings that one answer goes by."""
PRESENCE: Final = ("online", "offline")
LIMITS: Final[tuple[tuple[str, float], ...]] = (
    ("*battery*volt*", 3.0),
    ("*battery*", 10.0),
    ("*rssi*", -120.0),
    ("*snr*", -15.0),
    ("*signal*", -120.0),
)
"""Metrics that wear down, by their names, and where they are of no use any more."""


def day_range(
    start: str | None, end: str | None, now_ms: int, days: int = DEFAULT_DAYS, width_ms: int = HOUR_MS
) -> tuple[int, int]:
    """The range in whole intervals, by default the last days; raises a problem beyond `MAX_DAYS`."""
    start_ms, end_ms = time_range(start, end)
    end_ms = now_ms if end_ms is None else end_ms
    end_ms = end_ms // width_ms * width_ms
    start_ms = end_ms - days * DAY_MS if start_ms is None else -(-start_ms // width_ms) * width_ms
    if not 0 < end_ms - start_ms <= MAX_DAYS * DAY_MS:
        raise invalid_parameter("start", f"the range is from 1 hour to {MAX_DAYS} days before `end`")
    return start_ms, end_ms


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["analytics"])

    async def known(device_id: str) -> None:
        if await services.registry.get(device_id) is None:
            raise not_found(f"no device {device_id!r}")

    @router.get(
        "/api/analytics/devices/{device_id}/quality",
        response_model=None,
        summary="The quality of a device's data",
        responses=answer(QualityReport, "A score with its parts.", examples.QUALITY, problems=(404,)),
    )
    async def quality(device_id: DevicePath, start: StartQuery = None, end: EndQuery = None) -> Response:
        """Complete by its usual rate, stored in time, in range, alive and steady, each from 0 to 1, over
        whole hours: the last seven days by default, 92 at most."""
        start_ms, end_ms = day_range(start, end, services.now_ms())
        await known(device_id)
        metrics = await _hours(services, device_id, start_ms, end_ms)
        counts: dict[int, int] = {}
        for those in metrics.values():
            for hour in those:
                counts[hour.start_ms] = max(counts.get(hour.start_ms, 0), hour.count)
        arrivals = await services.figures.arrivals(device_id, start_ms, end_ms)
        found = data_quality(metrics, counts, (end_ms - start_ms) // HOUR_MS, arrivals)
        return json_response(QualityReport(device_id, start_ms, end_ms, found, arrivals, FORMULA))

    @router.get(
        "/api/analytics/devices/{device_id}/uptime",
        response_model=None,
        summary="How long a device was there",
        responses=answer(UptimeReport, "Shares, times and outages.", examples.UPTIME, problems=(404,)),
    )
    async def uptime(device_id: DevicePath, start: StartQuery = None, end: EndQuery = None) -> Response:
        """By what it said of coming and going (`by` presence); of a device that never did, by the hours in
        which it sent (`by` readings)."""
        start_ms, end_ms = day_range(start, end, services.now_ms())
        await known(device_id)
        found = await _uptime(services, device_id, start_ms, end_ms)
        return json_response(UptimeReport(device_id, start_ms, end_ms, found))

    @router.get(
        "/api/analytics/devices/{device_id}/trends",
        response_model=None,
        summary="Battery, signal, and the days they last",
        responses=answer(TrendReport, "A line a metric.", examples.TRENDS, problems=(404,)),
    )
    async def trends(
        device_id: DevicePath,
        start: StartQuery = None,
        end: EndQuery = None,
        metrics: Annotated[
            str | None,
            Query(description="Names with commas; else battery, rssi, snr, signal."),
        ] = None,
        limit: Annotated[
            float | None,
            Query(allow_inf_nan=False, description="Where the days left end."),
        ] = None,
        rising: Annotated[bool, Query(description="Whether the limit is above.")] = False,
    ) -> Response:
        """A robust line (Theil-Sen) with its 95 % interval through the means of hours, or of days for ranges
        of more than a week: 30 days by default. A battery that rose by a third of its span was charged: the
        line begins there."""
        start_ms, end_ms = day_range(start, end, services.now_ms(), 30)
        names = metric_names(metrics)
        await known(device_id)
        every_s = 3600 if end_ms - start_ms <= 7 * DAY_MS else 86_400
        points = await _points(services, device_id, start_ms, end_ms, names, every_s)
        found = [
            _trend(name, those, _limit(name, limit), rising, names is None)
            for name, those in sorted(points.items())
            if names is not None or _limit(name, None) is not None
        ]
        return json_response(TrendReport(device_id, start_ms, end_ms, every_s, found))

    return router


async def _hours(services: Services, device_id: str, start_ms: int, end_ms: int) -> dict[str, list[Hour]]:
    limit = (end_ms - start_ms) // HOUR_MS + 1

    async def figure(name: str) -> Any:
        return await services.history.aggregate(device_id, start_ms, end_ms, None, name, 3600, limit, "asc")

    count, least, greatest, mean = [
        {bucket.start_ms: bucket.values for bucket in await figure(name)}
        for name in ("count", "min", "max", "mean")
    ]
    found: dict[str, list[Hour]] = {}
    for at_ms, means in mean.items():
        for name, value in means.items():
            low, high = least.get(at_ms, {}).get(name), greatest.get(at_ms, {}).get(name)
            if type(value) is float and type(low) is float and type(high) is float:
                n = int(count.get(at_ms, {}).get(name) or 0)
                found.setdefault(name, []).append(Hour(at_ms, n, low, high, value))
    return found


async def _uptime(services: Services, device_id: str, start_ms: int, end_ms: int) -> Uptime:
    events = services.events
    before = await events.page(device_id, PRESENCE, None, start_ms, "desc", None, 1)
    changes = await events.page(device_id, PRESENCE, start_ms, end_ms, "asc", None, MAX_CHANGES)
    if changes.next is not None:
        raise invalid_parameter("start", f"more than {MAX_CHANGES:,} comings and goings: choose less")
    if before.items or changes.items:
        said = [(event.time_ms, event.kind == "online") for event in changes.items]
        at_first = before.items[0].kind == "online" if before.items else None
        return from_presence(said, at_first, start_ms, end_ms)
    limit = (end_ms - start_ms) // HOUR_MS + 1
    buckets = await services.history.aggregate(device_id, start_ms, end_ms, None, "count", 3600, limit, "asc")
    return from_buckets([bucket.start_ms for bucket in buckets], HOUR_MS, start_ms, end_ms)


async def _points(
    services: Services, device_id: str, start_ms: int, end_ms: int, names: Sequence[str] | None, every_s: int
) -> dict[str, list[tuple[int, float]]]:
    buckets = await services.history.aggregate(
        *(device_id, start_ms, end_ms, names, "mean", every_s, 10_000, "asc")
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for bucket in buckets:
        for name, value in bucket.values.items():
            if type(value) is float:
                found.setdefault(name, []).append((bucket.start_ms + every_s * 500, value))
    return found


def _limit(name: str, asked: float | None) -> float | None:
    if asked is not None:
        return asked
    return next((limit for pattern, limit in LIMITS if fnmatchcase(name.lower(), pattern)), None)


def _trend(
    name: str, points: Sequence[tuple[int, float]], limit: float | None, rising: bool, wears: bool
) -> MetricTrend:
    kept = since_renewal(points) if wears and "battery" in name.lower() else points
    line: Line | None = line_through(kept)
    left: DaysLeft | None = None
    if line is not None and limit is not None:
        left = days_left(line, limit, falling=not rising)
    return MetricTrend(name, line, kept[0][0] if kept else None, limit, left)
