"""`/api/alarms/{id}/why`: what led to an alarm, and what followed from it."""

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec
from fastapi import APIRouter, Response

from sensorium.actors.conditions.kinds import AnyCondition, Formula, parts_of
from sensorium.actors.conditions.recursion import metrics_looked_at
from sensorium.actors.downlinks import downlink_of, route_of
from sensorium.actors.formulas import Windowed, nodes_of, parse_formula
from sensorium.actors.messages import Value
from sensorium.actors.records import Alarm, Command
from sensorium.actors.rules import RuleSpec, WindowAggregate, ZScore
from sensorium.ingest.lorawan.carriers import profile_of
from sensorium.serve import examples
from sensorium.serve.action_examples import why_example
from sensorium.serve.alarm_actions import AlarmPath
from sensorium.serve.describe import answer
from sensorium.serve.pages import AlarmEventItem, ReadingItem, RuleVersionItem, json_response, reading_item
from sensorium.serve.problems import not_found
from sensorium.serve.services import ReadsHistory, Services
from sensorium.storage.deliveries import StoredDelivery

MAX_READINGS: Final = 100
MAX_FOLLOWED: Final = 100
"""Deliveries that are told, and so commands."""
MAX_WINDOWS: Final = 16
LOOK_BACK_S: Final = 600.0
"""At least; a condition that must hold for longer is looked at for as long."""


_SHOWN: Final = why_example(examples.ALARM, examples.RULE["spec"], examples.ALARM_LIFE)


class WindowFigure(msgspec.Struct, frozen=True):
    """What a window of the rule showed when the alarm was raised, computed from the stored readings.

    A device's own windows move by panes, so that its figure may differ by what came within one.
    """

    metric: str
    function: str
    window_s: float | None
    value: Value | None


class Decoder(msgspec.Struct, frozen=True):
    """What makes readings of the device's messages, as its metadata and the configuration say now.

    Attributes:
        way_in: "chirpstack", "tts" or "sparkplug"; "direct" of devices that speak MQTT, CoAP or HTTP to us.
        format: "telemetry" (our JSON, SenML or CBOR), "sparkplug", "network_server" (it decodes), or the kind
            of the codec: "cayenne", "layout" or "javascript".
        codec, version: its name in the configuration, and a hash of what it says.
    """

    way_in: str
    format: str
    codec: str | None = None
    version: str | None = None


class AlarmWhy(msgspec.Struct, frozen=True):
    """Why there is an alarm.

    Attributes:
        decoder: what made the readings; None when the device is not registered any more.
        rule: the version that raised it; None when it is not known any more.
        readings: of the rule's metrics, oldest first; the last is the one that raised it. Those of before the
            retention's bound are gone.
        events: what happened to it; `actions` and `commands`: what was done about it.
    """

    alarm: Alarm
    rule: RuleVersionItem | None
    decoder: Decoder | None
    readings: list[ReadingItem]
    windows: list[WindowFigure]
    events: list[AlarmEventItem]
    actions: list[StoredDelivery]
    commands: list[Command]


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["alarms"])
    alarms, history, commands, side = (
        services.alarms,
        services.history,
        services.commands,
        services.actions,
    )

    @router.get(
        "/api/alarms/{alarm_id}/why",
        response_model=None,
        summary="Why there is an alarm",
        responses=answer(AlarmWhy, "What led to it, and what followed.", _SHOWN, problems=(404,)),
    )
    async def why(alarm_id: AlarmPath) -> Response:
        """The readings, the figures of its windows and the rule's version; then what was done and said."""
        alarm = await alarms.get(alarm_id)
        if alarm is None:
            raise not_found(f"no alarm {alarm_id}")
        rule = await rule_of(alarm)
        spec = None if rule is None else rule.spec
        readings, windows, events, deliveries = await asyncio.gather(
            _readings(history, alarm, spec),
            _windows(history, alarm, spec),
            alarms.life(alarm),
            actions_of(alarm),
        )
        given = [d.delivery_id for d in deliveries if d.kind == "command"]
        found = [await commands.get(command_id) for command_id in given]
        return json_response(
            AlarmWhy(
                alarm,
                rule,
                await decoder_of(alarm.device_id),
                readings,
                windows,
                [AlarmEventItem(*event) for event in events],
                deliveries,
                [command for command in found if command is not None],
            )
        )

    async def rule_of(alarm: Alarm) -> RuleVersionItem | None:
        if side is not None:
            version = await side.versions.get(alarm.rule_id, alarm.rule_version)
            return None if version is None else RuleVersionItem(*version)
        rule = await services.rules.get(alarm.rule_id)
        if rule is None or rule.version != alarm.rule_version:
            return None
        return RuleVersionItem(rule.rule_id, rule.version, rule.spec, rule.updated_ms, "")

    async def decoder_of(device_id: str) -> Decoder | None:
        registration = await services.registry.get(device_id)
        if registration is None:
            return None
        way_in = downlink_of("direct", registration.metadata)
        if way_in not in ("chirpstack", "tts"):
            return Decoder(way_in, "telemetry" if way_in == "direct" else way_in)
        profile = profile_of(route_of(way_in, registration.metadata))
        codec = None if services.lorawan is None else services.lorawan.codec_of(profile)
        if codec is None:
            return Decoder(way_in, "network_server")
        name, kind, version = codec
        return Decoder(way_in, kind, name, version)

    async def actions_of(alarm: Alarm) -> list[StoredDelivery]:
        if side is None:
            return []
        page = await side.deliveries.page(
            state=None,
            kind=None,
            queue=None,
            rule_id=None,
            alarm_id=alarm.alarm_id,
            device_id=None,
            start_ms=None,
            end_ms=None,
            after=None,
            limit=MAX_FOLLOWED,
        )
        return list(reversed(page.items))

    return router


