"""What query parameters may say: times, intervals, lists, cursors; and that no unknown one is ignored."""

import base64
import binascii
import difflib
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from fastapi import Path, Query, Request
from fastapi.routing import APIRoute

from sensorium.serve.problems import FieldError, Problem, invalid_parameter

OPEN_PREFIX: Final = "x-query-prefix"
"""Key in a route's `openapi_extra`: parameters that start with its value are known to the endpoint."""

MAX_INTERVAL_S: Final = 366 * 86_400
MAX_METRICS: Final = 100
_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_INTERVAL: Final = re.compile(r"(\d{1,9})([smhd]?)")
_EPOCH_MS: Final = re.compile(r"-?\d{1,15}")
_LOST_PLUS: Final = re.compile(r"(.*T.*) (\d\d:?\d\d)")
_MAX_EPOCH_MS: Final = 253_402_300_799_999  # the end of the year 9999

_DEVICE_CHARACTER: Final = r"[^\x00-\x1f\x7f-\x9f/+#]"
DEVICE_ID: Final = re.compile(_DEVICE_CHARACTER + "{1,128}")
"""What `DevicePath` takes."""

DevicePath = Annotated[
    str,
    Path(
        min_length=1,
        max_length=128,
        pattern=f"^{_DEVICE_CHARACTER}+$",
        description="The device's id.",
        examples=["sensor-001"],
    ),
]
RulePath = Annotated[str, Path(min_length=1, max_length=64, description="The rule's id.")]
StartQuery = Annotated[
    str | None,
    Query(description="From this event time on, included: ISO 8601 (UTC without offset) or epoch ms."),
]
EndQuery = Annotated[
    str | None,
    Query(description="Up to this event time, excluded: as `start`."),
]
PageLimitQuery = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
CursorQuery = Annotated[
    str | None, Query(max_length=2048, description="`next` of the page before; all else must stay the same.")
]


# A coroutine although it awaits nothing: FastAPI would run a plain function in a thread, for each request.
async def known_query(request: Request) -> None:
    """Raises 422 naming the parameters that the endpoint does not know, or that are given twice."""
    params = request.query_params
    if not params:
        return
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = {field.alias for field in route.dependant.query_params}
    prefix: str | None = (route.openapi_extra or {}).get(OPEN_PREFIX)
    errors = []
    for name in params:
        if name not in known and not (prefix and name.startswith(prefix)):
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known)) or 'none'}"
            errors.append(FieldError(f"unknown parameter{hint}", parameter=name))
        elif len(params.getlist(name)) > 1:
            errors.append(FieldError("given more than once", parameter=name))
    if errors:
        names = ", ".join(str(error.parameter) for error in errors)
        raise Problem(422, "invalid", f"{names}: {errors[0].detail}", errors=errors)


def time_ms(parameter: str, text: str | None) -> int | None:
    """Milliseconds since 1970 UTC from ISO 8601 or epoch milliseconds."""
    if text is None:
        return None
    if _EPOCH_MS.fullmatch(text):
        value = int(text)
        if abs(value) > _MAX_EPOCH_MS:
            raise invalid_parameter(parameter, "beyond the year 9999")
        return value
    # A plus that was not percent-encoded arrives as a space.
    if lost := _LOST_PLUS.fullmatch(text):
        text = f"{lost[1]}+{lost[2]}"
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_parameter(
            parameter, f"{text!r} is neither ISO 8601, such as 2024-01-01T12:00:00Z, nor epoch milliseconds"
        ) from None
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND


_MILLISECOND: Final = datetime.resolution * 1000


def time_range(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """Both ends in milliseconds, of which the first must lie before the second."""
    start_ms, end_ms = time_ms("start", start), time_ms("end", end)
    if start_ms is not None and end_ms is not None and start_ms >= end_ms:
        raise invalid_parameter("end", "must be later than start")
    return start_ms, end_ms


def interval_s(text: str | None) -> int | None:
    """Seconds of an interval such as 60, 60s, 5m, 1h or 1d."""
    if text is None:
        return None
    match = _INTERVAL.fullmatch(text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= MAX_INTERVAL_S:
        raise invalid_parameter(
            "interval", f"{text!r} is not an interval from 1s to 366d, such as 60, 60s, 5m, 1h or 1d"
        )
    return seconds


def check_zone(name: str) -> None:
    """Raises a problem unless there is such a time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid_parameter("timezone", f"{name!r} is none, such as Europe/Berlin") from None


def metric_names(text: str | None) -> list[str] | None:
    """The names of a comma-separated list, each once."""
    if text is None:
        return None
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if len(names) > MAX_METRICS or any(not 1 <= len(name) <= 128 or "\0" in name for name in names):
        raise invalid_parameter(
            "metrics", f"1 to {MAX_METRICS} names of 1 to 128 characters, with commas between"
        )
    return names


def cursor_out(kind: str, after: Any) -> str:
    """An opaque cursor for lists of this kind."""
    return base64.urlsafe_b64encode(msgspec.json.encode([kind, after])).decode().rstrip("=")


def cursor_in(kind: str, cursor: str | None) -> Any:
    """What `cursor_out` was given; None without a cursor."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        stored_kind, after = msgspec.json.decode(raw, type=tuple[str, Any])
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        stored_kind, after = "", None
    if stored_kind != kind or after is None:
        raise invalid_parameter("cursor", "not a cursor of this list; take `next` as the page before gave it")
    return after


def link_header(request: Request, cursor: str | None) -> dict[str, str]:
    """The `Link` header (RFC 8288) to the next page, relative to the host."""
    if cursor is None:
        return {}
    params = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    query = urlencode([*params, ("cursor", cursor)])
    return {"Link": f'<{request.url.path}?{query}>; rel="next"'}
