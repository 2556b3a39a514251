"""`/api/devices/{id}/twin`: what people want of a device, and what it says of itself."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from sensorium.actors.messages import ChangeTwin, GetTwin
from sensorium.actors.twin import TwinInfo
from sensorium.actors.twin_documents import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_FIELDS, Document
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.replies import check_plain
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse_value
from sensorium.serve.describe import answer, body
from sensorium.serve.devices import MERGE_PATCH
from sensorium.serve.etags import etag, if_match, unchanged
from sensorium.serve.pages import TwinChange, json_response
from sensorium.serve.problems import invalid_body
from sensorium.serve.query import DevicePath
from sensorium.serve.services import Services

PATH: Final = "/api/devices/{device_id}/twin"

ByQuery = Annotated[
    str,
    Query(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$", description="Who writes it."),
]

_OBJECT: Final = {"type": "object", "additionalProperties": True}
_BOUNDS: Final = (
    f"A document takes at most {MAX_DOCUMENT_BYTES} bytes as JSON, {MAX_DEPTH} levels and {MAX_FIELDS}"
    " fields: beyond that it is refused as `twin_too_large`."
)
_PROBLEMS: Final = (404, 409, 412, 413, 415)


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["twin"])
    ask, timeout_s = services.router.ask, services.timeout_s

    async def twin_of(device_id: str) -> TwinInfo:
        return msgspec.convert(await ask(GetTwin(device_id), timeout_s), TwinInfo)

    async def written(
        device_id: str, request: Request, by: str, change: TwinChange, *, replace: bool
    ) -> TwinInfo:
        for name, document in (("desired", change.desired), ("reported", change.reported)):
            try:
                check_plain(document)
            except Undecodable as error:
                raise invalid_body(error.detail, f"#/{name}") from None
        message = ChangeTwin(
            device_id, change.desired, change.reported, by, replace=replace, matching=if_match(request)
        )
        return msgspec.convert(await ask(message, timeout_s), TwinInfo)

    @router.get(
        PATH,
        response_model=None,
        summary="Look at a twin",
        responses=answer(TwinInfo, "Both documents.", examples.TWIN, problems=(404,), more=_UNCHANGED),
    )
    async def get_twin(device_id: DevicePath, request: Request) -> Response:
        """From the device itself, with what it has yet to do. `ETag` names this state of both documents."""
        twin = await twin_of(device_id)
        return _shown(request, twin, twin.tags[0])

    def change_whole(method: str, summary: str, words: str) -> None:
        @router.api_route(
            PATH,
            methods=[method],
            response_model=None,
            summary=summary,
            description=f"{words} {_BOUNDS}",
            operation_id=f"{method.lower()}_twin",
            responses=answer(TwinInfo, "The twin after it.", examples.TWIN, problems=_PROBLEMS),
            openapi_extra=body(TwinChange, examples.TWIN_CHANGES, MERGE_PATCH),
        )
        async def change(device_id: DevicePath, request: Request, by: ByQuery = "api") -> Response:
            given = parse_value(await json_bytes(request, MERGE_PATCH), TwinChange)
            twin = await written(device_id, request, by, given, replace=method == "PUT")
            return json_response(twin, headers=etag(twin.tags[0]))

    def document(part: str, place: int, summary: str, whose: str) -> None:
        path = f"{PATH}/{part}"

        def change_of(values: dict[str, Any]) -> TwinChange:
            return TwinChange(desired=values) if part == "desired" else TwinChange(reported=values)

        @router.get(
            path,
            response_model=None,
            summary=f"Look at what {summary}",
            operation_id=f"get_twin_{part}",
            responses=answer(
                Document, "The document.", examples.TWIN_DOCUMENT, problems=(404,), more=_UNCHANGED
            ),
        )
        async def get_document(device_id: DevicePath, request: Request) -> Response:
            """With the time and the writer of each field."""
            twin = await twin_of(device_id)
            return _shown(request, getattr(twin, part), twin.tags[place])

        def change_document(method: str, verb: str, words: str) -> None:
            @router.api_route(
                path,
                methods=[method],
                response_model=None,
                summary=f"{verb} what {summary}",
                description=f"{words} {whose}. `If-Match` guards it. {_BOUNDS}",
                operation_id=f"{method.lower()}_twin_{part}",
                responses=answer(
                    Document, "The document after it.", examples.TWIN_DOCUMENT, problems=_PROBLEMS
                ),
                openapi_extra=body(_OBJECT, examples.TWIN_PATCHES, MERGE_PATCH),
            )
            async def change(
                device_id: DevicePath, request: Request, by: ByQuery = _WRITERS[part]
            ) -> Response:
                values = parse_value(await json_bytes(request, MERGE_PATCH), dict[str, Any])
                twin = await written(device_id, request, by, change_of(values), replace=method == "PUT")
                return json_response(getattr(twin, part), headers=etag(twin.tags[place]))

        change_document("PATCH", "Change", "A JSON merge patch (RFC 7396)")
        change_document("PUT", "Replace", "The whole document")

    change_whole("PATCH", "Change a twin", "JSON merge patches (RFC 7396) of one document or both, together.")
    change_whole("PUT", "Replace a twin", "One document or both, as they shall be.")
    document("desired", 1, "is desired", "of what people want of the device")
    document("reported", 2, "is reported", "of what the device says of itself")
    return router


_UNCHANGED: Final = {304: (None, "`If-None-Match` names the present one.", None)}
_WRITERS: Final = {"desired": "api", "reported": "http"}


def _shown(request: Request, value: Any, tag: str) -> Response:
    if unchanged(request, tag):
        return Response(status_code=304, headers=etag(tag))
    return json_response(value, headers=etag(tag))
