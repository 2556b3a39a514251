"""`/api/nodes`: the machines of the Ray cluster, and which hosts are on each."""

from fastapi import APIRouter, Response

from sensorium.serve.describe import answer
from sensorium.serve.pages import NodeList, json_response
from sensorium.serve.services import Services

_EXAMPLE = {
    "items": [
        {
            "node_id": "1e9372e054df400d27c7c0fd50ad7679adb3cb83f4d6d8d197555449",
            "address": "10.0.0.11",
            "alive": True,
            "resources": {"CPU": 8.0, "memory": 24864702208.0},
            "hosts": ["host-0", "host-1"],
        }
    ]
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/api/nodes",
        response_model=None,
        summary="Nodes",
        responses=answer(NodeList, "All that Ray knows of, also those that are gone.", _EXAMPLE),
    )
    async def nodes() -> Response:
        """A host that does not answer is on none of them; see `/readyz`."""
        return json_response(NodeList(await services.nodes()))

    return router
