"""What devices say besides telemetry: replies to commands, and that they come and go. Bytes in, values or
`Undecodable` out. Not a transport, and reads no clock."""

from typing import Any, Final, Literal, NamedTuple

import msgspec

from sensorium.ingest.errors import Reason, Undecodable

MAX_REPLY_BYTES: Final = 65_536
MAX_REASON_CHARS: Final = 1_024

_STATUSES: Final = {"accepted": "delivered", "delivered": "delivered"}
_PRESENCE: Final = {"online": True, "connected": True, "offline": False, "disconnected": False}


class Reply(NamedTuple):
    """A reply: "delivered", "succeeded" or "failed", with what came of it and why."""

    status: str
    result: Any
    reason: str | None


class _Reply(msgspec.Struct):
    status: Literal["accepted", "delivered", "succeeded", "failed"]
    result: Any = None
    reason: str | None = None


class _Status(msgspec.Struct):
    status: str | None = None
    online: bool | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_status = msgspec.json.Decoder(_Status).decode
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_reply(payload: bytes) -> Reply:
    """A reply to a command: `{"status": "succeeded", "result": …, "reason": …}`.

    "accepted" and "delivered" say that the device has the command and goes about it.

    Raises:
        Undecodable: it is none.
    """
    if len(payload) > MAX_REPLY_BYTES:
        raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes; a reply takes at most {MAX_REPLY_BYTES}")
    try:
        said = _decode_reply(payload)
    except msgspec.ValidationError as error:
        raise Undecodable(Reason.WRONG_TYPE, f"not a reply to a command: {error}") from None
    except _NOT_JSON as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Undecodable(Reason.MALFORMED_JSON, detail) from None
    check_plain([said.result, said.reason])
    reason = None if said.reason is None else said.reason[:MAX_REASON_CHARS]
    return Reply(_STATUSES.get(said.status, said.status), said.result, reason)


def decode_presence(payload: bytes) -> bool | None:
    """Whether the device says that it is there: `online`, `"offline"`, `{"status": "online"}` or
    `{"online": true}`. None for an empty payload, by which a retained message is removed.

    Raises:
        Undecodable: it says neither.
    """
    if not payload:
        return None
    word = payload.decode(errors="replace").strip().strip('"').lower()
    if word.startswith("{"):
        try:
            said = _decode_status(payload)
        except _NOT_JSON as error:
            raise Undecodable(Reason.MALFORMED_JSON, str(error)) from None
        if said.online is not None:
            return said.online
        word = (said.status or "").lower()
    if word not in _PRESENCE:
        raise Undecodable(Reason.WRONG_TYPE, f"a status is one of {', '.join(_PRESENCE)}, not {word[:64]!r}")
    return _PRESENCE[word]


def check_plain(value: Any) -> None:
    """Raise `Undecodable` for JSON that cannot be kept: NUL in a text, a whole number beyond 64 bits."""
    try:
        packed = msgspec.msgpack.encode(value)
    except (OverflowError, RecursionError):
        raise Undecodable(Reason.WRONG_TYPE, "a number beyond 64 bits, or nested too deeply") from None
    # NUL stands for 0 in the packed form as well, so only where there is one the texts are looked at.
    if b"\0" in packed and b"\\u0000" in msgspec.json.encode(value):
        raise Undecodable(Reason.BAD_TEXT, "a text contains a NUL character")
