"""History from the log: a device's readings and aggregates, and aggregates over a whole device type."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from sensorium.actors.messages import Quality
from sensorium.serve import examples
from sensorium.serve.buckets import Fill
from sensorium.serve.buckets import fill as filled
from sensorium.serve.describe import answer, reference
from sensorium.serve.devices import METADATA_PARAMETER, METADATA_PREFIX
from sensorium.serve.downsample import lttb
from sensorium.serve.pages import (
    AggregateGroup,
    AggregatePage,
    BucketItem,
    GroupedAggregate,
    ReadingPage,
    TypeAggregate,
    TypeBucketItem,
    json_response,
    reading_item,
)
from sensorium.serve.place import GroupQuery, NearQuery, chosen, grouped
from sensorium.serve.problems import invalid_parameter, not_found
from sensorium.serve.query import (
    OPEN_PREFIX,
    CursorQuery,
    DevicePath,
    EndQuery,
    StartQuery,
    check_zone,
    cursor_in,
    cursor_out,
    interval_s,
    link_header,
    metric_names,
    time_range,
)
from sensorium.serve.services import Services
from sensorium.storage.history import Buckets


class Aggregation(StrEnum):
    """How the values of an interval become one. Percentiles are estimates, within 1 %."""

    MEAN = "mean"
    MIN = "min"
    MAX = "max"
    SUM = "sum"
    COUNT = "count"
    FIRST = "first"
    LAST = "last"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"


class Order(StrEnum):
    """By event time."""

    ASC = "asc"
    DESC = "desc"


IntervalQuery = Annotated[
    str | None,
    Query(description="60, 60s, 5m, 1h or 1d; aligned to 1970 UTC, or with `timezone` to midnight there."),
]
ZoneQuery = Annotated[
    str | None,
    Query(max_length=64, description="Such as Europe/Berlin; for intervals of days. Weeks begin on Monday."),
]
QualityQuery = Annotated[
    Quality | None, Query(description="Only of readings that the profile's schema found so.")
]
PointsQuery = Annotated[
    int | None,
    Query(ge=3, le=5_000, description="For a chart: so many intervals at most, by LTTB. Numbers only."),
]
FillQuery = Annotated[Fill, Query(description="What stands where nothing was measured.")]


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter()
    history, registry = services.history, services.registry

    @router.get(
        "/api/devices/{device_id}/data",
        tags=["data"],
        response_model=None,
        summary="History",
        responses=_data_responses(),
    )
    async def data(
        request: Request,
        device_id: DevicePath,
        start: StartQuery = None,
        end: EndQuery = None,
        metrics: Annotated[str | None, Query(description="Names with commas; all by default.")] = None,
        aggregation: Annotated[Aggregation | None, Query(description="`mean` by default.")] = None,
        interval: IntervalQuery = None,
        timezone: ZoneQuery = None,
        fill: FillQuery = Fill.NONE,
        quality: QualityQuery = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        order: Order = Order.ASC,
        cursor: CursorQuery = None,
    ) -> Response:
        """Also of decommissioned devices. Readings come in pages; aggregates are cut at `limit` buckets."""
        start_ms, end_ms = time_range(start, end)
        names, every_s = metric_names(metrics), interval_s(interval)
        if await registry.get(device_id) is None:
            raise not_found(f"no device {device_id} is registered")
        if aggregation is not None or every_s is not None:
            if cursor is not None:
                raise invalid_parameter("cursor", "aggregates have no pages; narrow start and end")
            how = aggregation or Aggregation.MEAN
            _check_shape(every_s, timezone, fill)
            buckets = await history.aggregate(
                *(device_id, start_ms, end_ms, names, how.value, every_s, limit, order.value, timezone),
                quality,
            )
            items = [BucketItem(bucket.start_ms, bucket.values) for bucket in buckets]
            if fill is not Fill.NONE and every_s is not None:
                if len(items) == limit:
                    raise invalid_parameter(
                        "limit", f"more than {limit} intervals: there is no end to fill to"
                    )
                there = [(item.start_ms, item.values) for item in items]
                items = [
                    BucketItem(*each) for each in filled(fill, there, every_s, timezone, start_ms, end_ms)
                ]
                if order is Order.DESC:
                    items.reverse()
            return json_response(
                AggregatePage(
                    device_id, how.value, every_s, items, buckets.source, buckets.approximate, timezone
                )
            )
        if timezone is not None or fill is not Fill.NONE:
            raise invalid_parameter("timezone" if timezone is not None else "fill", "goes with an interval")
        kind = f"data {device_id} {order}"
        page = await history.readings(
            device_id, start_ms, end_ms, names, limit, order.value, cursor_in(kind, cursor), quality
        )
        following = cursor_out(kind, page.next) if page.next is not None else None
        points = [reading_item(point) for point in page.items]
        return json_response(
            ReadingPage(device_id, points, following), headers=link_header(request, following)
        )

    @router.get(
        "/api/analytics/aggregated",
        tags=["analytics"],
        response_model=None,
        summary="Aggregates over devices",
        responses=_aggregated_responses(),
        openapi_extra={OPEN_PREFIX: METADATA_PREFIX, "parameters": [METADATA_PARAMETER]},
    )
    async def aggregated(
        request: Request,
        metric: Annotated[str, Query(min_length=1, max_length=128)],
        device_type: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
        near: NearQuery = None,
        group_by: GroupQuery = None,
        interval: IntervalQuery = None,
        aggregation: Aggregation = Aggregation.MEAN,
        timezone: ZoneQuery = None,
        fill: FillQuery = Fill.NONE,
        start: StartQuery = None,
        end: EndQuery = None,
        points: PointsQuery = None,
    ) -> Response:
        """Over the devices of a type, with some metadata, in a place, or all; with `group_by` a series for
        each group. Without an interval, one value for the whole range."""
        start_ms, end_ms = time_range(start, end)
        every_s = interval_s(interval)
        _check_shape(every_s, timezone, fill)
        how = aggregation.value

        async def series(device_ids: Sequence[str] | None) -> tuple[list[TypeBucketItem], Buckets[Any]]:
            buckets = await history.aggregate_type(
                device_type or "", metric, start_ms, end_ms, how, every_s, timezone, device_ids
            )
            if fill is Fill.NONE or every_s is None:
                return [TypeBucketItem(b.start_ms, b.value, b.devices) for b in buckets], buckets
            devices = {bucket.start_ms: bucket.devices for bucket in buckets}
            there = [(bucket.start_ms, {metric: bucket.value}) for bucket in buckets]
            return [
                TypeBucketItem(at_ms, values.get(metric), devices.get(at_ms, 0))
                for at_ms, values, _ in filled(fill, there, every_s, timezone, start_ms, end_ms)
            ], buckets

        picky = near is not None or any(name.startswith(METADATA_PREFIX) for name in request.query_params)
        devices = None
        if picky or group_by is not None or device_type is None:
            devices = await chosen(registry, request, device_type, near)
        if points is not None and every_s is None:
            raise invalid_parameter("points", "goes with an interval")
        if group_by is None:
            items, buckets = await series(None if devices is None else [d.device_id for d in devices])
            items = for_chart(items, points)
            told = (buckets.source, buckets.approximate, timezone)
            return json_response(TypeAggregate(device_type, metric, how, every_s, items, *told))
        groups = []
        for group, device_ids in grouped(devices or (), group_by).items():
            items, buckets = await series(device_ids)
            shown = for_chart(items, points)
            groups.append(AggregateGroup(group, len(device_ids), shown, buckets.source))
        return json_response(GroupedAggregate(group_by, metric, how, every_s, groups, timezone))

    return router


def for_chart(items: list[TypeBucketItem], points: int | None) -> list[TypeBucketItem]:
    """As many of them as asked for, so that a line through them looks the same; those without a number do not
    count, and all stay where none are asked for or they are few."""
    if points is None or len(items) <= points:
        return items
    numbers = {item.start_ms: item for item in items if type(item.value) is float}
    kept = lttb([(at_ms, float(item.value or 0.0)) for at_ms, item in numbers.items()], points)
    return [numbers[at_ms] for at_ms, _ in kept]


def _check_shape(every_s: int | None, zone: str | None, fill: Fill) -> None:
    if fill is not Fill.NONE and every_s is None:
        raise invalid_parameter("fill", "goes with an interval")
    if zone is not None:
        if every_s is None or every_s % 86_400:
            raise invalid_parameter("timezone", "goes with an interval of whole days, such as 1d")
        check_zone(zone)


def _aggregated_responses() -> dict[int | str, dict[str, Any]]:
    documented = answer(TypeAggregate, "One value an interval; with `group_by` for each group.")
    documented[200]["content"]["application/json"] = {
        "schema": {"oneOf": [reference(TypeAggregate), reference(GroupedAggregate)]},
        "examples": {
            "one": {"value": examples.TYPE_AGGREGATE},
            "groups": {"value": examples.GROUPED_AGGREGATE},
        },
    }
    return documented


def _data_responses() -> dict[int | str, dict[str, Any]]:
    documented = answer(
        ReadingPage, "Readings, or aggregates when `aggregation` or `interval` is given.", problems=(404,)
    )
    documented[200]["content"]["application/json"] = {
        "schema": {"oneOf": [reference(ReadingPage), reference(AggregatePage)]},
        "examples": {
            "readings": {"value": examples.READINGS},
            "aggregates": {"value": examples.AGGREGATES},
        },
    }
    return documented
