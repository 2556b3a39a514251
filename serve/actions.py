"""`/api/actions`: what was sent about alarms, what became of it, and another try at what is dead."""

from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.serve import examples
from sensorium.serve.action_examples import delivery
from sensorium.serve.alarms import IdQuery
from sensorium.serve.describe import answer
from sensorium.serve.pages import (
    DeliveryPage,
    Retried,
    RuleVersionItem,
    RuleVersionList,
    json_response,
    page_response,
)
from sensorium.serve.problems import Problem, not_found
from sensorium.serve.query import (
    CursorQuery,
    EndQuery,
    PageLimitQuery,
    RulePath,
    StartQuery,
    cursor_in,
    time_range,
)
from sensorium.serve.services import ActionSide
from sensorium.storage.deliveries import StoredDelivery

DeliveryPath = Annotated[str, Path(min_length=1, max_length=64, description="The delivery's id.")]
_SHOWN: Final = delivery(examples.ALARM)
_PAGE: Final = {"items": [_SHOWN], "next": None}
_VERSION: Final = {name: examples.RULE[name] for name in ("rule_id", "version", "spec")}
_VERSIONS: Final = {"items": [{**_VERSION, "changed_ms": examples.RULE["updated_ms"], "changed_by": "ada"}]}


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    SUPPRESSED = "SUPPRESSED"
    COLLAPSED = "COLLAPSED"


class ActionKind(StrEnum):
    """Which way it goes."""

    WEBHOOK = "webhook"
    MQTT = "mqtt"
    KAFKA = "kafka"
    EMAIL = "email"
    COMMAND = "command"


def routes(side: ActionSide) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["actions"])
    deliveries = side.deliveries

    @router.get(
        "/api/actions",
        response_model=None,
        summary="List what was sent about alarms",
        responses=answer(DeliveryPage, "A page of deliveries, newest first.", _PAGE),
    )
    async def list_deliveries(
        request: Request,
        state: DeliveryState | None = None,
        kind: ActionKind | None = None,
        queue: IdQuery = None,
        rule_id: IdQuery = None,
        alarm_id: IdQuery = None,
        device_id: IdQuery = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Delivered, waiting, dead, or kept back, and why. `start` and `end` bound when it was decided."""
        start_ms, end_ms = time_range(start, end)
        page = await deliveries.page(
            state=None if state is None else state.value,
            kind=None if kind is None else kind.value,
            queue=queue,
            rule_id=rule_id,
            alarm_id=alarm_id,
            device_id=device_id,
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("actions", cursor),
            limit=limit,
        )
        return page_response(DeliveryPage, request, "actions", page.items, page.next)

    @router.post(
        "/api/actions/retry",
        response_model=None,
        summary="Try dead deliveries again",
        responses=answer(Retried, "They are under way.", {"retried": 3}),
    )
    async def retry_many(
        queue: IdQuery = None,
        rule_id: IdQuery = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    ) -> Response:
        """The oldest first, such as `?queue=webhook:pager` once the pager is mended."""
        return json_response(Retried(await deliveries.retry(None, queue, rule_id, limit)))

    @router.get(
        "/api/actions/{delivery_id:hex}",
        response_model=None,
        summary="Look at a delivery",
        responses=answer(StoredDelivery, "The delivery.", _SHOWN, problems=(404,)),
    )
    async def get_delivery(delivery_id: DeliveryPath) -> Response:
        """One message to one target."""
        return json_response(await found(delivery_id))

    @router.post(
        "/api/actions/{delivery_id:hex}/retry",
        response_model=None,
        summary="Try a dead delivery again",
        responses=answer(StoredDelivery, "It is under way, by the same id.", _SHOWN, problems=(404, 409)),
    )
    async def retry(delivery_id: DeliveryPath) -> Response:
        """Its attempts are counted anew."""
        if not await deliveries.retry(delivery_id, None, None, 1):
            state = (await found(delivery_id)).state
            raise Problem(409, "conflict", f"delivery {delivery_id} is {state}, not DEAD")
        return json_response(await found(delivery_id))

    async def found(delivery_id: str) -> StoredDelivery:
        stored = await deliveries.get(delivery_id)
        if stored is None:
            raise not_found(f"no delivery {delivery_id}")
        return stored

    @router.get(
        "/api/analytics/rules/{rule_id}/versions",
        tags=["rules"],
        response_model=None,
        summary="List what a rule has said",
        responses=answer(
            RuleVersionList,
            "Its newest hundred versions.",
            _VERSIONS,
            problems=(404,),
        ),
    )
    async def versions(rule_id: RulePath) -> Response:
        """When each came, and who wrote it. Those of a deleted rule stay."""
        known = await side.versions.list(rule_id)
        if not known:
            raise not_found(f"no rule {rule_id}")
        return json_response(RuleVersionList([RuleVersionItem(*version) for version in known]))

    return router
