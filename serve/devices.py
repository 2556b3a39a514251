"""`/api/devices`: register, list, look at, change and retire devices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from sensorium.actors.errors import Unavailable
from sensorium.actors.merge_patch import merge_patch
from sensorium.actors.messages import Decommission, DeviceInfo, GetDevice, Location
from sensorium.actors.ports import Filter
from sensorium.actors.profile import PROCESS
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse
from sensorium.serve.describe import answer, body
from sensorium.serve.erasures import SHOWN, erased
from sensorium.serve.models import DeviceBody, DevicePatch, LocationBody
from sensorium.serve.pages import DevicePage, json_response, page_response
from sensorium.serve.problems import invalid_parameter, problem_of_validation
from sensorium.serve.query import OPEN_PREFIX, CursorQuery, DevicePath, PageLimitQuery, cursor_in
from sensorium.serve.services import Services
from sensorium.storage.erasures import Erasure

MERGE_PATCH = "application/merge-patch+json"
METADATA_PREFIX = "metadata."
MAX_QUERY_CHARS = 8_192
"""Of one parameter: the proxy in front refuses by itself a request whose head takes more than 16 KiB."""


METADATA_PARAMETER = {
    "name": "metadata.{key}",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "The value of a metadata key; dots lead into objects. Taken as JSON where it is JSON"
    ' (`metadata.floor=3` is a number, `metadata.floor="3"` text), as text otherwise.',
    "example": "a",
}


class StatusFilter(StrEnum):
    """Which devices by status."""

    ACTIVE = "active"
    DECOMMISSIONED = "decommissioned"
    ANY = "any"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])
    ask, timeout_s = services.router.ask, services.timeout_s

    @asynccontextmanager
    async def isolating(
        device_id: str, isolation: str | None, changes: bool | None = None
    ) -> AsyncIterator[None]:
        """Around what says so of a device. Raises `IsolationLimit`, or has the runtime look at once."""
        if services.cluster is not None and isolation == PROCESS:
            await services.cluster.room_for(device_id)
        yield
        if services.cluster is not None and (isolation is not None if changes is None else changes):
            with suppress(Unavailable):  # it looks by itself every two seconds
                await services.cluster.rebalance()

    @router.post(
        "/api/devices",
        status_code=201,
        response_model=None,
        summary="Register a device",
        responses=answer(DeviceInfo, "Registered.", examples.DEVICE, status=201, problems=(409, 413, 415)),
        openapi_extra=body(DeviceBody, examples.REGISTER),
    )
    async def register(request: Request) -> Response:
        """Registering a decommissioned device again revives it, with its history."""
        device = parse(await json_bytes(request), DeviceBody)
        async with isolating(device.device_id, device.isolation):
            info = await ask(device.value(), timeout_s)
        return json_response(info, 201, {"Location": f"/api/devices/{quote(device.device_id, safe='')}"})

    @router.get(
        "/api/devices",
        response_model=None,
        summary="List devices",
        responses=answer(DevicePage, "A page of devices by id.", examples.DEVICES),
        openapi_extra={
            OPEN_PREFIX: METADATA_PREFIX,
            "parameters": [METADATA_PARAMETER],
        },
    )
    async def list_devices(
        request: Request,
        device_type: Annotated[str | None, Query(max_length=64, alias="type")] = None,
        status: StatusFilter = StatusFilter.ACTIVE,
        metadata: Annotated[
            str | None,
            Query(max_length=MAX_QUERY_CHARS, description="JSON object that the metadata must contain."),
        ] = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Filters add up. `metadata.site=a` and `metadata={"site":"a"}` ask the same."""
        which = Filter(
            device_type,
            None if status is StatusFilter.ANY else status.value,
            metadata_filter(request, metadata),
        )
        page = await services.registry.page(which, cursor_in("devices", cursor), limit)
        return page_response(DevicePage, request, "devices", page.items, page.next)

    @router.get(
        "/api/devices/{device_id}",
        response_model=None,
        summary="Look at a device",
        responses=answer(DeviceInfo, "The device.", examples.DEVICE, problems=(404,)),
    )
    async def get_device(device_id: DevicePath) -> Response:
        """Registration and connectivity, from the device itself."""
        return json_response(await ask(GetDevice(device_id), timeout_s))

    @router.patch(
        "/api/devices/{device_id}",
        response_model=None,
        summary="Change a device",
        responses=answer(DeviceInfo, "The changed device.", examples.DEVICE, problems=(404, 409, 413, 415)),
        openapi_extra=body(DevicePatch, examples.PATCH, MERGE_PATCH),
    )
    async def patch_device(device_id: DevicePath, request: Request) -> Response:
        """A JSON merge patch (RFC 7396) of type, location, metadata and isolation.

        The device goes to a process of its own, and back among the others, while it is served.
        """
        patch = parse(await json_bytes(request, MERGE_PATCH), DevicePatch)
        old = DeviceInfo("", "", "", None, {}, 0, 0)
        if patch.needs_old:
            old = msgspec.convert(await ask(GetDevice(device_id), timeout_s), DeviceInfo)
        location = _merged(old.location, patch.location) if patch.touches_location else None
        async with isolating(device_id, patch.isolation, "isolation" in patch.model_fields_set):
            return json_response(await ask(patch.value(device_id, location, old.metadata), timeout_s))

    @router.delete(
        "/api/devices/{device_id}",
        status_code=204,
        response_model=None,
        summary="Decommission a device",
        responses={
            **answer(None, "Decommissioned.", status=204, problems=(404,)),
            **answer(Erasure, "Its data are being deleted.", SHOWN, status=202, problems=(404,)),
        },
    )
    async def decommission(
        device_id: DevicePath,
        purge: Annotated[
            bool, Query(description="Delete all its data, and that there was such a device.")
        ] = False,
    ) -> Response:
        """Its readings are refused from now on; its history stays readable, unless it is to be deleted."""
        if purge:
            return await erased(services, device_id, True)
        await ask(Decommission(device_id), timeout_s)
        return Response(status_code=204)

    return router


def metadata_filter(request: Request, whole: str | None) -> dict[str, Any]:
    """What the metadata must contain, by the parameters `metadata.KEY` and the object `whole`."""
    wanted: dict[str, Any] = {}
    if whole is not None:
        try:
            wanted = msgspec.json.decode(whole, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise invalid_parameter("metadata", "not a JSON object") from None
    for name, text in request.query_params.multi_items():
        if name.startswith(METADATA_PREFIX):
            steps = name.removeprefix(METADATA_PREFIX).split(".")
            if not all(steps):
                raise invalid_parameter(name, "names no key")
            wanted = merge_patch(wanted, _nested(steps, _scalar(text)))
    if "\\u0000" in msgspec.json.encode(wanted).decode():
        raise invalid_parameter("metadata", "holds the character NUL, which no metadata holds")
    return wanted


def _nested(steps: list[str], value: Any) -> dict[str, Any]:
    for step in reversed(steps):
        value = {step: value}
    return value  # type: ignore[no-any-return]


def _scalar(text: str) -> Any:
    try:
        return msgspec.json.decode(text, type=float | bool | int | str)
    except (msgspec.MsgspecError, UnicodeError):
        return text


def _merged(old: Location | None, patch: dict[str, Any] | None) -> Location:
    """The location after a merge patch; an empty one where nothing is left of it."""
    before = msgspec.to_builtins(old) if old is not None else {}
    try:
        return LocationBody.model_validate(merge_patch(before, patch) if patch is not None else {}).value()
    except ValidationError as error:
        raise problem_of_validation(error, "location") from None
