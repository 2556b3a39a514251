"""`POST /api/data`: readings of many devices in one request, as gateways have them; answered item by item."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Request, Response

from sensorium.actors.errors import Overloaded
from sensorium.actors.messages import Outcome, Refusal
from sensorium.actors.router import ASK_PENDING
from sensorium.serve import examples
from sensorium.serve.body import NDJSON, json_bytes, lines, media_type
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import IngestResult
from sensorium.serve.problems import FieldError, Problem, pointer_to
from sensorium.serve.services import Services
from sensorium.serve.telemetry import Outcomes, item_identity, multi_status, not_in_time

MAX_ITEMS: Final = 10_000

SCHEMA: Final[dict[str, Any]] = {
    "DeviceTelemetry": {
        "title": "DeviceTelemetry",
        "description": "What a device sent: one reading or an array of them.",
        "type": "object",
        "required": ["device_id", "data"],
        "additionalProperties": False,
        "properties": {
            "device_id": {"type": "string", "minLength": 1, "maxLength": 128},
            "data": {
                "oneOf": [
                    {"$ref": "#/components/schemas/Telemetry"},
                    {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Telemetry"}},
                ]
            },
        },
    }
}
_BODY: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_ITEMS,
    "items": {"$ref": "#/components/schemas/DeviceTelemetry"},
}


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: str
    data: msgspec.Raw


_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_item = msgspec.json.Decoder(_Item).decode


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["data"])
    submit, now_ms, timeout_s = services.pipeline.telemetry, services.now_ms, services.timeout_s

    @router.post(
        "/api/data",
        status_code=201,
        response_model=None,
        summary="Send readings of many devices",
        responses=answer(
            IngestResult,
            "Committed; some may be duplicates.",
            examples.INGESTED,
            status=201,
            more={
                200: (IngestResult, "All of it was committed before.", examples.DUPLICATES),
                207: (IngestResult, "Some were refused; the others are committed.", examples.PARTLY),
            },
            problems=(413, 415),
        ),
        openapi_extra=body(_BODY, examples.BULK, NDJSON),
    )
    async def send(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(max_length=256, description="The same key and body are stored once."),
        ] = None,
    ) -> Response:
        """An array, or NDJSON with a line each; answered after the commit, with what became of each.

        What cannot be used is refused by itself: the others are committed. A request whose body is no array,
        or has too many items, is refused as a whole.
        """
        payload = await json_bytes(request, NDJSON)
        received_ms = now_ms()
        items = _items(payload, media_type(request) == NDJSON)
        if services.router.pending >= ASK_PENDING:
            raise Overloaded(f"{services.router.pending} messages wait for the hosts")
        outcomes = Outcomes(len(items))
        address = request.scope["path"]
        for index, raw in enumerate(items):
            try:
                item = _item(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                outcomes.done(index, Refusal("malformed_json", str(error)))
                continue
            if (refusal := _kept_out(services, item.device_id, received_ms)) is not None:
                outcomes.done(index, refusal)
                continue
            redelivery = None if idempotency_key is None else item_identity(idempotency_key, index)
            submit(
                address,
                item.device_id,
                bytes(item.data),
                received_ms,
                redelivery,
                outcomes.done,
                index,
                redelivered=redelivery is not None,
            )
        try:
            async with asyncio.timeout(timeout_s):
                await outcomes.all
        except TimeoutError:
            raise not_in_time(timeout_s) from None
        return multi_status(outcomes.by_index)

    return router


def _kept_out(services: Services, device_id: str, received_ms: int) -> Outcome | None:
    """Why a device's readings are not even tried now; None when they are."""
    if (error := services.router.failing(device_id)) is not None:
        return Refusal("unavailable", str(error))
    if services.limiter is not None and (wait_s := services.limiter.wait_s(device_id, received_ms)):
        return Refusal("rate_limited", f"more requests than the device may send; wait {wait_s:.3g} s")
    return None


def _items(payload: bytes, by_line: bool) -> Sequence[bytes]:
    """The items' JSON. Raises a problem when they are none, or too many."""
    if by_line:
        items: Sequence[bytes] = lines(payload)
    else:
        try:
            items = [bytes(raw) for raw in _split(payload)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            detail = f"not an array of items: {error}"
            raise Problem(
                422, "malformed_json", detail, errors=[FieldError(detail, pointer=pointer_to(()))]
            ) from None
    if not 1 <= len(items) <= MAX_ITEMS:
        detail = f"1 to {MAX_ITEMS:,} items, not {len(items):,}"
        raise Problem(422, "invalid", detail, errors=[FieldError(detail, pointer=pointer_to(()))])
    return items
