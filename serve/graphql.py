"""`/graphql`: the schema over HTTP and WebSocket, with an explorer that needs no other server."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL

from sensorium.serve.graphql_context import Context
from sensorium.serve.graphql_schema import schema
from sensorium.serve.services import ReadsForMany, Services

PATH: Final = "/graphql"
PAGE: Final = Path(__file__).with_name("explorer.html")
SUBSCRIPTIONS_A_CONNECTION: Final = 20


class GraphQLApi(GraphQL[Context, None]):
    """The ASGI application. A browser that opens the address gets the explorer."""

    def __init__(self, services: Services, reads: ReadsForMany) -> None:
        super().__init__(
            schema,
            graphql_ide=None,
            allow_queries_via_get=False,
            subscription_protocols=("graphql-transport-ws",),
            max_subscriptions_per_connection=SUBSCRIPTIONS_A_CONNECTION,
        )
        self._services = services
        self._reads = reads
        self._page = PAGE.read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] == "http" and scope["method"] == "GET":
            await HTMLResponse(self._page)(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        """New loaders for each request."""
        return Context(self._services, self._reads, request)
