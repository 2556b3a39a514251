"""Why there is an alarm, in the GraphQL schema: what led to it, and what followed from it."""

from typing import Any
from urllib.parse import quote

import msgspec
import strawberry
from strawberry.scalars import JSON

from sensorium.actors.records import Alarm as AlarmRecord
from sensorium.actors.records import Command as CommandRecord
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_rest import rest
from sensorium.serve.graphql_scalars import EpochMs
from sensorium.serve.graphql_types import Alarm, Command, Event, Reading, RuleVersion


@strawberry.type(description="What makes readings of a device's messages, by what is configured now.")
class Decoder:
    way_in: str
    format: str
    codec: str | None
    version: str | None


@strawberry.type(description="What a window of the rule showed when the alarm was raised.")
class WindowFigure:
    metric: str
    function: str
    window_s: float | None
    value: JSON | None


@strawberry.type(description="A message about an alarm to one target, and what became of it.")
class Delivery:
    delivery_id: str
    state: str
    queue: str
    kind: str
    rule_id: str
    rule_version: int
    alarm_id: str
    device_id: str
    transition: str
    created_ms: EpochMs
    due_ms: EpochMs
    finished_ms: EpochMs | None
    attempts: int
    reason: str | None
    summary_id: str | None
    action: JSON
    content: JSON


@strawberry.type(
    description="Why there is an alarm: the rule's version, the readings up to the one that raised it (oldest"
    " first), the figures of its windows; then what happened to it, what was sent about it, and its commands."
)
class AlarmWhy:
    alarm: Alarm
    rule: RuleVersion | None
    decoder: Decoder | None
    readings: list[Reading]
    windows: list[WindowFigure]
    events: list[Event]
    actions: list[Delivery]
    commands: list[Command]


@strawberry.type
class WhyQueries:
    @strawberry.field(description="What led to an alarm, and what followed.")
    async def alarm_why(self, info: Info, alarm_id: str) -> AlarmWhy:
        said = await rest(info, "GET", f"/api/alarms/{quote(alarm_id, safe='')}/why")
        rule, decoder = said["rule"], said["decoder"]
        alarm: Any = msgspec.convert(said["alarm"], AlarmRecord)
        commands: Any = msgspec.convert(said["commands"], list[CommandRecord])
        return AlarmWhy(
            alarm=alarm,
            rule=None if rule is None else RuleVersion(**rule),
            decoder=None if decoder is None else Decoder(**decoder),
            readings=[Reading(**reading) for reading in said["readings"]],
            windows=[WindowFigure(**figure) for figure in said["windows"]],
            events=[Event(**event) for event in said["events"]],
            actions=[Delivery(**delivery) for delivery in said["actions"]],
            commands=commands,
        )
