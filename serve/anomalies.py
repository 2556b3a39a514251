"""`/api/analytics/devices/{id}/anomalies`: what detectors found odd at a device."""

from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from sensorium.serve import analytics_examples as examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import AnomalyPage, page_response
from sensorium.serve.problems import not_found
from sensorium.serve.query import (
    CursorQuery,
    DevicePath,
    EndQuery,
    PageLimitQuery,
    StartQuery,
    cursor_in,
    time_range,
)
from sensorium.serve.services import Services

_DETECTORS: Final = "ensemble|zscore|robust|level_shift|seasonal|spectral|flatline|peers"
DetectorName = Annotated[
    str,
    Query(
        pattern=rf"^({_DETECTORS}|model:[A-Za-z0-9][A-Za-z0-9_.\-]{{0,63}}@[1-9][0-9]{{0,8}})$",
        description=f"{_DETECTORS.replace('|', ', ')}, or a model such as model:pumps@3.",
    ),
]


class AnomalyGrade(StrEnum):
    """How odd the peak is, mildest first: a score from 0.5, from 0.8, from 0.95."""

    WARNING = "warning"
    MAJOR = "major"
    CRITICAL = "critical"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["analytics"])

    @router.get(
        "/api/analytics/devices/{device_id}/anomalies",
        response_model=None,
        summary="What detectors found odd at a device",
        responses=answer(AnomalyPage, "A page of its anomalies.", examples.ANOMALIES, problems=(404,)),
    )
    async def list_anomalies(
        device_id: DevicePath,
        request: Request,
        start: StartQuery = None,
        end: EndQuery = None,
        detector: DetectorName | None = None,
        metric: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
        min_score: Annotated[float | None, Query(ge=0, le=1, description="Of the peak.")] = None,
        min_severity: Annotated[AnomalyGrade | None, Query(description="At least this one.")] = None,
        ongoing: Annotated[
            bool | None, Query(description="Only those that go on, or only ended ones.")
        ] = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Episodes of odd readings, newest first by their beginning. Filters add up; an episode counts that
        touches the range. Those of the detector `peers` compare hours of the device with devices alike.
        """
        start_ms, end_ms = time_range(start, end)
        page = await services.anomalies.page(
            device_id,
            detector,
            metric,
            min_score,
            None if min_severity is None else min_severity.value,
            ongoing,
            start_ms,
            end_ms,
            cursor_in("anomalies", cursor),
            limit,
        )
        if not page.items and await services.registry.get(device_id) is None:
            raise not_found(f"no device {device_id!r}")
        return page_response(AnomalyPage, request, "anomalies", page.items, page.next)

    return router
