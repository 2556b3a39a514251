"""`/api/devices/{id}/data` inwards, and what the device itself knows: latest values and rolling windows."""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response

from sensorium.actors.errors import Overloaded
from sensorium.actors.messages import Duplicate, GetLatest, GetWindow, Latest, Outcome, Refusal, WindowInfo
from sensorium.actors.router import ASK_PENDING
from sensorium.ingest.decode import TelemetryDecoder
from sensorium.ingest.errors import Undecodable
from sensorium.serve import examples
from sensorium.serve.body import NDJSON, json_bytes, lines, media_type
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import JSON, IngestResult, ItemResult, json_response
from sensorium.serve.problems import RETRY_AFTER_S, FieldError, Problem
from sensorium.serve.query import DevicePath
from sensorium.serve.services import Asks, Services
from sensorium.serve.short_way import short

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode

_ACCEPTED: Final = ItemResult("accepted")
_DUPLICATE: Final = ItemResult("duplicate")
_ONE_ACCEPTED: Final = msgspec.json.encode(IngestResult(1, 0, [_ACCEPTED]))
_ONE_DUPLICATE: Final = msgspec.json.encode(IngestResult(0, 1, [_DUPLICATE]))

_STATUS: Final = {"unregistered": 404, "not_found": 404, "decommissioned": 409, "conflict": 409}
"""Of refusals by code; all others are about the content: 422."""

_TELEMETRY: Final[dict[str, Any]] = {
    "oneOf": [
        {"$ref": "#/components/schemas/Telemetry"},
        {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Telemetry"}},
    ]
}
SCHEMA: Final[dict[str, Any]] = {
    "Telemetry": {
        "title": "Telemetry",
        "description": "Metrics by name at one time. Without `timestamp` it is the time of receipt.",
        "type": "object",
        "properties": {
            "timestamp": {
                "anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}],
                "description": "ISO 8601 (UTC without offset) or epoch milliseconds.",
            }
        },
        "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string"}]},
    }
}


