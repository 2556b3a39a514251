"""`/api/alarms` and `/api/dead-letters`: what devices complained of, and what could not be used."""

import base64
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.records import Alarm
from sensorium.actors.rules import Severity
from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import AlarmPage, DeadLetterItem, DeadLetterPage, json_response, page_response
from sensorium.serve.problems import not_found
from sensorium.serve.query import (
    CursorQuery,
    EndQuery,
    PageLimitQuery,
    StartQuery,
    cursor_in,
    time_range,
)
from sensorium.serve.services import Services

IdQuery = Annotated[str | None, Query(min_length=1, max_length=128)]


class AlarmState(StrEnum):
    """Whether the condition still holds."""

    ACTIVE = "ACTIVE"
    CLEARED = "CLEARED"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter()
    alarms, dead_letters = services.alarms, services.dead_letters

    @router.get(
        "/api/alarms",
        tags=["alarms"],
        response_model=None,
        summary="List alarms",
        responses=answer(AlarmPage, "A page of alarms, newest first.", examples.ALARMS),
    )
    async def list_alarms(
        request: Request,
        state: AlarmState | None = None,
        severity: Severity | None = None,
        device_id: IdQuery = None,
        device_type: IdQuery = None,
        rule_id: IdQuery = None,
        acknowledged: bool | None = None,
        assignee: IdQuery = None,
        shelved: bool | None = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Filters add up; `start` and `end` bound when an alarm was raised, by event time."""
        start_ms, end_ms = time_range(start, end)
        page = await alarms.page(
            state=state.value if state is not None else None,
            severity=severity.value if severity is not None else None,
            device_id=device_id,
            device_type=device_type,
            rule_id=rule_id,
            acknowledged=acknowledged,
            assignee=assignee,
            shelved=shelved,
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("alarms", cursor),
            limit=limit,
        )
        return page_response(AlarmPage, request, "alarms", page.items, page.next)

    @router.get(
        "/api/alarms/{alarm_id}",
        tags=["alarms"],
        response_model=None,
        summary="Look at an alarm",
        responses=answer(Alarm, "The alarm.", examples.ALARM, problems=(404,)),
    )
    async def get_alarm(alarm_id: Annotated[str, Path(max_length=128)]) -> Response:
        """One alarm by its id, active or cleared."""
        alarm = await alarms.get(alarm_id)
        if alarm is None:
            raise not_found(f"no alarm {alarm_id}")
        return json_response(alarm)

    @router.get(
        "/api/dead-letters",
        tags=["dead letters"],
        response_model=None,
        summary="List dead letters",
        responses=answer(DeadLetterPage, "A page of dead letters, newest first.", examples.DEAD_LETTERS),
    )
    async def list_dead_letters(
        request: Request,
        reason: Annotated[str | None, Query(max_length=64)] = None,
        device_id: Annotated[str | None, Query(max_length=128)] = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Messages that could not be used, each with its reason and first bytes."""
        page = await dead_letters.page(
            reason=reason, device_id=device_id, after=cursor_in("dead-letters", cursor), limit=limit
        )
        items = [_dead_letter(item) for item in page.items]
        return page_response(DeadLetterPage, request, "dead-letters", items, page.next)

    return router


def _dead_letter(stored: Any) -> DeadLetterItem:
    payload = bytes(stored.payload)
    try:
        text, encoding = payload.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(payload).decode(), "base64"
    return DeadLetterItem(
        stored.id,
        stored.received_ms,
        stored.device_id,
        stored.source,
        stored.address,
        stored.reason,
        stored.detail,
        stored.size_bytes,
        text,
        encoding,
    )
