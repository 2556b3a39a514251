"""`/api/devices/{id}/state`: the whole device as it was at a past moment."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from sensorium.actors.errors import NoHistory
from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response
from sensorium.serve.problems import Problem, invalid_parameter
from sensorium.serve.query import DevicePath, time_ms
from sensorium.serve.services import Services
from sensorium.storage.past_states import PastState

_AT_MS: Final = 1_767_225_600_000
_WINDOW: Final = {
    "device_id": "sensor-001",
    "metric": "temperature",
    "start_ms": _AT_MS - 300_000,
    "end_ms": _AT_MS,
    "count": 5,
    "sum": 105.0,
    "mean": 21.0,
    "stddev": 0.5,
    "min": 20.5,
    "max": 21.5,
    "first": 20.5,
    "last": 21.5,
}


def _shown() -> dict[str, Any]:
    registration = {
        name: examples.DEVICE[name]
        for name in (
            *("device_id", "device_type", "status", "location", "metadata"),
            *("registered_ms", "updated_ms"),
        )
    }
    return {
        "device_id": "sensor-001",
        "at_ms": _AT_MS,
        "snapshot_ms": _AT_MS - 3_600_000,
        "replayed": 60,
        "state": {
            "registration": registration,
            "metrics": {"temperature": {"value": 21.5, "time_ms": _AT_MS - 1_000}},
            "windows": [{"length_s": 300.0, "metrics": {"temperature": _WINDOW}}],
            "alarms": [],
            "desired": examples.TWIN["desired"],
            "reported": examples.TWIN["reported"],
            "commands": [],
            "online": True,
        },
    }


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])

    @router.get(
        "/api/devices/{device_id}/state",
        response_model=None,
        summary="A device as it was",
        responses=answer(PastState, "The whole device.", _shown(), problems=(404,)),
    )
    async def state(
        device_id: DevicePath,
        at: Annotated[
            str,
            Query(description="What was committed up to then: ISO 8601 (UTC without offset) or epoch ms."),
        ],
    ) -> Response:
        """Registration, latest values, windows, alarms, twin, open commands and presence, rebuilt from a
        snapshot and the log. `no_history` where there was no such device then, or where what it takes to know
        is not kept any more.
        """
        at_ms = time_ms("at", at)
        assert at_ms is not None
        if at_ms > services.now_ms():
            raise invalid_parameter("at", "has yet to come")
        try:
            return json_response(await services.past_states.at(device_id, at_ms))
        except NoHistory as error:
            raise Problem(404, error.code, str(error)) from None

    return router
