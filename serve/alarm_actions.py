"""`/api/alarms/{id}/…`: what people do about an alarm, and its life so far."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from sensorium.actors.messages import ActOnAlarm
from sensorium.actors.records import Alarm
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse
from sensorium.serve.describe import answer, body
from sensorium.serve.models import AckBody, AssignBody, CommentBody, ShelveBody
from sensorium.serve.pages import AlarmEventItem, AlarmLife, json_response
from sensorium.serve.problems import not_found
from sensorium.serve.services import Services

AlarmPath = Annotated[str, Path(max_length=128)]

BODIES: Final[tuple[type[BaseModel], ...]] = (AckBody, AssignBody, CommentBody, ShelveBody)

_ACTIONS: Final[dict[str, tuple[type[AckBody], str, str]]] = {
    "ack": (AckBody, "Acknowledge an alarm", "Somebody took note: it does not escalate any more."),
    "unack": (AckBody, "Take an acknowledgement back", "It counts as unacknowledged; steps taken stay."),
    "assign": (AssignBody, "Assign an alarm", "Say whose it is to look after."),
    "comment": (CommentBody, "Comment on an alarm", "It stands in the alarm's life."),
    "shelve": (ShelveBody, "Shelve an alarm", "Until then it does not escalate, and lists can leave it out."),
    "unshelve": (AckBody, "Take an alarm off the shelf", "Before its time is over."),
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["alarms"])
    alarms, ask, timeout_s = services.alarms, services.router.ask, services.timeout_s

    async def found(alarm_id: str) -> Alarm:
        alarm = await alarms.get(alarm_id)
        if alarm is None:
            raise not_found(f"no alarm {alarm_id}")
        return alarm

    @router.get(
        "/api/alarms/{alarm_id}/life",
        response_model=None,
        summary="An alarm's life",
        responses=answer(AlarmLife, "What happened to it.", examples.ALARM_LIFE, problems=(404,)),
    )
    async def life(alarm_id: AlarmPath) -> Response:
        """Raised, changed, escalated, cleared, and what people did and said: the newest thousand of it."""
        events = await alarms.life(await found(alarm_id))
        return json_response(AlarmLife([AlarmEventItem(*event) for event in events]))

    def add(action: str, model: type[AckBody], summary: str, words: str) -> None:
        @router.post(
            f"/api/alarms/{{alarm_id}}/{action}",
            response_model=None,
            summary=summary,
            description=words,
            operation_id=f"{action}_alarm",
            responses=answer(Alarm, "The alarm as it is now.", examples.ALARM, problems=(404, 409, 413, 415)),
            openapi_extra=body(
                {"$ref": f"#/components/schemas/{model.__name__}"}, {action: examples.ALARM_ACTIONS[action]}
            ),
        )
        async def act(alarm_id: AlarmPath, request: Request) -> Response:
            given = parse(await json_bytes(request), model)
            alarm = await found(alarm_id)
            await ask(_message(alarm, action, given, services.now_ms()), timeout_s)
            return json_response(await found(alarm_id))

    for action, described in _ACTIONS.items():
        add(action, *described)
    return router


def _message(alarm: Alarm, action: str, given: Any, now_ms: int) -> ActOnAlarm:
    text, until_ms = "", 0
    match given:
        case AssignBody():
            text = given.assignee
        case CommentBody():
            text = given.text
        case ShelveBody():
            until_ms = now_ms + round(given.for_s * 1000)
        case _:
            pass
    return ActOnAlarm(alarm.device_id, alarm.alarm_id, action, given.by, text, until_ms)
