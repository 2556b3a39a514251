"""The HTTP API as a FastAPI app over `Services`. Not a server: `deployment` runs it on Ray Serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.routing import Route, WebSocketRoute

from sensorium.ingest.lorawan.tts import TtsMessage
from sensorium.serve import (
    actions,
    alarm_actions,
    alarms,
    anomalies,
    audit,
    backtest,
    bulk,
    bulk_jobs,
    bulk_models,
    commands,
    dead_letters,
    devices,
    erasures,
    events,
    export,
    fleet_measures,
    graphql,
    health,
    history,
    live,
    lorawan,
    maintenance,
    measure_models,
    measures,
    nodes,
    outlook,
    past_state,
    path_parts,
    profiles,
    projections,
    rules,
    series,
    storage_use,
    telemetry,
    trained_models,
    twins,
    webhooks,
    why,
)
from sensorium.serve.command_models import CommandBody
from sensorium.serve.describe import install_openapi
from sensorium.serve.graphql import GraphQLApi
from sensorium.serve.inflate import INFLATED_TIMES, Inflate
from sensorium.serve.limits import BodyLimit, InFlightLimit
from sensorium.serve.models import DeviceBody, DevicePatch
from sensorium.serve.origin import Attributed, AttributedAsks
from sensorium.serve.pages import VALUES
from sensorium.serve.problems import install_handlers
from sensorium.serve.query import known_query
from sensorium.serve.services import Services
from sensorium.serve.short_way import ShortRoute
from sensorium.storage.erasures import Erasure
from sensorium.storage.past_states import PastState

VERSION: Final = "0.1.0"

_TAGS: Final = [
    {"name": "devices", "description": "Who is there."},
    {"name": "data", "description": "What they measure."},
    {"name": "commands", "description": "What they shall do."},
    {"name": "twin", "description": "How they shall be, and how they say that they are."},
    {"name": "analytics", "description": "Over many devices."},
    {"name": "rules", "description": "When to raise an alarm."},
    {"name": "alarms", "description": "What was raised."},
    {"name": "actions", "description": "What was done about it."},
    {"name": "live", "description": "While it happens."},
    {"name": "dead letters", "description": "What could not be used, and why."},
    {"name": "operation", "description": "For those who run the platform."},
]
_DESCRIPTION: Final = (
    "Times go out as milliseconds since 1970 UTC (`…_ms`) and come in as those or as ISO 8601. Errors are"
    " problem documents (RFC 9457) with a stable `code`. A 2xx follows the commit. Lists come in pages: pass"
    " `next` as `cursor`, or follow the `Link` header."
)


def build_app(services: Services) -> FastAPI:
    """The app over opened services, which stay the caller's to close after the app's shutdown."""
    path_parts.register()
    services = replace(services, router=AttributedAsks(services.router))
    refreshing = rules.Refreshing(services)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await refreshing.close()

    app = FastAPI(
        title="Sensorium",
        version=VERSION,
        summary="An IoT platform on the actor model.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        dependencies=[Depends(known_query)],
    )
    # Routes are tried in their order, twice for each request: first what is asked all the time.
    often = [telemetry.routes(services), commands.routes(services)]
    app.router.routes.insert(0, ShortRoute(often))
    for router in often:
        app.include_router(router)
    app.include_router(devices.routes(services))
    app.include_router(profiles.routes(services))
    app.include_router(erasures.routes(services))
    app.include_router(past_state.routes(services))
    app.include_router(bulk.routes(services))
    app.include_router(history.routes(services))
    app.include_router(export.routes(services))
    app.include_router(series.routes(services))
    app.include_router(bulk_jobs.routes(services))
    app.include_router(twins.routes(services))
    app.include_router(events.routes(services))
    app.include_router(lorawan.routes(services))
    app.include_router(rules.routes(services, refreshing))
    app.include_router(backtest.routes(services))
    app.include_router(alarms.routes(services))
    app.include_router(anomalies.routes(services))
    app.include_router(measures.routes(services))
    app.include_router(fleet_measures.routes(services))
    app.include_router(dead_letters.routes(services))
    app.include_router(alarm_actions.routes(services))
    app.include_router(why.routes(services))
    if services.actions is not None:
        app.include_router(actions.routes(services.actions))
        app.include_router(webhooks.routes(services.actions))
        app.include_router(maintenance.routes(services.actions))
    app.include_router(outlook.routes(services))
    if services.models is not None:
        app.include_router(trained_models.routes(services.models))
    app.include_router(live.routes(services))
    app.include_router(health.routes(services))
    app.include_router(nodes.routes(services))
    app.include_router(projections.routes(services))
    app.include_router(storage_use.routes(services))
    app.include_router(audit.routes(services.audit))
    if services.batched is not None:
        api = GraphQLApi(services, services.batched)
        app.router.routes.append(Route(graphql.PATH, api, methods=["GET", "POST"], include_in_schema=False))
        app.router.routes.append(WebSocketRoute(graphql.PATH, api))
    install_handlers(app)
    bodies: tuple[type[BaseModel], ...] = (
        *(DeviceBody, DevicePatch, CommandBody, bulk_models.BulkCommandBody, bulk_models.BulkTwinBody),
        *alarm_actions.BODIES,
    )
    install_openapi(
        app,
        (
            *VALUES,
            audit.AuditPage,
            audit.AuditHead,
            Erasure,
            PastState,
            erasures.ErasurePage,
            *bulk_models.VALUES,
            *measure_models.VALUES,
            *profiles.VALUES,
            why.AlarmWhy,
            maintenance.MaintenanceList,
            *outlook.VALUES,
            *trained_models.VALUES,
            TtsMessage,
        ),
        bodies,
        {**telemetry.SCHEMA, **bulk.SCHEMA},
    )
    app.add_middleware(Attributed, changed=services.audit.kick)
    app.add_middleware(Inflate, max_bytes=INFLATED_TIMES * services.max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=services.max_body_bytes)
    app.add_middleware(InFlightLimit, max_requests=services.max_requests, exempt=health.PATHS | {live.PATH})
    return app
