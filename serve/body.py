"""Request bodies: bytes to JSON to a valid value, or the problem that says what is wrong with them."""

from email.message import Message
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request
from pydantic import BaseModel, ValidationError

from sensorium.serve.problems import (
    FieldError,
    Problem,
    invalid_body,
    pointer_to,
    problem_of_validation,
)

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


NDJSON: Final = "application/x-ndjson"


def media_type(request: Request) -> str | None:
    """What the request says that its body is, without parameters; None: it does not say."""
    said = request.headers.get("content-type")
    if said is None:
        return None
    message = Message()
    message["content-type"] = said
    return message.get_content_type()


def lines(payload: bytes) -> list[bytes]:
    """The lines of NDJSON that are not blank."""
    return [line for line in payload.split(b"\n") if line.strip()]


async def json_bytes(request: Request, *more_types: str) -> bytes:
    """The body, whose media type must be JSON, one of `more_types`, or not said."""
    said = media_type(request)
    if said is not None and said != "application/json" and said not in more_types:
        accepted = ", ".join(("application/json", *more_types))
        raise Problem(415, "unsupported_media_type", f"{said}: send {accepted}", headers={"Accept": accepted})
    return await request.body()


def parse(payload: bytes, model: type[_M]) -> _M:
    """The body as this model."""
    try:
        return model.model_validate(_decode(payload, Any))
    except ValidationError as error:
        raise problem_of_validation(error) from None


def parse_value(payload: bytes, value_type: type[_T]) -> _T:
    """The body as this `msgspec.Struct`."""
    value: _T = _decode(payload, value_type)
    return value


def _decode(payload: bytes, value_type: Any) -> Any:
    try:
        return msgspec.json.decode(payload, type=value_type)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        raise invalid_body(detail, pointer_of_path(path.rstrip("`"))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(
            422, "malformed_json", detail, errors=[FieldError(detail, pointer=pointer_to(()))]
        ) from None


def pointer_of_path(path: str) -> str:
    """`.condition.values[2]` as a JSON pointer."""
    return pointer_to([step for step in path.replace("[", ".").replace("]", "").split(".") if step])
