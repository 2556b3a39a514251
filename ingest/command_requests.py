"""What others ask devices to do, as bytes: a request in JSON, or the event of another platform's command.

Bytes in, a message or `Undecodable` out. Not a transport, and reads no clock.
"""

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec

from sensorium.actors.messages import SendCommand
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.replies import check_plain

MAX_REQUEST_BYTES: Final = 65_536
MAX_PARAMETERS_BYTES: Final = 32_768
MIN_TIMEOUT_S: Final = 0.1
MAX_TIMEOUT_S: Final = 30 * 86_400.0
MAX_RETRIES: Final = 10
EXPIRES_AFTER_MS: Final = 86_400_000
"""Of a command that does not say when it expires: a day."""
MAX_EXPIRES_AFTER_MS: Final = 366 * 86_400_000

QUEUED: Final = b"sensorium.command.queued"
_EVENTS: Final = b"sensorium.command."

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_TimeoutS = Annotated[float, msgspec.Meta(ge=MIN_TIMEOUT_S, le=MAX_TIMEOUT_S)]
_Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    command: _Name
    parameters: dict[str, Any] = {}
    timeout_s: _TimeoutS = 30.0
    expires_at: str | int | None = None
    retries: _Retries = 0
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class _Queued(msgspec.Struct):
    """A command as it stands in the log of the platform that it comes from, as far as it is asked again."""

    command_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    command: _Name
    parameters: dict[str, Any]
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=round(MAX_TIMEOUT_S * 1000))]
    expires_ms: int
    retries: _Retries = 0


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_queued = msgspec.json.Decoder(_Queued).decode


def decode_request(
    device_id: str, payload: bytes, event_type: bytes | None, place: str, sent_ms: int
) -> SendCommand | None:
    """The command that a payload asks for, or None when it tells what became of one elsewhere.

    Args:
        event_type: the CloudEvents type; None where the payload is a request, as `POST …/commands` takes it.
        place: identifies a request without an idempotency key, wherever and whenever it is read again.
        sent_ms: when it was asked; what says nothing of its end expires a day later.

    Raises:
        Undecodable: it is neither.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes; at most {MAX_REQUEST_BYTES} are taken")
    if event_type is not None and event_type.startswith(_EVENTS) and event_type != QUEUED:
        return None
    try:
        if event_type == QUEUED:
            queued = _decode_queued(payload)
            name, parameters, retries = queued.command, queued.parameters, queued.retries
            command_id, timeout_ms, expires_ms = queued.command_id, queued.timeout_ms, queued.expires_ms
        else:
            asked = _decode_request(payload)
            name, parameters, retries = asked.command, asked.parameters, asked.retries
            command_id = keyed_id(device_id, asked.idempotency_key or f"\0{place}")
            timeout_ms = round(asked.timeout_s * 1000)
            expires_ms = _expires_ms(asked.expires_at, sent_ms)
    except msgspec.ValidationError as error:
        raise Undecodable(Reason.WRONG_TYPE, f"not a command: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Undecodable(Reason.MALFORMED_JSON, detail) from None
    if not (name.isprintable() and command_id.isprintable()):
        raise Undecodable(Reason.BAD_TEXT, "its name or id holds characters that cannot be printed")
    check_parameters(parameters)
    if not 0 < expires_ms <= sent_ms + MAX_EXPIRES_AFTER_MS:
        raise Undecodable(Reason.BAD_TIMESTAMP, "it expires before 1970, or more than a year ahead")
    return SendCommand(device_id, command_id, name, parameters, timeout_ms, expires_ms, retries)


def keyed_id(device_id: str, key: str) -> str:
    """The id of the command that a device is given by an idempotency key: always the same."""
    return blake2b(f"{device_id}\0{key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def check_parameters(parameters: dict[str, Any]) -> None:
    """Raise `Undecodable` for those that cannot be kept, or are too large."""
    check_plain(parameters)
    size = len(msgspec.json.encode(parameters))
    if size > MAX_PARAMETERS_BYTES:
        raise Undecodable(Reason.TOO_LARGE, f"{size} bytes as JSON; at most {MAX_PARAMETERS_BYTES} are sent")


def _expires_ms(expires_at: str | int | None, sent_ms: int) -> int:
    if expires_at is None:
        return sent_ms + EXPIRES_AFTER_MS
    if isinstance(expires_at, str):
        try:
            moment = datetime.fromisoformat(expires_at)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
            expires_at = round(moment.timestamp() * 1000)
        except (ValueError, OverflowError):
            raise Undecodable(Reason.BAD_TIMESTAMP, "expires_at is neither ISO 8601 nor epoch ms") from None
    return expires_at
