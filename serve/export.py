"""`GET /api/export/readings`: raw readings of one device or many, as a stream that may be of any length."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sensorium.actors.errors import Overloaded
from sensorium.actors.messages import Quality
from sensorium.actors.metrics import TEXT
from sensorium.actors.ports import Filter
from sensorium.serve.describe import answer
from sensorium.serve.devices import METADATA_PARAMETER, METADATA_PREFIX, StatusFilter, metadata_filter
from sensorium.serve.export_formats import MEDIA_TYPES, ExportFormat, Writer, writer
from sensorium.serve.history import QualityQuery
from sensorium.serve.problems import invalid_parameter, not_found
from sensorium.serve.query import OPEN_PREFIX, EndQuery, StartQuery, metric_names, time_range
from sensorium.serve.services import Services

PAGE: Final = 5_000
"""Readings read and written at once: what an export holds in memory."""
DEVICES_AT_ONCE: Final = 1_000
EXPORTS_AT_ONCE: Final = 4
"""In a process of the API. An export is work without end for it; others have to get their turns."""
MAX_DEVICES: Final = 100_000
MAX_COLUMNS: Final = 1_000


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["data"])
    running = asyncio.Semaphore(EXPORTS_AT_ONCE)

    @router.get(
        "/api/export/readings",
        response_model=None,
        summary="Export readings",
        responses=_responses(),
        openapi_extra={OPEN_PREFIX: METADATA_PREFIX, "parameters": [METADATA_PARAMETER]},
    )
    async def export(
        request: Request,
        format: ExportFormat = ExportFormat.NDJSON,  # noqa: A002 - the parameter's name
        device_id: Annotated[str | None, Query(max_length=128, description="Of this device alone.")] = None,
        device_type: Annotated[str | None, Query(max_length=64, alias="type")] = None,
        status: StatusFilter = StatusFilter.ANY,
        start: StartQuery = None,
        end: EndQuery = None,
        metrics: Annotated[
            str | None, Query(description="Names with commas: only these, in this order.")
        ] = None,
        quality: QualityQuery = None,
    ) -> Response:
        """Every reading of the devices, device by device, in order of event time, as long as it takes.

        An answer that breaks off was not all: the last chunk is missing, and of Parquet the footer. What is
        committed meanwhile may be in it or not. Without `metrics`, CSV and Parquet have a column for
        each that occurs; they are looked for first.
        """
        start_ms, end_ms = time_range(start, end)
        names = metric_names(metrics)
        if device_id is not None:
            if device_type is not None or request.query_params.keys() & {"status"}:
                raise invalid_parameter("device_id", "names one device; leave type and status away")
            if await services.registry.get(device_id) is None:
                raise not_found(f"no device {device_id} is registered")
            devices: Sequence[str] = [device_id]
        else:
            which = Filter(
                device_type,
                None if status is StatusFilter.ANY else status.value,
                metadata_filter(request, None),
            )
            devices = await _all(services, which)
        columns: Mapping[str, str] = {}
        if format is not ExportFormat.NDJSON:
            columns = await _columns(services, devices, start_ms, end_ms, names)
        file = writer(format, columns)
        if running.locked():
            raise Overloaded(f"{EXPORTS_AT_ONCE} exports are under way", 5.0)
        await running.acquire()
        name = f"readings-{device_id or device_type or 'all'}.{format.value}"
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        pieces = _pieces(services, devices, (start_ms, end_ms, names), quality, file)
        return _Export(
            running,
            pieces,
            media_type=MEDIA_TYPES[format],
            headers={
                "Content-Disposition": f'attachment; filename="{safe.encode("ascii", "replace").decode()}"'
            },
        )

    return router


async def _pieces(
    services: Services,
    devices: Sequence[str],
    which: tuple[int | None, int | None, list[str] | None],
    quality: Quality | None,
    file: Writer,
) -> AsyncIterator[bytes]:
    for device_id in devices:
        after = None
        while True:
            page = await services.history.readings(device_id, *which, PAGE, "asc", after, quality)
            if piece := await asyncio.to_thread(file.page, device_id, page.items):
                yield piece
            if (after := page.next) is None:
                break
    if piece := file.end():
        yield piece


class _Export(StreamingResponse):
    """Its place among the exports is free when it ends, in whatever way."""

    def __init__(self, running: asyncio.Semaphore, pieces: AsyncIterator[bytes], **more: Any) -> None:
        super().__init__(pieces, **more)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.release()


async def _all(services: Services, which: Filter) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = await services.registry.page(which, after, DEVICES_AT_ONCE)
        found += [registration.device_id for registration in page.items]
        if len(found) > MAX_DEVICES:
            raise invalid_parameter("type", f"more than {MAX_DEVICES:,} devices: export them in parts")
        if (after := page.next) is None:
            return found


async def _columns(
    services: Services,
    devices: Sequence[str],
    start_ms: int | None,
    end_ms: int | None,
    names: list[str] | None,
) -> dict[str, str]:
    """The kind of each metric, by its name; TEXT where devices do not agree."""
    kinds: dict[str, str] = {}
    for first in range(0, len(devices), DEVICES_AT_ONCE):
        part = devices[first : first + DEVICES_AT_ONCE]
        for name, kind in await services.history.kinds(part, start_ms, end_ms):
            kinds[name] = kind if kinds.get(name, kind) == kind else TEXT
    if names is not None:
        return {name: kinds.get(name, TEXT) for name in names}
    if len(kinds) > MAX_COLUMNS:
        raise invalid_parameter("metrics", f"{len(kinds)} metrics occur; name up to 100 of them")
    return dict(sorted(kinds.items()))


def _responses() -> dict[int | str, dict[str, object]]:
    documented = answer(None, "The readings.", problems=(404,))
    documented[200]["content"] = {
        media_type.partition(";")[0]: {"schema": {"type": "string"}} for media_type in MEDIA_TYPES.values()
    }
    return documented
