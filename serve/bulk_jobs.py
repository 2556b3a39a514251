"""`/api/commands/bulk` and `/api/twins/bulk`: one wish to many devices, given out in the background."""

import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.records import OPEN_STATES, CommandState
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse
from sensorium.serve.bulk_models import (
    MAX_SELECTED,
    BulkCommandBody,
    BulkDevice,
    BulkDevicePage,
    BulkFailure,
    BulkJobPage,
    BulkStatus,
    BulkTwinBody,
    job_id_of,
)
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import json_response, page_response
from sensorium.serve.problems import Problem, invalid_body, not_found
from sensorium.serve.query import CursorQuery, PageLimitQuery, cursor_in
from sensorium.serve.services import Services
from sensorium.serve.spreader import command_id_of
from sensorium.storage.bulk_jobs import (
    CANCELLED,
    COMMAND,
    DONE,
    GIVEN,
    REFUSED,
    RUNNING,
    TWIN,
    BulkJob,
)

LISTED_FAILURES: Final = 100
_FAILED: Final = (CommandState.FAILED, CommandState.TIMED_OUT, CommandState.EXPIRED)

JobPath = Annotated[
    str, Path(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$", description="The job's id.")
]


class ItemState(StrEnum):
    """What became of a device of a job."""

    PENDING = "pending"
    GIVEN = "given"
    REFUSED = "refused"
    CANCELLED = "cancelled"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter()
    jobs, commands = services.jobs, services.commands

    async def created(kind: str, given: Any, spec: dict[str, Any], now_ms: int) -> BulkJob:
        which = given.select.which()
        device_ids = await services.registry.select(which)
        if not 1 <= len(device_ids) <= MAX_SELECTED:
            raise invalid_body(
                f"{len(device_ids)} active devices match; a job is for 1 to {MAX_SELECTED}", "#/select"
            )
        key = given.idempotency_key
        job_id = secrets.token_hex(16) if key is None else job_id_of(kind, key)
        new = BulkJob(job_id, kind, RUNNING, now_ms, len(device_ids), given.per_second, spec)
        return await jobs.create(new, device_ids)

    async def found(kind: str, job_id: str) -> BulkJob:
        job = await jobs.get(job_id)
        if job is None or job.kind != kind:
            raise not_found(f"no bulk job {job_id}")
        return job

    async def status_of(job: BulkJob) -> BulkStatus:
        counts = await jobs.counts(job.job_id)
        failures = []
        if counts.get(REFUSED):
            page = await jobs.items(job.job_id, REFUSED, None, LISTED_FAILURES)
            failures += [BulkFailure(*item) for item in page.items]
        states: Mapping[str, int] = {}
        if job.kind == COMMAND:
            states = await commands.counts(job.job_id)
            for state in _FAILED:
                if states.get(state) and len(failures) < LISTED_FAILURES:
                    failures += await failed(job.job_id, state, LISTED_FAILURES - len(failures))
        is_open = any(states.get(state) for state in OPEN_STATES)
        return BulkStatus(
            **msgspec.structs.asdict(job),
            pending=counts.get(ItemState.PENDING, 0),
            given=counts.get(ItemState.GIVEN, 0),
            refused=counts.get(ItemState.REFUSED, 0),
            cancelled=counts.get(ItemState.CANCELLED, 0),
            commands=states,
            finished=job.state in (DONE, CANCELLED) and not is_open,
            failures=failures,
        )

    async def failed(job_id: str, state: CommandState, limit: int) -> list[BulkFailure]:
        page = await commands.page(
            device_id=None,
            state=str(state),
            command=None,
            job_id=job_id,
            start_ms=None,
            end_ms=None,
            after=None,
            limit=limit,
        )
        return [BulkFailure(c.device_id, str(c.state), c.reason) for c in page.items]

    def accepted(base: str, status: BulkStatus) -> Response:
        return json_response(status, 202, {"Location": f"{base}/{status.job_id}"})

    @router.post(
        "/api/commands/bulk",
        status_code=202,
        response_model=None,
        tags=["commands"],
        summary="Send a command to many devices",
        responses=answer(
            BulkStatus,
            "Kept; `Location` says where to look.",
            examples.BULK_STATUS,
            status=202,
            problems=_WRONG,
        ),
        openapi_extra=body(BulkCommandBody, examples.BULK_COMMANDS),
    )
    async def send(request: Request) -> Response:
        """To the devices that match now, given out in the background at `per_second`, through the end of any
        process, each once."""
        given = parse(await json_bytes(request), BulkCommandBody)
        now_ms = services.now_ms()
        spec = {
            "command": given.command,
            "parameters": given.parameters,
            "timeout_ms": round(given.timeout_s * 1000),
            "expires_ms": given.expires_ms(now_ms),
            "retries": given.retries,
        }
        job = await created(COMMAND, given, spec, now_ms)
        if (job.spec["command"], job.spec["parameters"]) != (given.command, given.parameters):
            raise Problem(409, "conflict", "the idempotency key was used for another command")
        return accepted("/api/commands/bulk", await status_of(job))

    @router.post(
        "/api/twins/bulk",
        status_code=202,
        response_model=None,
        tags=["twin"],
        summary="Change what is desired of many devices",
        responses=answer(
            BulkStatus,
            "Kept; `Location` says where to look.",
            examples.BULK_STATUS,
            status=202,
            problems=_WRONG,
        ),
        openapi_extra=body(BulkTwinBody, examples.BULK_TWINS),
    )
    async def desire(request: Request) -> Response:
        """A JSON merge patch for the devices that match now, in the background at `per_second`."""
        given = parse(await json_bytes(request), BulkTwinBody)
        job = await created(TWIN, given, {"desired": given.desired, "by": given.by}, services.now_ms())
        if job.spec["desired"] != given.desired:
            raise Problem(409, "conflict", "the idempotency key was used for another patch")
        return accepted("/api/twins/bulk", await status_of(job))

    def follow(base: str, kind: str, tag: str, what: str) -> None:
        name = tag.rstrip("s")

        @router.get(
            base,
            response_model=None,
            tags=[tag],
            operation_id=f"list_bulk_{name}",
            summary=f"List bulk {what}",
            responses=answer(BulkJobPage, "A page, newest first.", examples.BULK_PAGE),
        )
        async def list_jobs(
            request: Request, limit: PageLimitQuery = 100, cursor: CursorQuery = None
        ) -> Response:
            """Those that are kept: as long as commands are."""
            page = await jobs.page(kind, cursor_in(f"bulk-{kind}", cursor), limit)
            return page_response(BulkJobPage, request, f"bulk-{kind}", page.items, page.next)

        @router.get(
            f"{base}/{{job_id}}",
            response_model=None,
            tags=[tag],
            operation_id=f"get_bulk_{name}",
            summary=f"Look at bulk {what}",
            responses=answer(BulkStatus, "How far it is.", examples.BULK_STATUS, problems=(404,)),
        )
        async def get_job(job_id: JobPath) -> Response:
            """Counts by state, and the first failures."""
            return json_response(await status_of(await found(kind, job_id)))

        @router.get(
            f"{base}/{{job_id}}/devices",
            response_model=None,
            tags=[tag],
            operation_id=f"list_bulk_{name}_devices",
            summary=f"List the devices of bulk {what}",
            responses=answer(
                BulkDevicePage, "A page in order of ids.", examples.BULK_DEVICES, problems=(404,)
            ),
        )
        async def list_devices(
            job_id: JobPath,
            request: Request,
            state: Annotated[ItemState | None, Query(description="Only those.")] = None,
            limit: PageLimitQuery = 100,
            cursor: CursorQuery = None,
        ) -> Response:
            """Each with what became of it, and with its command where it was given one."""
            job = await found(kind, job_id)
            page = await jobs.items(
                job_id, None if state is None else str(state), cursor_in("bulk-devices", cursor), limit
            )
            ids = {i.device_id: command_id_of(job_id, i.device_id) for i in page.items if i.state == GIVEN}
            given = await commands.find(list(ids.values())) if job.kind == COMMAND else []
            states = {command.device_id: str(command.state) for command in given}
            items = [
                BulkDevice(
                    item.device_id,
                    item.state,
                    item.reason,
                    ids[item.device_id] if item.device_id in states else None,
                    states.get(item.device_id),
                )
                for item in page.items
            ]
            return page_response(BulkDevicePage, request, "bulk-devices", items, page.next)

        @router.delete(
            f"{base}/{{job_id}}",
            status_code=202,
            response_model=None,
            tags=[tag],
            operation_id=f"cancel_bulk_{name}",
            summary=f"Cancel bulk {what}",
            responses=answer(
                BulkStatus, "It is being cancelled.", examples.BULK_STATUS, status=202, problems=(404,)
            ),
        )
        async def cancel(job_id: JobPath) -> Response:
            """No further device has it, and commands that are open are cancelled. What is done is done."""
            await found(kind, job_id)
            await jobs.cancel(job_id)
            return accepted(base, await status_of(await found(kind, job_id)))

    follow("/api/commands/bulk", COMMAND, "commands", "commands")
    follow("/api/twins/bulk", TWIN, "twin", "changes of twins")
    return router


_KEPT: Final = "Kept; `Location` says where to look."
_WRONG: Final = (409, 413, 415)
