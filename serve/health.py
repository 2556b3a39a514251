"""`/healthz`, `/readyz` and `/metrics`: for those who operate the platform."""

import asyncio
import time
from typing import Final

from fastapi import APIRouter, Response

from sensorium.actors.errors import SensoriumError
from sensorium.serve.describe import answer
from sensorium.serve.metrics_page import CONTENT_TYPE, render
from sensorium.serve.pages import Health, Readiness, json_response
from sensorium.serve.problems import RETRY_AFTER_S, FieldError, Problem
from sensorium.serve.services import Check, Services

CHECK_TIMEOUT_S: Final = 2.0
FRESH_S: Final = 0.5
"""A finding this old is given again, so that many probes cost the database no more than one."""

PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Checks:
    """Runs the readiness checks side by side, each for at most `CHECK_TIMEOUT_S`."""

    def __init__(self, services: Services) -> None:
        self._checks = services.checks
        self._lock = asyncio.Lock()
        self._found: dict[str, str] = {}
        self._found_at_s = float("-inf")

    async def run(self) -> dict[str, str]:
        """ "ok" or the reason why not, by the check's name."""
        async with self._lock:
            if time.monotonic() - self._found_at_s > FRESH_S:
                found = await asyncio.gather(*(_try(check) for check in self._checks.values()))
                self._found = dict(zip(self._checks, found, strict=True))
                self._found_at_s = time.monotonic()
            return self._found


async def _try(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    except (SensoriumError, OSError) as error:
        return str(error) or type(error).__name__
    return "ok"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])
    checks = Checks(services)

    @router.get(
        "/healthz",
        response_model=None,
        summary="Alive",
        responses=answer(Health, "The process answers.", {"status": "ok"}),
    )
    async def healthz() -> Response:
        """Says nothing about what lies behind; see `/readyz`."""
        return json_response(Health("ok"))

    @router.get(
        "/readyz",
        response_model=None,
        summary="Ready",
        responses=answer(
            Readiness, "Everything is there.", {"status": "ok", "checks": {"database": "ok", "hosts": "ok"}}
        ),
    )
    async def readyz() -> Response:
        """503 with the reasons while the database or a host is not there."""
        found = await checks.run()
        missing = {name: why for name, why in found.items() if why != "ok"}
        if missing:
            raise Problem(
                503,
                "unavailable",
                "; ".join(f"{name}: {why}" for name, why in missing.items()),
                errors=[FieldError(why, parameter=name) for name, why in missing.items()],
                retry_after_s=RETRY_AFTER_S,
            )
        return json_response(Readiness("ok", found))

    @router.get(
        "/metrics",
        response_model=None,
        summary="Prometheus metrics",
        responses={200: {"description": "Text exposition format.", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        """Of all hosts and ingestors; one that does not answer shows as `sensorium_up` 0."""
        return Response(render(await services.statistics()), media_type=CONTENT_TYPE)

    return router
