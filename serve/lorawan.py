"""`/api/lorawan/tts/{application}`: the webhook of The Things Stack v3."""

import asyncio
import hmac
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response, Security
from fastapi.security import APIKeyHeader

from sensorium.actors.messages import Outcome, Refusal
from sensorium.actors.router import ASK_PENDING
from sensorium.ingest.lorawan.adapter import LorawanAdapter
from sensorium.ingest.lorawan.tts import TtsMessage
from sensorium.serve.body import json_bytes
from sensorium.serve.describe import answer, body
from sensorium.serve.problems import RETRY_AFTER_S, Problem, not_found
from sensorium.serve.services import Services

Application = Annotated[
    str,
    Path(
        min_length=1,
        max_length=64,
        pattern=r"^[a-z0-9-]+$",
        description="The application's id there.",
        examples=["app"],
    ),
]
Secret = Annotated[
    str | None,
    Security(
        APIKeyHeader(
            name="X-Webhook-Secret",
            scheme_name="WebhookSecret",
            description="What the configuration has as `lorawan.tts_secret`.",
            auto_error=False,
        )
    ),
]

_IDS: Final = {
    "device_id": "eui-a8404137b182428e",
    "dev_eui": "A8404137B182428E",
    "dev_addr": "260B1234",
    "application_ids": {"application_id": "app"},
}
_AT: Final = "2024-01-01T12:00:00.123456789Z"
EXAMPLES: Final[dict[str, Any]] = {
    "an uplink": {
        "end_device_ids": _IDS,
        "received_at": _AT,
        "uplink_message": {
            "session_key_id": "AXA50tHUSfEB2JBzNSGbBw==",
            "f_port": 2,
            "f_cnt": 41,
            "frm_payload": "A2cBEAVnAP8=",
            "rx_metadata": [{"gateway_ids": {"gateway_id": "roof"}, "rssi": -35, "snr": 5.5}],
            "received_at": _AT,
        },
    },
    "a join": {
        "end_device_ids": _IDS,
        "received_at": _AT,
        "join_accept": {"session_key_id": "AXA50tHUSfEB2JBzNSGbBw==", "received_at": _AT},
    },
    "a location": {
        "end_device_ids": _IDS,
        "received_at": _AT,
        "location_solved": {"location": {"latitude": 52.52, "longitude": 13.405, "altitude": 34}},
    },
    "of a command": {
        "end_device_ids": _IDS,
        "received_at": _AT,
        "downlink_ack": {
            "correlation_ids": ["sensorium:command:4b21c5ad5a3f4a3f9b0c6f4e0d1a2b3c"],
            "confirmed": True,
        },
    },
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["data"])
    adapter, secret = services.lorawan, services.tts_secret

    @router.post(
        "/api/lorawan/tts/{application}",
        status_code=204,
        response_model=None,
        summary="Webhook of The Things Stack",
        responses=answer(
            None,
            "Committed, or nothing that would be kept.",
            status=204,
            problems=(401, 404, 413, 415),
        ),
        openapi_extra=body(TtsMessage, EXAMPLES),
    )
    async def tts(application: Application, request: Request, given: Secret) -> Response:
        """Uplinks, joins, locations and what became of commands, answered after the commit.

        Other messages are ignored. Where no `lorawan.tts_secret` is configured, there is no webhook: 404.
        """
        if adapter is None or secret is None:
            raise not_found("no secret is configured for webhooks of The Things Stack")
        if not hmac.compare_digest((given or "").encode(errors="replace"), secret.encode()):
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
