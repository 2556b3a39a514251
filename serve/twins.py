"""`/api/devices/{id}/twin`: what people want of a device, and what it says of itself."""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from sensorium.actors.errors import NoHistory
from sensorium.actors.messages import ChangeTwin, GetTwin
from sensorium.actors.twin import TwinInfo
from sensorium.actors.twin_documents import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_FIELDS,
    Document,
    delta,
)
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.replies import check_plain
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse_value
from sensorium.serve.describe import answer, body, reference
from sensorium.serve.devices import MERGE_PATCH
from sensorium.serve.etags import etag, if_match, unchanged
from sensorium.serve.pages import (
    PastTwin,
    TwinChange,
    TwinChangeItem,
    TwinChangePage,
    json_response,
    page_response,
)
from sensorium.serve.problems import Problem, invalid_body, not_found
from sensorium.serve.query import (
    CursorQuery,
    DevicePath,
    EndQuery,
    PageLimitQuery,
    StartQuery,
    cursor_in,
    time_ms,
    time_range,
)
from sensorium.serve.services import Services
from sensorium.serve.telemetry import check_rate

PATH: Final = "/api/devices/{device_id}/twin"

ByQuery = Annotated[
    str,
    Query(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$", description="Who writes it."),
]

AtQuery = Annotated[
    str | None, Query(description="How it was then: ISO 8601 (UTC without offset) or epoch ms.")
]


class DocumentName(StrEnum):
    """One of the two documents."""

    DESIRED = "desired"
    REPORTED = "reported"


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

    async def known(device_id: str) -> None:
        if await services.registry.get(device_id) is None:
            raise not_found(f"no device {device_id} is registered")

    async def written(
        device_id: str, request: Request, by: str, change: TwinChange, *, replace: bool
    ) -> TwinInfo:
        for name, document in (("desired", change.desired), ("reported", change.reported)):
            try:
                check_plain(document)
            except Undecodable as error:
                raise invalid_body(error.detail, f"#/{name}") from None
        if change.reported is not None:
            check_rate(services, device_id)
        message = ChangeTwin(
            device_id, change.desired, change.reported, by, replace=replace, matching=if_match(request)
        )
        return msgspec.convert(await ask(message, timeout_s), TwinInfo)

    @router.get(
        PATH,
        response_model=None,
        summary="Look at a twin",
        responses=answer(
            {"oneOf": [reference(TwinInfo), reference(PastTwin)]},
            "Both documents; with `at` as they were then.",
            examples.TWIN,
            problems=(404,),
            more=_UNCHANGED,
        ),
    )
    async def get_twin(device_id: DevicePath, request: Request, at: AtQuery = None) -> Response:
        """From the device itself, with what it has yet to do. `ETag` names this state of both documents.

        With `at` from the log, as far as that goes back: `no_history` beyond it.
        """
        at_ms = time_ms("at", at)
        if at_ms is None:
            twin = await twin_of(device_id)
            return _shown(request, twin, twin.tags[0])
        await known(device_id)
        try:
            desired, reported = await services.twins.at(device_id, at_ms)
        except NoHistory as error:
            raise Problem(404, error.code, str(error)) from None
        return json_response(PastTwin(device_id, at_ms, desired, reported, delta(desired, reported)))

    @router.get(
        f"{PATH}/changes",
        response_model=None,
        summary="List a twin's changes",
        responses=answer(TwinChangePage, "A page, newest first.", examples.TWIN_CHANGE_PAGE, problems=(404,)),
    )
    async def list_changes(
        device_id: DevicePath,
        request: Request,
        document: Annotated[DocumentName | None, Query(description="Only of this one.")] = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """What was written, when and by whom, as old as retention leaves it."""
        await known(device_id)
        start_ms, end_ms = time_range(start, end)
        page = await services.twins.changes(
            device_id=device_id,
            document=None if document is None else str(document),
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("twin-changes", cursor),
            limit=limit,
        )
        items = [TwinChangeItem(*change) for change in page.items]
        return page_response(TwinChangePage, request, "twin-changes", items, page.next)

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
