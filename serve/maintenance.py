"""`/api/maintenance`: when nothing is told of which devices."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Request, Response

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.maintenance import Maintenance, validate_maintenance
from sensorium.serve.body import json_bytes, parse_value, pointer_of_path
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import json_response
from sensorium.serve.problems import Problem, invalid_body, not_found
from sensorium.serve.services import ActionSide
from sensorium.storage.maintenance import MAX_WINDOWS, StoredMaintenance

IdPath = Annotated[
    str, Path(min_length=1, max_length=64, pattern=r"^[^\x00/]+$", description="The window's id.")
]

EXAMPLES: Final[dict[str, Any]] = {
    "once": {"name": "New pumps", "device_type": "pump", "from_ms": 0, "until_ms": 1_767_225_600_000},
    "weekly": {
        "name": "Cleaning of hall 3",
        "metadata": {"group": "hall 3"},
        "weekly": {
            "type": "schedule",
            "timezone": "Europe/Berlin",
            "days": ["sun"],
            "start": "04:00",
            "end": "06:00",
        },
    },
}
_SHOWN: Final = {
    "maintenance_id": "0198a6f2c1d47a3e",
    "spec": {
        "device_ids": [],
        "metadata": {},
        "weekly": None,
        "enabled": True,
        **EXAMPLES["once"],
    },
    "created_ms": 1_767_000_000_000,
    "updated_ms": 1_767_000_000_000,
}


class MaintenanceList(msgspec.Struct, frozen=True):
    """All maintenance windows, the oldest first."""

    items: list[StoredMaintenance]


def routes(side: ActionSide) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["actions"])
    maintenance = side.maintenance

    @router.post(
        "/api/maintenance",
        status_code=201,
        response_model=None,
        summary="Set a maintenance window",
        responses=answer(StoredMaintenance, "Set.", _SHOWN, status=201, problems=(409, 413, 415)),
        openapi_extra=body(Maintenance, EXAMPLES),
    )
    async def create(request: Request) -> Response:
        """Alarms are raised all the same. It holds for what is committed from now on."""
        stored = await maintenance.create(await _read(request))
        if stored is None:
            raise Problem(409, "conflict", f"there are {MAX_WINDOWS} maintenance windows already")
        return json_response(stored, 201, {"Location": f"/api/maintenance/{stored.maintenance_id}"})

    @router.get(
        "/api/maintenance",
        response_model=None,
        summary="List maintenance windows",
        responses=answer(MaintenanceList, "All of them.", {"items": [_SHOWN]}),
    )
    async def list_windows() -> Response:
        """Past ones too."""
        return json_response(MaintenanceList(list(await maintenance.list())))

    @router.get(
        "/api/maintenance/{maintenance_id}",
        response_model=None,
        summary="Look at a maintenance window",
        responses=answer(StoredMaintenance, "The window.", _SHOWN, problems=(404,)),
    )
    async def get_window(maintenance_id: IdPath) -> Response:
        """One of them."""
        return json_response(_found(await maintenance.get(maintenance_id), maintenance_id))

    @router.put(
        "/api/maintenance/{maintenance_id}",
        response_model=None,
        summary="Change a maintenance window",
        responses=answer(StoredMaintenance, "As it is now.", _SHOWN, problems=(404, 413, 415)),
        openapi_extra=body(Maintenance, EXAMPLES),
    )
    async def replace(maintenance_id: IdPath, request: Request) -> Response:
        """What was kept back by it stays so."""
        stored = await maintenance.replace(maintenance_id, await _read(request))
        return json_response(_found(stored, maintenance_id))

    @router.delete(
        "/api/maintenance/{maintenance_id}",
        status_code=204,
        response_model=None,
        summary="Delete a maintenance window",
        responses=answer(None, "Deleted.", status=204, problems=(404,)),
    )
    async def delete(maintenance_id: IdPath) -> Response:
        """It ends at once."""
        if not await maintenance.delete(maintenance_id):
            raise not_found(f"no maintenance window {maintenance_id}")
        return Response(status_code=204)

    return router


async def _read(request: Request) -> Maintenance:
    payload = await json_bytes(request)
    window = parse_value(payload, Maintenance)
    try:
        validate_maintenance(window)
    except InvalidMessage as error:
        place, _, detail = str(error).partition(": ")
        raise invalid_body(detail, pointer_of_path(place)) from None
    if b"\\u0000" in msgspec.json.encode(window):
        raise invalid_body("holds the character NUL, which cannot be stored", "#")
    return window


def _found(stored: StoredMaintenance | None, maintenance_id: str) -> StoredMaintenance:
    if stored is None:
        raise not_found(f"no maintenance window {maintenance_id}")
    return stored
