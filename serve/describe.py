"""OpenAPI: one schema for each value, generated from the very types that are read and written."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sensorium.serve.problems import MEDIA_TYPE, ProblemDocument

_REF: Final = "#/components/schemas/{name}"
_PROBLEMS: Final = {
    401: ("unauthorized", "The secret is missing or wrong."),
    404: ("not_found", "No such device, rule, alarm or path."),
    409: ("conflict", "The device exists already, or its state forbids the request."),
    410: ("cursor_expired", "The cursor is older than the feed goes back."),
    412: ("precondition_failed", "It has changed meanwhile: read it again."),
    413: ("body_too_large", "The body is larger than the bound."),
    415: ("unsupported_media_type", "The body is not JSON."),
    422: ("invalid", "The request breaks a bound; `errors` says where."),
    429: ("overloaded", "Too many requests at once; Retry-After says when to come back."),
    503: (
        "unavailable",
        "The database or a device's host is not there; Retry-After says when to try.",
    ),
}

_NOT_HTTP: Final = {
    "description": "Not a request of HTTP, or its line and headers are longer than the proxy in front takes.",
    "content": {"text/html": {"schema": {"type": "string"}}},
}


def answer(
    schema: type | dict[str, Any] | None,
    description: str,
    example: Any = None,
    *,
    status: int = 200,
    problems: Iterable[int] = (),
    more: Mapping[int, tuple[type | dict[str, Any] | None, str, Any]] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: success, then the problems (422, 429 and 503 go without saying)."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code, (kind, words, shown) in {status: (schema, description, example), **(more or {})}.items():
        documented[code] = {"description": words}
        if kind is not None:
            content: dict[str, Any] = {"schema": kind if isinstance(kind, dict) else reference(kind)}
            if shown is not None:
                content["example"] = shown
            documented[code]["content"] = {"application/json": content}
    for code in sorted({*problems, 422, 429, 503}):
        documented[code] = _problem(code)
    return documented


def body(schema: type | dict[str, Any], examples: Mapping[str, Any], *more_types: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its own body."""
    named = {name: {"value": value} for name, value in examples.items()}
    ref = schema if isinstance(schema, dict) else reference(schema)
    content = {"schema": ref, "examples": named}
    types = ("application/json", *more_types)
    return {"requestBody": {"required": True, "content": dict.fromkeys(types, content)}}


def reference(schema: type) -> dict[str, Any]:
    """A reference to a type's schema."""
    return {"$ref": _REF.format(name=schema.__name__)}


def _problem(status: int) -> dict[str, Any]:
    code, words = _PROBLEMS[status]
    example = {
        "type": f"urn:sensorium:problem:{code}",
        "title": words.split(";")[0].rstrip("."),
        "status": status,
        "detail": words,
        "code": code,
        "instance": "/api/devices/sensor-001",
    }
    described: dict[str, Any] = {
        "description": words,
        "content": {MEDIA_TYPE: {"schema": reference(ProblemDocument), "example": example}},
    }
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return described


def install_openapi(
    app: FastAPI, values: Iterable[type], models: Iterable[type[BaseModel]], more: Mapping[str, Any]
) -> None:
    """Let the app's document hold the schemas of these structs and models by name, and `more` as they are."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _, structs = msgspec.json.schema_components([*values, ProblemDocument], ref_template=_REF)
            _, bodies = models_json_schema(
                [(model, "validation") for model in models], ref_template=_REF.replace("{name}", "{model}")
            )
            schemas.update(structs)
            schemas.update(bodies.get("$defs", {}))
            schemas.update(more)
            # FastAPI's own form of a validation error, which this API never sends.
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"]["400"] = _NOT_HTTP
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
