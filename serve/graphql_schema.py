"""The GraphQL schema: what can be asked and followed. What can be changed is in `graphql_changes`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import msgspec
import strawberry
from graphql import GraphQLError
from strawberry.extensions import MaxAliasesLimiter, MaxTokensLimiter, QueryDepthLimiter
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig

from sensorium.actors.messages import Quality
from sensorium.actors.ports import Filter
from sensorium.actors.records import CommandState
from sensorium.actors.rules import Severity
from sensorium.serve.alarms import AlarmState
from sensorium.serve.anomalies import AnomalyGrade
from sensorium.serve.devices import StatusFilter
from sensorium.serve.events import kinds_in
from sensorium.serve.feed_filter import FeedFilter, read_filter
from sensorium.serve.feed_frames import Frame
from sensorium.serve.graphql_changes import Mutation
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_errors import Told
from sensorium.serve.graphql_jobs import JobQueries
from sensorium.serve.graphql_limits import MAX_ALIASES, MAX_DEPTH, MAX_TOKENS, CostLimit, checked_first
from sensorium.serve.graphql_scalars import SCALARS, EpochMs
from sensorium.serve.graphql_twins import TwinQueries
from sensorium.serve.graphql_types import (
    Alarm,
    AlarmPage,
    AnomalyPage,
    Bucket,
    Change,
    Command,
    CommandPage,
    Device,
    DevicePage,
    Event,
    EventPage,
    LiveMessage,
    ReadingPage,
    Rule,
    RuleVersion,
    TypeBucket,
    change_of,
    event_of,
    reading_of,
    rule_of,
    version_of,
)
from sensorium.serve.graphql_why import WhyQueries
from sensorium.serve.history import Aggregation, Order
from sensorium.serve.problems import Problem, not_found
from sensorium.serve.query import cursor_in, cursor_out, interval_s

for _enum in (Aggregation, Order, AlarmState, AnomalyGrade, CommandState, Quality, Severity, StatusFilter):
    strawberry.enum(_enum)


def _next(kind: str, after: Any) -> str | None:
    return None if after is None else cursor_out(kind, after)


@strawberry.type
class Query(TwinQueries, JobQueries, WhyQueries):
    @strawberry.field(description="Devices by id.")
    async def devices(
        self,
        info: Info,
        device_type: str | None = None,
        status: StatusFilter = StatusFilter.ACTIVE,
        metadata: JSON | None = None,
        device_ids: list[str] | None = None,
        first: int = 100,
        after: str | None = None,
    ) -> DevicePage:
        if metadata is not None and not isinstance(metadata, dict):
            raise Problem(422, "invalid", "metadata: an object that the device's must contain")
        which = Filter(
            device_type,
            None if status is StatusFilter.ANY else status.value,
            metadata or {},
            None if device_ids is None else tuple(device_ids),
        )
        page = await info.context.services.registry.page(
            which, cursor_in("devices", after), checked_first(first)
        )
        found: Any = list(page.items)
        return DevicePage(items=found, next=_next("devices", page.next))

    @strawberry.field(description="One device, also a decommissioned one.")
    async def device(self, info: Info, device_id: str) -> Device | None:
        found: Any = await info.context.registrations.load(device_id)
        return found  # type: ignore[no-any-return]

    @strawberry.field(description="Alarms, newest first.")
    async def alarms(
        self,
        info: Info,
        state: AlarmState | None = None,
        severity: Severity | None = None,
        device_id: str | None = None,
        device_type: str | None = None,
        rule_id: str | None = None,
        acknowledged: bool | None = None,
        assignee: str | None = None,
        shelved: bool | None = None,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        first: int = 100,
        after: str | None = None,
    ) -> AlarmPage:
        page = await info.context.services.alarms.page(
            state=None if state is None else state.value,
            severity=None if severity is None else severity.value,
            device_id=device_id,
            device_type=device_type,
            rule_id=rule_id,
            acknowledged=acknowledged,
            assignee=assignee,
            shelved=shelved,
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("alarms", after),
            limit=checked_first(first),
        )
        return AlarmPage(items=page.items, next=_next("alarms", page.next))

    @strawberry.field(description="One alarm, active or cleared.")
    async def alarm(self, info: Info, alarm_id: str) -> Alarm | None:
        found: Any = await info.context.services.alarms.get(alarm_id)
        return found  # type: ignore[no-any-return]

    @strawberry.field(description="What became of an alarm and what people did about it, oldest first.")
    async def alarm_life(self, info: Info, alarm_id: str) -> list[Event]:
        found = await info.context.services.alarms.get(alarm_id)
        if found is None:
            raise not_found(f"no alarm {alarm_id}")
        return [event_of(event) for event in await info.context.services.alarms.life(found)]

    @strawberry.field(
        description="What happened to a device besides its readings; `kinds` such as alarm_* or online."
    )
    async def events(
        self,
        info: Info,
        device_id: str,
        kinds: list[str] | None = None,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        order: Order = Order.DESC,
        first: int = 100,
        after: str | None = None,
    ) -> EventPage:
        cursor = f"events {device_id} {order.value}"
        page = await info.context.services.events.page(
            *(device_id, None if kinds is None else kinds_in(",".join(kinds)), start_ms, end_ms, order.value),
            *(cursor_in(cursor, after), checked_first(first)),
        )
        return EventPage(items=[event_of(event) for event in page.items], next=_next(cursor, page.next))

    @strawberry.field(description="What detectors found odd at a device, newest first.")
    async def anomalies(
        self,
        info: Info,
        device_id: str,
        detector: str | None = None,
        metric: str | None = None,
        min_score: float | None = None,
        min_severity: AnomalyGrade | None = None,
        ongoing: bool | None = None,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        first: int = 100,
        after: str | None = None,
    ) -> AnomalyPage:
        page = await info.context.services.anomalies.page(
            *(device_id, detector, metric, min_score, None if min_severity is None else min_severity.value),
            *(ongoing, start_ms, end_ms, cursor_in("anomalies", after), checked_first(first)),
        )
        return AnomalyPage(items=page.items, next=_next("anomalies", page.next))

    @strawberry.field(description="Commands, newest first.")
    async def commands(
        self,
        info: Info,
        device_id: str | None = None,
        state: CommandState | None = None,
        command: str | None = None,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        first: int = 100,
        after: str | None = None,
        job_id: str | None = None,
    ) -> CommandPage:
        page = await info.context.services.commands.page(
            device_id=device_id,
            state=None if state is None else state.value,
            command=command,
            job_id=job_id,
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("commands", after),
            limit=checked_first(first),
        )
        return CommandPage(items=page.items, next=_next("commands", page.next))

    @strawberry.field(description="One command, open or ended.")
    async def command(self, info: Info, command_id: str) -> Command | None:
        found: Any = await info.context.services.commands.get(command_id)
        return found  # type: ignore[no-any-return]

    @strawberry.field(description="All rules, oldest first.")
    async def rules(self, info: Info) -> list[Rule]:
        return [rule_of(rule) for rule in await info.context.services.rules.list()]

    @strawberry.field(description="One rule.")
    async def rule(self, info: Info, rule_id: str) -> Rule | None:
        found = await info.context.services.rules.get(rule_id)
        return None if found is None else rule_of(found)

    @strawberry.field(description="What a rule said before, newest first, and who said so.")
    async def rule_versions(self, info: Info, rule_id: str) -> list[RuleVersion]:
        side = info.context.services.actions
        return [] if side is None else [version_of(found) for found in await side.versions.list(rule_id)]

    @strawberry.field(description="A device's readings by event time, from the log and the archive.")
    async def readings(
        self,
        info: Info,
        device_id: str,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        metrics: list[str] | None = None,
        order: Order = Order.ASC,
        first: int = 100,
        after: str | None = None,
        quality: Quality | None = None,
    ) -> ReadingPage:
        kind = f"data {device_id} {order.value}"
        page = await info.context.services.history.readings(
            *(
                device_id,
                start_ms,
                end_ms,
                metrics,
                checked_first(first),
                order.value,
                cursor_in(kind, after),
            ),
            quality,
        )
        return ReadingPage(items=[reading_of(point) for point in page.items], next=_next(kind, page.next))

    @strawberry.field(description="A device's metrics by intervals such as 5m, 1h or 1d, or as a whole.")
    async def aggregate(
        self,
        info: Info,
        device_id: str,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        metrics: list[str] | None = None,
        aggregation: Aggregation = Aggregation.MEAN,
        interval: str | None = None,
        order: Order = Order.ASC,
        first: int = 1000,
    ) -> list[Bucket]:
        buckets = await info.context.services.history.aggregate(
            *(device_id, start_ms, end_ms, metrics, aggregation.value, interval_s(interval)),
            *(checked_first(first), order.value),
        )
        return [Bucket(start_ms=EpochMs(b.start_ms), values=b.values) for b in buckets]

    @strawberry.field(description="A metric over all devices of a type.")
    async def aggregated(
        self,
        info: Info,
        device_type: str,
        metric: str,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        aggregation: Aggregation = Aggregation.MEAN,
        interval: str | None = None,
    ) -> list[TypeBucket]:
        buckets = await info.context.services.history.aggregate_type(
            device_type, metric, start_ms, end_ms, aggregation.value, interval_s(interval)
        )
        return [TypeBucket(start_ms=EpochMs(b.start_ms), value=b.value, devices=b.devices) for b in buckets]


@strawberry.type
class Subscription:
    @strawberry.subscription(description="The live feed; behind `cursor`, if one is given.")
    async def live(
        self,
        info: Info,
        topics: list[str] | None = None,
        device_ids: list[str] | None = None,
        device_types: list[str] | None = None,
        metrics: list[str] | None = None,
        severities: list[Severity] | None = None,
        cursor: str | None = None,
        qualities: list[Quality] | None = None,
    ) -> AsyncGenerator[LiveMessage, None]:
        feed = info.context.services.feed
        if feed is None:
            raise not_found("this server has no live feed")
        which = _which(topics, device_ids, device_types, metrics, severities, qualities)
        async with feed.subscribe(which, cursor) as (subscription, missed):
            async with aclosing(missed):
                async for frame in missed:
                    yield _message(frame)
            while (following := await subscription.next()) is not None:
                yield _message(following)


def _which(
    topics: list[str] | None,
    device_ids: list[str] | None,
    device_types: list[str] | None,
    metrics: list[str] | None,
    severities: list[Severity] | None,
    qualities: list[Quality] | None,
) -> FeedFilter:
    parameters = {
        "topics": topics,
        "device_type": device_types,
        "metric": metrics,
        "severity": None if severities is None else [severity.value for severity in severities],
        "quality": None if qualities is None else [quality.value for quality in qualities],
    }
    which = read_filter({name: ",".join(names) for name, names in parameters.items() if names})
    ids = frozenset(device_ids or ())
    # Their names may hold commas here.
    read_filter({"device_id": ",".join("x" if "," in name else name for name in ids)} if ids else {})
    return replace(which, device_ids=ids)


def _message(frame: Frame) -> LiveMessage:
    said = msgspec.json.decode(frame.body)
    items: list[Change] = [change_of(item) for item in said.get("items", ())]
    return LiveMessage(kind=frame.kind, cursor=frame.cursor, dropped=said.get("dropped", 0), items=items)


class _Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: Any = None) -> None:
        """What clients do wrong is not for our log; what we do is logged where it is masked."""


schema: Final = _Schema(
    Query,
    Mutation,
    Subscription,
    config=StrawberryConfig(scalar_map=SCALARS),
    extensions=[
        lambda: MaxTokensLimiter(max_token_count=MAX_TOKENS),
        lambda: MaxAliasesLimiter(max_alias_count=MAX_ALIASES),
        lambda: QueryDepthLimiter(max_depth=MAX_DEPTH),
        CostLimit,
        Told,
    ],
)
