"""Projections of the log: how far each is, and pausing, resuming and rewinding them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from sensorium.serve.describe import answer
from sensorium.serve.pages import ProjectionItem, ProjectionList, json_response
from sensorium.serve.problems import not_found
from sensorium.serve.services import Services

NamePath = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
_EXAMPLE = {
    "name": "rollups",
    "state": "running",
    "read_from_ms": 1_704_110_400_000,
    "rewinding": False,
    "lag_entries": 0,
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])
    projections = services.projections

    async def listed() -> list[ProjectionItem]:
        return [
            ProjectionItem(p.name, p.state, p.read_from_ms, p.rewinding, p.lag_entries)
            for p in await projections.list()
        ]

    async def now(name: str, found: bool) -> Response:
        items = {item.name: item for item in await listed()}
        if not found or name not in items:
            raise not_found(f"no projection {name} has ever run")
        return json_response(items[name], 202)

    accepted = answer(ProjectionItem, "It will be done.", _EXAMPLE, status=202, problems=(404,))

    @router.get(
        "/api/projections",
        response_model=None,
        summary="Projections",
        responses=answer(ProjectionList, "By name.", {"items": [_EXAMPLE]}),
    )
    async def projections_() -> Response:
        """The lag counts up to what hosts have last saved; `/metrics` knows it to the moment."""
        return json_response(ProjectionList(await listed()))

    @router.post(
        "/api/projections/{name}/pause",
        status_code=202,
        response_model=None,
        summary="Pause",
        responses=accepted,
    )
    async def pause(name: NamePath) -> Response:
        """It flushes what it has and stands still; the log keeps what comes."""
        return await now(name, await projections.pause(name))

    @router.post(
        "/api/projections/{name}/resume",
        status_code=202,
        response_model=None,
        summary="Resume",
        responses=accepted,
    )
    async def resume(name: NamePath) -> Response:
        """It goes on from where it stands."""
        return await now(name, await projections.resume(name))

    @router.post(
        "/api/projections/{name}/rewind",
        status_code=202,
        response_model=None,
        summary="Rewind",
        responses=accepted,
    )
    async def rewind(
        name: NamePath,
        to_ms: Annotated[int, Query(ge=0, le=253_402_300_799_999, description="Commit time, epoch ms.")] = 0,
    ) -> Response:
        """It takes again what was committed since. Rollups count anew, from the beginning of the log only."""
        return await now(name, await projections.rewind(name, to_ms))

    return router
