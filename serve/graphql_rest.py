"""What GraphQL has the REST API do: calls within the process, under the name of whoever asked."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
from graphql import GraphQLError

from sensorium.actors.origin import ASKED_BY
from sensorium.serve.graphql_context import Info
from sensorium.serve.headers import BY_HEADER, WAY_HEADER
from sensorium.serve.origin import FORWARDED_HEADER, REQUEST_ID_HEADER, origin_of

REST: Final = "http://rest"


async def rest(
    info: Info,
    method: str,
    path: str,
    body: Any = None,
    more: Mapping[str, str] | None = None,
    query: Mapping[str, Any] | None = None,
) -> Any:
    """What the REST API answers, asked within this process. Raises its problem.

    `more` are headers; of `query` what is None is left out.
    """
    transport = httpx.ASGITransport(info.context.request.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=REST, timeout=None) as client:
        content = None if body is None else msgspec.json.encode(body)
        headers = {**(more or {}), **({} if body is None else {"Content-Type": "application/json"})}
        # Over a WebSocket there is no request that was attributed yet.
        origin = ASKED_BY.get() or origin_of(info.context.request.scope)
        headers |= {WAY_HEADER: "graphql", REQUEST_ID_HEADER: origin.request_id}
        headers |= {BY_HEADER: quote(origin.by), FORWARDED_HEADER: origin.client}
        # An empty one would take away what the path itself asks for.
        given = {name: value for name, value in (query or {}).items() if value is not None} or None
        response = await client.request(method, path, content=content, headers=headers, params=given)
    said: Any = msgspec.json.decode(response.content) if response.content else None
    if response.is_success:
        return said
    raise GraphQLError(
        said["detail"],
        extensions={
            "code": said["code"],
            "status": said["status"],
            **({"errors": said["errors"]} if "errors" in said else {}),
        },
    )
