"""RFC 9457 problem documents: the one form in which this API says that something went wrong."""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sensorium.actors.errors import (
    DeviceConflict,
    DeviceNotFound,
    IsolationLimit,
    Overloaded,
    PreconditionFailed,
    Refused,
    RuleNotFound,
    SensoriumError,
    Unavailable,
)

MEDIA_TYPE: Final = "application/problem+json"

RETRY_AFTER_S: Final = 1.0
"""What `Retry-After` says when nobody knows better."""

_TITLES: Final = {
    "not_found": "No such thing",
    "conflict": "The state forbids it",
    "precondition_failed": "It has changed meanwhile",
    "twin_too_large": "The twin would break a bound",
    "isolation_limit": "As many devices are isolated as may be",
    "cursor_expired": "The cursor is too old",
    "no_history": "Nothing is stored of it",
    "invalid": "The request breaks a bound",
    "refused": "The device refused",
    "unavailable": "Not available now",
    "overloaded": "Too much at once",
    "internal": "Our fault",
    "method_not_allowed": "The path knows other methods",
    "body_too_large": "The body is too large",
    "unsupported_media_type": "The body's media type is not understood",
    "malformed_json": "The body is not JSON",
}

_METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

log = logging.getLogger(__name__)


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing wrong with a request: in its body (`pointer`, RFC 6901) or in a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, after RFC 9457. `code` is stable and made for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str = ""
    errors: Sequence[FieldError] = ()
    results: Sequence[Any] = ()


class Problem(Exception):
    """Raised by an endpoint to answer with a problem document.

    Attributes:
        status: the HTTP status.
        code: a short, stable reason.
        results: what became of each item, where a request carries several.
        retry_after_s: sent as `Retry-After`, in whole seconds, rounded up.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        results: Sequence[Any] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.results = results
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def response(self, instance: str) -> Response:
        """The document as a response; `instance` is the path that was asked for."""
        document = ProblemDocument(
            type=f"urn:sensorium:problem:{self.code}",
            title=_TITLES.get(self.code) or self.code.replace("_", " ").capitalize(),
            status=self.status,
            detail=self.detail,
            code=self.code,
            instance=instance,
            errors=self.errors,
            results=self.results,
        )
        return Response(msgspec.json.encode(document), self.status, self.headers, MEDIA_TYPE)


def not_found(detail: str) -> Problem:
    """404."""
    return Problem(404, "not_found", detail)


def invalid_parameter(parameter: str, detail: str) -> Problem:
    """422 about a query or path parameter."""
    return Problem(422, "invalid", f"{parameter}: {detail}", errors=[FieldError(detail, parameter=parameter)])


def invalid_body(detail: str, pointer: str) -> Problem:
    """422 about a place in the body."""
    return Problem(422, "invalid", f"{pointer}: {detail}", errors=[FieldError(detail, pointer=pointer)])


def problem_of(error: SensoriumError) -> Problem:
    """What the caller is told of an error of the runtime."""
    match error:
        case DeviceNotFound() | RuleNotFound():
            return Problem(404, error.code, str(error))
        case DeviceConflict() | IsolationLimit():
            return Problem(409, error.code, str(error))
        case PreconditionFailed():
            return Problem(412, error.code, str(error))
        case Refused():
            return Problem(422, error.code, str(error))
        case Overloaded():
            return Problem(429, "overloaded", str(error), retry_after_s=error.retry_after_s)
        case Unavailable():
            return Problem(503, "unavailable", str(error), retry_after_s=RETRY_AFTER_S)
        case _:
            return Problem(500, "internal", str(error))


def problem_of_validation(error: ValidationError | RequestValidationError, *below: str) -> Problem:
    """422 with one entry for each thing that is wrong; `below` leads to what was validated."""
    errors = [_field_error(item, below) for item in error.errors()]
    where = errors[0].pointer or errors[0].parameter
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, "invalid", f"{where}: {errors[0].detail}{more}", errors=errors)


def _field_error(item: Mapping[str, Any], below: Sequence[str]) -> FieldError:
    place: tuple[str | int, ...] = (*below, *item["loc"])
    detail = str(item["msg"]).removeprefix("Value error, ")
    if place and place[0] in ("query", "path", "header"):
        return FieldError(detail, parameter=str(place[-1]))
    return FieldError(detail, pointer=pointer_to(place))


def pointer_to(place: Sequence[str | int]) -> str:
    """A JSON pointer in its URI fragment form, such as `#/location/latitude`."""
    return "#" + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)


def _methods_at(request: Request) -> list[str]:
    """The methods that any route with this path takes; the router names those of the first one only."""
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


def install_handlers(app: FastAPI) -> None:
    """Make every error that leaves an endpoint or the routing a problem document."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response(request.url.path)

    async def runtime(request: Request, error: Exception) -> Response:
        assert isinstance(error, SensoriumError)
        return problem_of(error).response(request.url.path)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_of_validation(error).response(request.url.path)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        headers = error.headers
        if error.status_code == 404:
            detail = f"Nothing is served at {request.url.path}; /docs lists what is."
        elif error.status_code == 405:
            detail = f"{request.method} is not allowed here."
            headers = {"Allow": ", ".join(_methods_at(request))}
        else:
            detail = str(error.detail)
        code = code or HTTPStatus(error.status_code).name.lower()
        return Problem(error.status_code, code, detail, headers=headers).response(request.url.path)

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "internal", "Something went wrong on our side; it is logged.").response(
            request.url.path
        )

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(SensoriumError, runtime)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)
