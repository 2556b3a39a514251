"""`DELETE /api/devices/{id}/data` and `/api/erasures`: deletion of a device's data, and how far it is."""

from typing import Annotated, Final
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.messages import EraseData
from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response, page_response
from sensorium.serve.problems import not_found
from sensorium.serve.query import CursorQuery, DevicePath, PageLimitQuery, cursor_in
from sensorium.serve.services import Services
from sensorium.storage.erasures import Erasure

SHOWN: Final = {
    "job_id": "0d3c1b7e5f6a4c0f9a1b2c3d4e5f6071",
    "device_id": "sensor-001",
    "registration": False,
    "state": "PROJECTING",
    "requested_ms": 1_767_225_600_000,
    "finished_ms": None,
    "counts": {"readings": 86_400, "events": 12, "alarms": 3, "commands": 1, "twins": 1, "dead_letters": 0},
    "waiting_for": ["influxdb"],
}


class ErasurePage(msgspec.Struct, frozen=True):
    """Deletions, the newest first. What one waits for is said of a single one only."""

    items: list[Erasure]
    next: str | None = None


async def erased(services: Services, device_id: str, registration: bool) -> Response:
    """Have the device forget, and say where to see how far the rest is."""
    job_id = uuid4().hex
    await services.router.ask(EraseData(device_id, job_id, registration), services.timeout_s)
    job = await services.erasures.get(job_id)
    assert job is not None, "committed with the answer"
    return json_response(job, 202, {"Location": f"/api/erasures/{job_id}"})


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])

    @router.delete(
        "/api/devices/{device_id}/data",
        status_code=202,
        response_model=None,
        summary="Delete a device's data",
        responses=answer(Erasure, "It is under way.", SHOWN, status=202, problems=(404,)),
    )
    async def delete_data(device_id: DevicePath) -> Response:
        """Readings, figures made of them, alarms, events, commands, the twin, dead letters, also in InfluxDB.
        The device stays registered and begins anew. It cannot be taken back.
        """
        return await erased(services, device_id, False)

    @router.get(
        "/api/erasures",
        response_model=None,
        summary="List deletions of data",
        responses=answer(ErasurePage, "A page of them.", {"items": [SHOWN], "next": None}),
    )
    async def list_erasures(
        request: Request,
        device_id: Annotated[str | None, Query(max_length=128, pattern=r"^[^\x00]*$")] = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Of one device or all."""
        page = await services.erasures.page(device_id, cursor_in("erasures", cursor), limit)
        return page_response(ErasurePage, request, "erasures", page.items, page.next)

    @router.get(
        "/api/erasures/{job_id}",
        response_model=None,
        summary="How far a deletion of data is",
        responses=answer(Erasure, "Rows deleted so far.", SHOWN, problems=(404,)),
    )
    async def get_erasure(job_id: Annotated[str, Path(min_length=1, max_length=64)]) -> Response:
        """`DONE` once nothing is left, in projections neither."""
        job = await services.erasures.get(job_id)
        if job is None:
            raise not_found(f"no deletion {job_id}")
        return json_response(job)

    return router
