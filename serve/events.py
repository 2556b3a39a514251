"""`/api/devices/{id}/events` and `…/connections`: what happened to a device, and when it came and went."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.history import Order
from sensorium.serve.pages import ConnectionItem, ConnectionPage, EventItem, EventPage, page_response
from sensorium.serve.problems import invalid_parameter, not_found
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

PRESENCE: Final = ("online", "offline")
MAX_KINDS: Final = 50
_KIND: Final = re.compile(r"[a-zA-Z_]{1,64}\*?")

KindsQuery = Annotated[
    str | None,
    Query(
        description="Only these, with commas between; `alarm_*` stands for all that begin so.",
        examples=["registered,updated,alarm_*"],
    ),
]


def kinds_in(text: str | None) -> list[str] | None:
    """The kinds of a comma-separated list, each once."""
    if text is None:
        return None
    kinds = list(dict.fromkeys(kind.strip() for kind in text.split(",")))
    if len(kinds) > MAX_KINDS or not all(_KIND.fullmatch(kind) for kind in kinds):
        raise invalid_parameter(
            "kinds", f"1 to {MAX_KINDS} kinds with commas between, such as registered,alarm_*"
        )
    return kinds


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])

    @router.get(
        "/api/devices/{device_id}/events",
        response_model=None,
        summary="What happened to a device",
        responses=answer(EventPage, "A page of its events.", examples.EVENTS, problems=(404,)),
    )
    async def events(
        device_id: DevicePath,
        request: Request,
        kinds: KindsQuery = None,
        start: StartQuery = None,
        end: EndQuery = None,
        order: Annotated[Order, Query(description="By time.")] = Order.DESC,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Everything besides its readings, of a device that is decommissioned too: changes of what is
        registered, alarms and what people did about them, commands, its twin, comings and goings. As old as
        retention leaves it.
        """
        asked = kinds_in(kinds)
        start_ms, end_ms = time_range(start, end)
        kind_of_cursor = f"events {order}"
        after = cursor_in(kind_of_cursor, cursor)
        page = await services.events.page(device_id, asked, start_ms, end_ms, order.value, after, limit)
        if not page.items and await services.registry.get(device_id) is None:
            raise not_found(f"no device {device_id!r}")
        return page_response(
            EventPage, request, kind_of_cursor, [EventItem(*event) for event in page.items], page.next
        )

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
        page = await services.events.page(device_id, PRESENCE, start_ms, end_ms, "desc", after, limit)
        items = [ConnectionItem(event.time_ms, event.kind == "online") for event in page.items]
        return page_response(ConnectionPage, request, "connections", items, page.next)

    return router
