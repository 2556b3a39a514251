"""`/api/lorawan/tts/{application}`: the webhook of The Things Stack v3."""

import asyncio
import hmac
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from sensorium.actors.messages import Outcome, Refusal
from sensorium.actors.router import ASK_PENDING
from sensorium.ingest.lorawan.adapter import LorawanAdapter
from sensorium.serve.body import json_bytes
from sensorium.serve.problems import RETRY_AFTER_S, Problem, not_found
from sensorium.serve.services import Services

Application = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")]


def routes(services: Services) -> APIRouter:
    """The routes of this page; none without a secret."""
    router = APIRouter(tags=["data"])
    adapter, secret = services.lorawan, services.tts_secret
    if adapter is None or secret is None:
        return router
    expected = secret.encode()

    @router.post(
        "/api/lorawan/tts/{application}",
        status_code=204,
        response_model=None,
        summary="Webhook of The Things Stack",
        include_in_schema=False,
    )
    async def tts(
        application: Application,
        request: Request,
        x_webhook_secret: Annotated[str, Header(max_length=256)] = "",
    ) -> Response:
        """Uplinks, joins and locations, answered after the commit; other messages are ignored."""
        if not hmac.compare_digest(x_webhook_secret.encode(errors="replace"), expected):
            raise Problem(401, "unauthorized", "X-Webhook-Secret is missing or wrong.")
        payload = await json_bytes(request)
        if services.router.pending >= ASK_PENDING:
            raise Problem(
                429,
                "overloaded",
                f"{services.router.pending} messages wait for the hosts",
                retry_after_s=RETRY_AFTER_S,
            )
        outcome = await _taken(services, adapter, application, payload)
        if isinstance(outcome, Refusal):
            if outcome.code in ("unregistered", "not_found"):
                raise not_found(outcome.detail)
            raise Problem(422, outcome.code, outcome.detail)
        return Response(status_code=204)

    return router


async def _taken(services: Services, adapter: LorawanAdapter, application: str, payload: bytes) -> Outcome:
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(_: None, outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        async with asyncio.timeout(services.timeout_s):
            await adapter.tts(application, payload, services.now_ms(), done, None)
            return await future
    except TimeoutError:
        raise Problem(
            503,
            "unavailable",
            f"Not committed within {services.timeout_s:.0f} s, though it still may be. Send it again.",
            retry_after_s=RETRY_AFTER_S,
        ) from None