class Outcomes:
    """Collects what becomes of a request's readings; `all` is done when the last is."""

    __slots__ = ("_left", "all", "by_index")

    def __init__(self, count: int) -> None:
        self.by_index: list[Outcome | None] = [None] * count
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count

    def done(self, index: int, outcome: Outcome) -> None:
        """Called by the pipeline after the commit."""
        self.by_index[index] = outcome
        self._left -= 1
        if not self._left and not self.all.done():
            self.all.set_result(None)


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["data"])
    ask, timeout_s, now_ms = services.router.ask, services.timeout_s, services.now_ms
    submit = services.pipeline.telemetry
    decode = TelemetryDecoder(services.bounds).decode

    @router.post(
        "/api/devices/{device_id}/data",
        status_code=201,
        response_model=None,
        summary="Send readings",
        responses=answer(
            IngestResult,
            "Committed; some may be duplicates.",
            examples.INGESTED,
            status=201,
            more={
                200: (IngestResult, "All of it was committed before.", examples.DUPLICATES),
                207: (IngestResult, "Of lines some were refused; the others are committed.", examples.PARTLY),
            },
            problems=(404, 409, 413, 415),
        ),
        openapi_extra=body(_TELEMETRY, examples.TELEMETRY, NDJSON),
    )
    @short("Idempotency-Key")
    async def send(
        device_id: DevicePath,
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                max_length=256,
                description="Identifies readings without a timestamp: the same key and body are stored once.",
            ),
        ] = None,
    ) -> Response:
        """One reading or an array of them, answered after the commit.

        A reading with a timestamp can be sent again without harm: it is recognised as a duplicate. What
        cannot be decoded refuses the whole request. What the device refuses, such as a metric that changes
        its type, is reported by item in `results`, and the others are committed.

        As NDJSON each line is a reading by itself: what cannot be decoded is refused alone, and the answer is
        207 when some were refused.
        """
        payload = await json_bytes(request, NDJSON)
        received_ms = now_ms()
        by_line = media_type(request) == NDJSON
        items = lines(payload) or [payload] if by_line else _items(payload, received_ms, decode)
        _check_way(services.router, device_id)
        check_rate(services, device_id)
        outcomes = Outcomes(len(items))
        address = request.scope["path"]
        for index, item in enumerate(items):
            redelivery = None if idempotency_key is None else item_identity(idempotency_key, index)
            submit(
                address,
                device_id,
                item,
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
        if by_line:
            return multi_status(outcomes.by_index)
        return _response(outcomes.by_index, isinstance(items, _Array))

    @router.get(
        "/api/devices/{device_id}/data/latest",
        response_model=None,
        summary="Latest values",
        responses=answer(Latest, "The newest value of each metric.", examples.LATEST, problems=(404,)),
    )
    async def latest(device_id: DevicePath) -> Response:
        """By event time, from the device itself."""
        return json_response(await ask(GetLatest(device_id), timeout_s))

    @router.get(
        "/api/devices/{device_id}/window/{metric}",
        response_model=None,
        summary="Rolling window",
        responses=answer(WindowInfo, "The window's aggregates.", examples.WINDOW, problems=(404,)),
    )
    async def window(
        device_id: DevicePath,
        metric: str,
        length_s: Annotated[
            float | None, Query(gt=0, allow_inf_nan=False, description="Which of the profile's windows.")
        ] = None,
    ) -> Response:
        """Of a number, from the device itself; the profile's first window unless `length_s` names another."""
        return json_response(await ask(GetWindow(device_id, metric, length_s), timeout_s))

    return router


def _check_way(router: Asks, device_id: str) -> None:
    """Refuse readings that would only wait. The router keeps what it is given, so the bound is here."""
    if (error := router.failing(device_id)) is not None:
        raise error
    if router.pending >= ASK_PENDING:
        raise Overloaded(f"{router.pending} messages wait for the hosts")


def check_rate(services: Services, device_id: str) -> None:
    """Count a request of the device. Raises a `Problem` (429) for one that is over its limit."""
    limiter = services.limiter
    if limiter is not None and (wait_s := limiter.wait_s(device_id, services.now_ms())):
        raise Problem(429, "rate_limited", "More requests than the device may send.", retry_after_s=wait_s)


class _Array(list[bytes]):
    """The payloads of the items of an array."""


def _items(payload: bytes, received_ms: int, decode: Any) -> list[bytes]:
    """The payloads to submit: an array's elements one by one, if all of them can be decoded."""
    if not payload.lstrip().startswith(b"["):
        return [payload]
    try:
        decode(payload, received_ms)
    except Undecodable:
        return [payload]
    return _Array(bytes(raw) for raw in _split(payload))


def item_identity(idempotency_key: str, index: int) -> int:
    """What an item of a request is known by when the request comes again."""
    digest = blake2b(f"{idempotency_key}\0{index}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def not_in_time(timeout_s: float) -> Problem:
    """What is said of readings whose commit was waited for in vain."""
    return Problem(
        503,
        "unavailable",
        f"Not committed within {timeout_s:.0f} s, though it still may be. Sending it again is safe"
        " with a timestamp in each reading or an Idempotency-Key.",
        retry_after_s=RETRY_AFTER_S,
    )


def multi_status(outcomes: Sequence[Outcome | None]) -> Response:
    """What became of items that stand by themselves: 201, 200 (all duplicates) or 207 (some refused)."""
    results = [_result(outcome) for outcome in outcomes]
    refused = sum(isinstance(outcome, Refusal) for outcome in outcomes)
    duplicates = results.count(_DUPLICATE)
    ingested = IngestResult(len(results) - duplicates - refused, duplicates, results, refused)
    return json_response(ingested, 207 if refused else 200 if duplicates == len(results) else 201)


def _response(outcomes: list[Outcome | None], is_array: bool) -> Response:
    if len(outcomes) == 1 and not isinstance(outcomes[0], Refusal):
        if isinstance(outcomes[0], Duplicate):
            return Response(_ONE_DUPLICATE, 200, media_type=JSON)
        return Response(_ONE_ACCEPTED, 201, media_type=JSON)
    results = [_result(outcome) for outcome in outcomes]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refused:
        first = refused[0]
        raise Problem(
            _STATUS.get(first.code, 422),
            first.code,
            first.detail,
            errors=[
                FieldError(outcome.detail, pointer=f"#/{index}" if is_array else "#")
                for index, outcome in enumerate(outcomes)
                if isinstance(outcome, Refusal)
            ],
            results=results if is_array else (),
        )
    duplicates = results.count(_DUPLICATE)
    ingested = IngestResult(len(results) - duplicates, duplicates, results)
    return json_response(ingested, 200 if duplicates == len(results) else 201)


def _result(outcome: Outcome | None) -> ItemResult:
    match outcome:
        case Refusal(code, detail):
            return ItemResult("refused", code, detail)
        case Duplicate():
            return _DUPLICATE
        case _:
            return _ACCEPTED
