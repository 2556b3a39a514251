"""`/api/webhooks`: whom rules may tell by HTTP. What is secret about them is written and never read."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from sensorium.actors.errors import InvalidMessage
from sensorium.ingest.actions.addresses import Reach
from sensorium.ingest.actions.webhook import check_url, shown_url
from sensorium.serve.action_examples import WEBHOOK, WEBHOOK_BODIES
from sensorium.serve.body import json_bytes, parse_value
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import WebhookBody, WebhookItem, WebhookList, json_response
from sensorium.serve.problems import Problem, invalid_body, not_found
from sensorium.serve.services import ActionSide
from sensorium.storage.webhooks import MAX_WEBHOOKS, Webhook, WebhookSpec

NamePath = Annotated[
    str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$", description="As rules name it.")
]


def routes(side: ActionSide) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["actions"])
    webhooks = side.webhooks
    reach = Reach(side.webhook_networks)

    @router.get(
        "/api/webhooks",
        response_model=None,
        summary="List webhooks",
        responses=answer(WebhookList, "All webhooks, by name.", {"items": [WEBHOOK]}),
    )
    async def list_webhooks() -> Response:
        """Without their secrets; of an address only the host is shown."""
        return json_response(WebhookList([_item(webhook) for webhook in await webhooks.list()]))

    @router.get(
        "/api/webhooks/{name}",
        response_model=None,
        summary="Look at a webhook",
        responses=answer(WebhookItem, "The webhook.", WEBHOOK, problems=(404,)),
    )
    async def get_webhook(name: NamePath) -> Response:
        """Without its secret."""
        webhook = await webhooks.get(name)
        if webhook is None:
            raise not_found(f"no webhook {name}")
        return json_response(_item(webhook))

    @router.put(
        "/api/webhooks/{name}",
        response_model=None,
        summary="Set a webhook",
        responses=answer(WebhookItem, "As it is now.", WEBHOOK, problems=(409, 413, 415)),
        openapi_extra=body(WebhookBody, WEBHOOK_BODIES),
    )
    async def put_webhook(name: NamePath, request: Request) -> Response:
        """What waits for it goes to the new address, signed with the new secret."""
        given = parse_value(await json_bytes(request), WebhookBody)
        try:
            check_url(given.url, side.webhook_schemes, reach)
        except InvalidMessage as error:
            raise invalid_body(str(error).partition(": ")[2], "#/url") from None
        if given.secret is not None and "\0" in given.secret:
            raise invalid_body("holds the character NUL, which cannot be stored", "#/secret")
        spec = WebhookSpec(
            timeout_s=given.timeout_s,
            max_attempts=given.max_attempts,
            max_body_bytes=given.max_body_bytes,
            enabled=given.enabled,
        )
        webhook = await webhooks.put(name, given.url, given.secret, spec)
        if webhook is None:
            raise Problem(409, "conflict", f"there are {MAX_WEBHOOKS} webhooks already")
        return json_response(_item(webhook))

    @router.delete(
        "/api/webhooks/{name}",
        status_code=204,
        response_model=None,
        summary="Delete a webhook",
        responses=answer(None, "Deleted.", status=204, problems=(404,)),
    )
    async def delete_webhook(name: NamePath) -> Response:
        """What waits for it is dead then, and can be tried again once there is one of the name."""
        if not await webhooks.delete(name):
            raise not_found(f"no webhook {name}")
        return Response(status_code=204)

    return router


def _item(webhook: Webhook) -> WebhookItem:
    spec = webhook.spec
    return WebhookItem(
        webhook.name,
        shown_url(webhook.url),
        webhook.secret is not None,
        spec.timeout_s,
        spec.max_attempts,
        spec.max_body_bytes,
        spec.enabled,
        webhook.updated_ms,
    )
