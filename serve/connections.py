"""`/api/devices/{id}/connections`: when a device came and went."""

from fastapi import APIRouter, Request, Response

from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import ConnectionItem, ConnectionPage, page_response
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


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])

    @router.get(
        "/api/devices/{device_id}/connections",
        response_model=None,
        summary="A device's connections",
        responses=answer(ConnectionPage, "When it came and went, newest first.", examples.CONNECTIONS),
    )
    async def connections(
        device_id: DevicePath,
        request: Request,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """What it said itself, or its last will; a device that says neither has none."""
        start_ms, end_ms = time_range(start, end)
        after = cursor_in("connections", cursor)
        page = await services.connections.page(device_id, start_ms, end_ms, after, limit)
        items = [ConnectionItem(*connection) for connection in page.items]
        return page_response(ConnectionPage, request, "connections", items, page.next)

    return router
