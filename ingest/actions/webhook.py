"""Telling webhooks: a signed POST. Follows no redirect, reads little of the answer, shows no secret."""

import asyncio
import email.utils
import hashlib
import hmac
import time
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

import httpx

from sensorium.actors.errors import InvalidMessage
from sensorium.ingest.actions.addresses import AddressRefused, CheckedTransport, Reach
from sensorium.ingest.actions.carriers import Undeliverable, Undelivered, message
from sensorium.storage.database import Pool
from sensorium.storage.delivery_rows import Claimed
from sensorium.storage.sealing import SealBroken, Sealer
from sensorium.storage.webhooks import PgWebhooks, Webhook

ID_HEADER: Final = "Idempotency-Key"
TIMESTAMP_HEADER: Final = "Sensorium-Timestamp"
SIGNATURE_HEADER: Final = "Sensorium-Signature"
SCHEMES: Final = ("https", "http")

MAX_ANSWER_BYTES: Final = 4_096
"""That are read of an answer; what it says is not looked at."""
PAUSED_RETRY_S: Final = 5.0
"""How often to look whether a webhook that is switched off is on again."""

_TEMPORARY: Final = frozenset((408, 409, 423, 425, 429))
"""Of 4xx, those that say: at another time."""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What a receiver compares: HMAC-SHA256 over the timestamp, a dot and the body, in hexadecimal."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def check_url(url: str, schemes: Collection[str] = SCHEMES, reach: Reach | None = None) -> str:
    """The URL unchanged.

    Raises:
        InvalidMessage: nothing can be posted there; the text does not repeat the URL, which may hold a token.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidMessage("url: not a valid address") from None
    if parts.scheme not in schemes:
        raise InvalidMessage(f"url: must start with {' or '.join(f'{s}://' for s in schemes)}")
    if not parts.hostname or port == 0 or not url.isprintable() or " " in url:
        raise InvalidMessage("url: names no host, or holds what no address does")
    if reach is not None and reach.refuses_host(parts.hostname):
        raise InvalidMessage("url: is an address that is not public; actions.webhook_networks can allow it")
    if "@" in parts.netloc:
        raise InvalidMessage("url: must hold no user and password; what is sent is signed instead")
    if parts.fragment:
        raise InvalidMessage("url: a fragment is never sent")
    return url


def shown_url(url: str) -> str:
    """The URL as people may see it: many services take a path or a query for a password."""
    parts = urlsplit(url)
    hidden = parts.path not in ("", "/") or parts.query
    return f"{parts.scheme}://{parts.netloc}{'/***' if hidden else ''}"


class WebhookCarrier:
    """A `Carrier` over webhooks that `pool`'s database knows; the pool stays the caller's."""

    def __init__(
        self,
        pool: Pool,
        schemes: Collection[str] = SCHEMES,
        clock_s: Callable[[], float] = time.time,
        sealer: Sealer | None = None,
        reach: Reach | None = None,
    ) -> None:
        self._webhooks = PgWebhooks(pool, sealer)
        self._schemes = schemes
        self._clock_s = clock_s
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            transport=CheckedTransport(
                reach or Reach(), httpx.Limits(max_connections=100, max_keepalive_connections=20)
            ),
            headers={"User-Agent": "Sensorium"},
        )

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """As the port says. Everything but 2xx is a failure; 4xx but a few is one for good."""
        webhook = await self._webhook(delivery)
        body = message(delivery)
        if len(body) > webhook.spec.max_body_bytes:
            raise Undeliverable(f"{len(body)} bytes are more than {webhook.spec.max_body_bytes}")
        timestamp = str(int(self._clock_s()))
        headers = {
            "Content-Type": "application/json",
            ID_HEADER: delivery.delivery_id,
            TIMESTAMP_HEADER: timestamp,
            "Sensorium-Attempt": str(attempts),
        }
        if webhook.secret is not None:
            headers[SIGNATURE_HEADER] = f"v1={signature(webhook.secret, timestamp, body)}"
        most = webhook.spec.max_attempts
        try:
            async with (
                asyncio.timeout(webhook.spec.timeout_s),
                self._client.stream(
                    "POST", webhook.url, content=body, headers=headers, timeout=webhook.spec.timeout_s
                ) as answer,
            ):
                status, retry_after = answer.status_code, answer.headers.get("Retry-After")
                await _drained(answer)
        except TimeoutError:
            raise Undelivered(f"no answer within {webhook.spec.timeout_s:g} s", most=most) from None
        except AddressRefused as error:
            raise Undeliverable(str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Their texts may repeat the URL.
            raise Undelivered(f"no answer: {type(error).__name__}", most=most) from None
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise Undeliverable(f"answered {status}: redirects are not followed")
        if 400 <= status < 500 and status not in _TEMPORARY:
            raise Undeliverable(f"answered {status}")
        asked_s = retry_after_s(retry_after, self._clock_s())
        raise Undelivered(f"answered {status}", asked_s, most=most)

    async def close(self) -> None:
        """As the port says."""
        await self._client.aclose()

    async def _webhook(self, delivery: Claimed) -> Webhook:
        name = delivery.queue.partition(":")[2]
        try:
            webhook = await self._webhooks.get(name)
        except SealBroken as error:
            raise Undelivered(str(error), PAUSED_RETRY_S, counts=False) from None
        if webhook is None:
            raise Undeliverable(f"there is no webhook {name}")
        if not webhook.spec.enabled:
            raise Undelivered("the webhook is switched off", PAUSED_RETRY_S, counts=False)
        try:
            check_url(webhook.url, self._schemes)
        except InvalidMessage as error:
            raise Undeliverable(str(error)) from None
        return webhook


async def _drained(answer: httpx.Response) -> None:
    """Read a short answer, so that the connection can be used again; give a long one up."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            return


def retry_after_s(header: str | None, now_s: float) -> float:
    """What a Retry-After asks for (RFC 9110, section 10.2.3): seconds or a date; 0 when it says neither."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        moment = email.utils.parsedate_to_datetime(header)
        return max(0.0, moment.timestamp() - now_s)
    except (TypeError, ValueError, OverflowError):
        return 0.0
