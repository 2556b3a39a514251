"""History from the log: a device's readings and aggregates, and aggregates over a whole device type."""

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from sensorium.actors.messages import ReadingFlag
from sensorium.serve import examples
from sensorium.serve.describe import answer, reference
from sensorium.serve.pages import (
    AggregatePage,
    BucketItem,
    ReadingItem,
    ReadingPage,
    TypeAggregate,
    TypeBucketItem,
    json_response,
)
from sensorium.serve.problems import invalid_parameter, not_found
from sensorium.serve.query import (
    CursorQuery,
    DevicePath,
    EndQuery,
    StartQuery,
    cursor_in,
    cursor_out,
    interval_s,
    link_header,
    metric_names,
    time_range,
)
from sensorium.serve.services import Services


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


IntervalQuery = Annotated[str | None, Query(description="60, 60s, 5m, 1h or 1d; aligned to 1970 UTC.")]


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
            buckets = await history.aggregate(
                device_id, start_ms, end_ms, names, how.value, every_s, limit, order.value
            )
            items = [BucketItem(bucket.start_ms, bucket.values) for bucket in buckets]
            return json_response(
                AggregatePage(device_id, how.value, every_s, items, buckets.source, buckets.approximate)
            )
        kind = f"data {device_id} {order}"
        page = await history.readings(
            device_id, start_ms, end_ms, names, limit, order.value, cursor_in(kind, cursor)
        )
        following = cursor_out(kind, page.next) if page.next is not None else None
        points = [
            ReadingItem(point.time_ms, point.values, bool(point.flags & ReadingFlag.LATE))
            for point in page.items
        ]
        return json_response(
            ReadingPage(device_id, points, following), headers=link_header(request, following)
        )

    @router.get(
        "/api/analytics/aggregated",
        tags=["analytics"],
        response_model=None,
        summary="Aggregates over a device type",
        responses=answer(TypeAggregate, "One value an interval.", examples.TYPE_AGGREGATE),
    )
    async def aggregated(
        device_type: Annotated[str, Query(min_length=1, max_length=64)],
        metric: Annotated[str, Query(min_length=1, max_length=128)],
        interval: IntervalQuery = None,
        aggregation: Aggregation = Aggregation.MEAN,
        start: StartQuery = None,
        end: EndQuery = None,
    ) -> Response:
        """Over all devices of the type; without an interval, one value for the whole range."""
        start_ms, end_ms = time_range(start, end)
        every_s = interval_s(interval)
        buckets = await history.aggregate_type(
            device_type, metric, start_ms, end_ms, aggregation.value, every_s
        )
        items = [TypeBucketItem(bucket.start_ms, bucket.value, bucket.devices) for bucket in buckets]
        return json_response(
            TypeAggregate(
                device_type,
                metric,
                aggregation.value,
                every_s,
                items,
                buckets.source,
                buckets.approximate,
            )
        )

    return router


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