async def _readings(history: ReadsHistory, alarm: Alarm, spec: RuleSpec | None) -> list[ReadingItem]:
    look_back_s = LOOK_BACK_S
    metrics: list[str] | None = [alarm.metric] if alarm.metric else None
    if spec is not None:
        within_s = 0.0 if spec.times is None else spec.times.within_s
        look_back_s = max(look_back_s, spec.for_s, within_s)
        metrics = metrics_looked_at(spec) or None
    from_ms = alarm.start_ms - round(look_back_s * 1000)
    page = await history.readings(
        alarm.device_id, from_ms, alarm.start_ms + 1, metrics, MAX_READINGS, "desc", None
    )
    return [reading_item(point) for point in reversed(page.items)]


async def _windows(history: ReadsHistory, alarm: Alarm, spec: RuleSpec | None) -> list[WindowFigure]:
    if spec is None:
        return []
    asked: dict[tuple[str, str, float | None, int], None] = {}
    for condition in _conditions(spec):
        if isinstance(condition, WindowAggregate):
            # It ends with the reading; that of a z-score ends before it.
            asked[condition.metric, condition.function, condition.window_s, alarm.start_ms + 1] = None
        elif isinstance(condition, ZScore):
            for function in ("mean", "stddev", "count"):
                asked[condition.metric, function, condition.window_s, alarm.start_ms] = None
        elif isinstance(condition, Formula):
            for text in condition.texts():
                for node in nodes_of(parse_formula(text)):
                    if isinstance(node, Windowed):
                        asked[node.metric, node.figure, node.window_s, alarm.start_ms + 1] = None
    figures = []
    for metric, function, window_s, end_ms in list(asked)[:MAX_WINDOWS]:
        value = None
        if window_s is not None:
            buckets = await history.aggregate(
                *(alarm.device_id, end_ms - round(window_s * 1000), end_ms, [metric], function),
                *(None, 1, "asc", None),
            )
            value = buckets[0].values.get(metric) if buckets else None
        figures.append(WindowFigure(metric, function, window_s, value))
    return figures


def _conditions(spec: RuleSpec) -> Iterator[AnyCondition]:
    yield from _within(spec.condition)
    for level in spec.levels:
        yield from _within(level.condition)


def _within(condition: AnyCondition) -> Iterator[AnyCondition]:
    parts = parts_of(condition)
    if not parts:
        yield condition
    for _, part in parts:
        yield from _within(part)
