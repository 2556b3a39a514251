"""`/api/alarms`: what devices complained of."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.records import Alarm
from sensorium.actors.rules import Severity
from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import AlarmPage, json_response, page_response
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
    alarms = services.alarms

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

    return router
