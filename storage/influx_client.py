"""A connection to InfluxDB, and what its answers mean: which to try again, and which never."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
import msgspec
from influxdb_client import BucketRetentionRules, BucketsService, OrganizationsService, PostBucketRequest
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.rest import ApiException

from sensorium.actors.errors import InvalidMessage
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.projection import SinkUnavailable

_TOLD_CHARS: Final = 300
_TOO_LARGE: Final = 413
_REFUSED_POINTS: Final = frozenset({400, 422})
_DAY_S: Final = 86_400


class TooLarge(InvalidMessage):
    """The server takes less at once."""


@asynccontextmanager
async def connected(settings: InfluxSettings) -> AsyncIterator[InfluxDBClientAsync]:
    """A client, closed at the end. Nothing is sent yet.

    Raises:
        SinkUnavailable: the token's file cannot be read.
    """
    try:
        token = settings.secret()
    except OSError as error:
        raise SinkUnavailable(f"InfluxDB: the token's file cannot be read: {error}") from error
    client = InfluxDBClientAsync(
        settings.url,
        token or None,
        settings.org,
        timeout=round(settings.timeout_s * 1000),
        enable_gzip=settings.gzip,
    )
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def influx_errors(what: str, *, what_was_sent_is_fine: bool = False) -> Iterator[None]:
    """Turn what the client raises into our errors, told with what was being done.

    Args:
        what_was_sent_is_fine: it was made by us, not by who asked: a refusal is not the latter's fault.

    Raises:
        TooLarge: 413.
        InvalidMessage: 400 and 422: some of what was sent can never be taken.
        SinkUnavailable: everything that another attempt, or a person at the server, may mend.
    """
    try:
        yield
    except ApiException as error:
        told = f"InfluxDB refuses {what}: {error.status} {_said(error)}"
        if error.status == _TOO_LARGE:
            raise TooLarge(told) from error
        if error.status in _REFUSED_POINTS and not what_was_sent_is_fine:
            raise InvalidMessage(told) from error
        raise SinkUnavailable(told, retry_after_s(error.headers)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise SinkUnavailable(f"InfluxDB does not answer {what}: {error or type(error).__name__}") from error


def retry_after_s(headers: object, now: datetime | None = None) -> float:
    """The header Retry-After (RFC 9110, section 10.2.3) in seconds; 0 when there is none that makes sense."""
    text = str(getattr(headers, "get", lambda _: None)("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds()) if moment.tzinfo else 0.0


async def ensure_bucket(client: InfluxDBClientAsync, settings: InfluxSettings) -> None:
    """Create the bucket with its retention where it is missing; one that is there stays as it is.

    Raises:
        SinkUnavailable: it is not there and cannot be created.
    """
    try:
        with influx_errors(f"to say whether the bucket {settings.bucket} is there"):
            buckets = BucketsService(client.api_client)
            if (await buckets.get_buckets_async(name=settings.bucket, org=settings.org)).buckets:
                return
            found = await OrganizationsService(client.api_client).get_orgs_async(org=settings.org)
            if not found.orgs:
                raise SinkUnavailable(f"InfluxDB shows the token no organisation {settings.org}")
            rules = []
            if settings.retention_days is not None:
                rules = [BucketRetentionRules(type="expire", every_seconds=settings.retention_days * _DAY_S)]
            await buckets.post_buckets_async(
                PostBucketRequest(org_id=found.orgs[0].id, name=settings.bucket, retention_rules=rules)
            )
    except InvalidMessage as error:
        raise SinkUnavailable(f"{error}; create it, and set create_bucket: false") from error


def _said(error: ApiException) -> str:
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        told = msgspec.json.decode(body)["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        told = body or error.reason or ""
    return " ".join(str(told).split())[:_TOLD_CHARS]
