"""`/api/nodes` and `/api/hosts`: the machines of the Ray cluster and the hosts on them, and steering both."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from sensorium.actors.coordinator import MAX_HOSTS
from sensorium.actors.errors import Unavailable
from sensorium.serve.describe import answer
from sensorium.serve.pages import HostList, NodeList, json_response
from sensorium.serve.problems import not_found
from sensorium.serve.services import RunsHosts, Services

NodePath = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")]
_NODES = {
    "items": [
        {
            "node_id": "1e9372e054df400d27c7c0fd50ad7679adb3cb83f4d6d8d197555449",
            "address": "10.0.0.11",
            "alive": True,
            "draining": False,
            "resources": {"CPU": 8.0, "memory": 24864702208.0},
            "hosts": ["host-0", "host-1"],
        }
    ]
}


_HOSTS = {
    "items": [
        {
            "name": "host-0",
            "state": "serving",
            "node_id": "1e9372e054df400d27c7c0fd50ad7679adb3cb83f4d6d8d197555449",
            "pid": 4711,
            "incarnation": 12,
            "shards": 1024,
            "devices_active": 5000,
            "activations": 5012,
            "lease_age_s": 0.4,
            "timers_lag_s": 0.0,
            "commit_lag_s": 0.0,
            "device": None,
        }
    ],
    "wanted": 1,
    "balanced": True,
    "isolated": [{"device_id": "press-7", "process": "device:press-7", "state": "starting"}],
    "max_isolated": 8,
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])

    def cluster() -> RunsHosts:
        if services.cluster is None:
            raise Unavailable("no cluster is connected")
        return services.cluster

    async def steered(how: str, node_id: str, known: bool) -> Response:
        if not known:
            raise not_found(f"no node {node_id} lives; GET /api/nodes shows those that do")
        await services.audit.note(f"node.{how}", node_id)
        return json_response(NodeList(await cluster().nodes()), 202)

    @router.get(
        "/api/nodes",
        response_model=None,
        summary="Nodes",
        responses=answer(NodeList, "All that Ray knows of, also those that are gone.", _NODES),
    )
    async def nodes() -> Response:
        """A host that does not answer is on none of them; see `/readyz`."""
        return json_response(NodeList(await cluster().nodes()))

    steering = answer(NodeList, "It will be done.", _NODES, status=202, problems=(404,))

    @router.post(
        "/api/nodes/{node_id}/drain",
        status_code=202,
        response_model=None,
        summary="Drain a node",
        responses=steering,
    )
    async def drain(node_id: NodePath) -> Response:
        """Its hosts hand over to others, then end, and it gets none. Where it is the only node they stay."""
        return await steered("drain", node_id, await cluster().drain(node_id))

    @router.post(
        "/api/nodes/{node_id}/undrain",
        status_code=202,
        response_model=None,
        summary="Use a node again",
        responses=steering,
    )
    async def undrain(node_id: NodePath) -> Response:
        """It may have hosts again. What Ray was asked to drain stays so."""
        return await steered("undrain", node_id, await cluster().undrain(node_id))

    @router.get(
        "/api/hosts",
        response_model=None,
        summary="Hosts",
        responses=answer(HostList, "Those that answer, by name.", _HOSTS),
    )
    async def hosts() -> Response:
        """`balanced` is false while hosts start or end, or shards move."""
        return json_response(await cluster().hosts())

    @router.post(
        "/api/hosts/scale",
        status_code=202,
        response_model=None,
        summary="Scale",
        responses=answer(HostList, "It will be done.", _HOSTS, status=202),
    )
    async def scale(hosts: Annotated[int, Query(ge=1, le=MAX_HOSTS, description="How many.")]) -> Response:
        """So many hosts from now on, until the platform ends; those that go hand over first."""
        before = (await cluster().hosts()).wanted
        await cluster().scale(hosts)
        await services.audit.note("cluster.scale", "hosts", {"hosts": before}, {"hosts": hosts})
        return json_response(await cluster().hosts(), 202)

    return router
