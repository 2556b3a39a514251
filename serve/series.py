"""`GET /api/devices/{id}/series`: as many points of each metric as a chart can show."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.downsample import Point, lttb
from sensorium.serve.pages import Series, SeriesMetric, json_response
from sensorium.serve.problems import not_found
from sensorium.serve.query import DevicePath, EndQuery, StartQuery, metric_names, time_range
from sensorium.serve.services import Services

MAX_RAW: Final = 50_000
"""Readings that are looked at themselves; of more, the ends of short intervals are."""
PAGE: Final = 10_000
INTERVALS_S: Final = (1, 5, 15, 60, 300, 900, 3600, 10_800, 43_200, 86_400, 604_800, 2_592_000)


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["data"])
    history, registry = services.history, services.registry

    @router.get(
        "/api/devices/{device_id}/series",
        response_model=None,
        summary="Points for a chart",
        responses=answer(Series, "The points.", examples.SERIES, problems=(404,)),
    )
    async def series(
        device_id: DevicePath,
        metrics: Annotated[
            str | None, Query(description="Names with commas; all numbers by default.")
        ] = None,
        start: StartQuery = None,
        end: EndQuery = None,
        points: Annotated[int, Query(ge=3, le=5_000, description="Of each metric, at most.")] = 500,
    ) -> Response:
        """Chosen so that a line through them looks like one through all (LTTB). Numbers only.

        Up to 50,000 readings are chosen from themselves (`source` raw). Of more, the least and the greatest
        value of short intervals, twice as many as points or more: no peak is lost, though it may stand
        anywhere in its interval.
        """
        start_ms, end_ms = time_range(start, end)
        names = metric_names(metrics)
        if await registry.get(device_id) is None:
            raise not_found(f"no device {device_id} is registered")
        (counted,) = await history.aggregate(device_id, start_ms, end_ms, names, "count", None, 1, "asc") or (
            None,
        )
        if counted is None:
            return json_response(Series(device_id, "raw", []))
        most = max(counted.values.values())
        found: dict[str, list[Point]] = {}
        source = "raw"
        if most <= MAX_RAW:
            await _read(services, device_id, start_ms, end_ms, names, found)
        else:
            source = await _ends(services, device_id, start_ms, end_ms, names, points, found)
        items = [
            SeriesMetric(name, await asyncio.to_thread(lttb, those, points))
            for name, those in sorted(found.items())
        ]
        return json_response(Series(device_id, source, items))

    return router


async def _read(
    services: Services,
    device_id: str,
    start_ms: int | None,
    end_ms: int | None,
    names: list[str] | None,
    found: dict[str, list[Point]],
) -> None:
    after = None
    while True:
        page = await services.history.readings(device_id, start_ms, end_ms, names, PAGE, "asc", after)
        for reading in page.items:
            for name, value in reading.values.items():
                if type(value) is float:
                    found.setdefault(name, []).append((reading.time_ms, value))
        if (after := page.next) is None:
            return


async def _ends(
    services: Services,
    device_id: str,
    start_ms: int | None,
    end_ms: int | None,
    names: list[str] | None,
    points: int,
    found: dict[str, list[Point]],
) -> str:
    """The least and the greatest value of each interval; how they were found."""
    asked = (device_id, start_ms, end_ms, names)
    oldest = await services.history.readings(*asked, 1, "asc", None)
    newest = await services.history.readings(*asked, 1, "desc", None)
    range_s = (newest.items[0].time_ms - oldest.items[0].time_ms) / 1000
    every_s = max((s for s in INTERVALS_S if s <= range_s / (2 * points)), default=INTERVALS_S[0])
    limit = int(range_s // every_s) + 2
    least = await services.history.aggregate(*asked, "min", every_s, limit, "asc")
    greatest = await services.history.aggregate(*asked, "max", every_s, limit, "asc")
    tops = {bucket.start_ms: bucket.values for bucket in greatest}
    for bucket in least:
        above = tops.get(bucket.start_ms, {})
        for name, low in bucket.values.items():
            high = above.get(name)
            if type(low) is not float or type(high) is not float:
                continue
            line = found.setdefault(name, [])
            line.append((bucket.start_ms, low))
            if high != low:
                line.append((bucket.start_ms + every_s * 500, high))
    return str(least.source)
