"""`/api/devices/{id}/commands` and `/api/commands`: have devices do something, and see what became of it."""

import asyncio
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.errors import DeviceNotFound, Refused
from sensorium.actors.messages import CancelCommand
from sensorium.actors.records import OPEN_STATES, Command, CommandState
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse
from sensorium.serve.command_models import CommandBody
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import CommandPage, json_response, page_response
from sensorium.serve.problems import Problem, not_found
from sensorium.serve.query import (
    CursorQuery,
    DevicePath,
    EndQuery,
    PageLimitQuery,
    StartQuery,
    cursor_in,
    time_range,
)
from sensorium.serve.services import Services
from sensorium.serve.short_way import short

_FULL_RETRY_AFTER_S: Final = 5.0

CommandPath = Annotated[
    str, Path(min_length=1, max_length=128, pattern=r"^[^\x00/]+$", description="The command's id.")
]
StateQuery = Annotated[CommandState | None, Query(description="Only those in this state.")]
NameQuery = Annotated[str | None, Query(min_length=1, max_length=128, description="Only this command.")]
JobQuery = Annotated[
    str | None, Query(min_length=1, max_length=64, description="Only those of this bulk job.")
]


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["commands"])
    commands, ask, timeout_s = services.commands, services.router.ask, services.timeout_s

    @router.post(
        "/api/devices/{device_id}/commands",
        status_code=202,
        response_model=None,
        summary="Send a command",
        responses=answer(
            Command,
            "It is on its way; `Location` says where to look.",
            examples.COMMAND_QUEUED,
            status=202,
            more={200: (Command, "It has ended within `wait_s`.", examples.COMMAND)},
            problems=(404, 409, 413, 415),
        ),
        openapi_extra=body(CommandBody, examples.COMMANDS),
    )
    @short()
    async def send(device_id: DevicePath, request: Request) -> Response:
        """Answered once the command is committed, or with `wait_s` when it has ended or that time is over."""
        asked = parse(await json_bytes(request), CommandBody)
        now_ms = services.now_ms()
        command_id = asked.command_id(device_id, now_ms)
        message = asked.message(device_id, command_id, now_ms)
        with services.waits.expecting(device_id, command_id, asked.wait_s) as ended:
            command = None
            if asked.idempotency_key is not None:
                command = await commands.get(command_id)
            if command is None:
                command = await _submitted(message)
            if (command.command, command.parameters) != (asked.command, asked.parameters):
                raise Problem(
                    409, "conflict", "the idempotency key was used for another command of the device"
                )
            if asked.wait_s and command.state in OPEN_STATES:
                try:
                    async with asyncio.timeout(asked.wait_s):
                        command = await ended
                except TimeoutError:
                    command = await commands.get(command_id) or command
        if command.state not in OPEN_STATES:
            return json_response(command)
        place = f"/api/devices/{quote(device_id, safe='')}/commands/{quote(command_id, safe='')}"
        return json_response(command, 202, {"Location": place})

    async def _submitted(message: Any) -> Command:
        try:
            asked = asyncio.ensure_future(ask(message, timeout_s))
            if services.direct is not None:
                await asyncio.sleep(0)  # so that it is submitted, and the claim shares its batch and commit
                await services.direct.claim(message.device_id, message.command_id)
            value = await asked
        except Refused as error:
            if error.code == "overloaded":
                raise Problem(429, "overloaded", str(error), retry_after_s=_FULL_RETRY_AFTER_S) from None
            raise
        if value is not None:
            return msgspec.convert(value, Command)
        known = await commands.get(message.command_id)
        if known is None:
            raise Problem(409, "conflict", f"command {message.command_id} is of another device")
        return known

    @router.get(
        "/api/devices/{device_id}/commands",
        response_model=None,
        summary="List a device's commands",
        responses=answer(CommandPage, "A page of commands, newest first.", examples.COMMAND_PAGE),
    )
    async def list_of_device(
        device_id: DevicePath,
        request: Request,
        state: StateQuery = None,
        command: NameQuery = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Filters add up; `start` and `end` bound when a command was given."""
        return await _page(request, device_id, state, command, start, end, limit, cursor)

    @router.get(
        "/api/commands",
        response_model=None,
        summary="List commands",
        responses=answer(CommandPage, "A page of commands, newest first.", examples.COMMAND_PAGE),
    )
    async def list_of_all(
        request: Request,
        state: StateQuery = None,
        command: NameQuery = None,
        job_id: JobQuery = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Of all devices. Filters add up."""
        return await _page(request, None, state, command, start, end, limit, cursor, job_id)

    async def _page(
        request: Request,
        device_id: str | None,
        state: CommandState | None,
        command: str | None,
        start: str | None,
        end: str | None,
        limit: int,
        cursor: str | None,
        job_id: str | None = None,
    ) -> Response:
        start_ms, end_ms = time_range(start, end)
        page = await commands.page(
            device_id=device_id,
            state=None if state is None else str(state),
            command=command,
            job_id=job_id,
            start_ms=start_ms,
            end_ms=end_ms,
            after=cursor_in("commands", cursor),
            limit=limit,
        )
        return page_response(CommandPage, request, "commands", page.items, page.next)

    @router.get(
        "/api/devices/{device_id}/commands/{command_id}",
        response_model=None,
        summary="Look at a command",
        responses=answer(Command, "The command and its way.", examples.COMMAND, problems=(404,)),
    )
    async def get(device_id: DevicePath, command_id: CommandPath) -> Response:
        """Open or ended."""
        return json_response(await _found(device_id, command_id))

    async def _found(device_id: str, command_id: str) -> Command:
        command = await commands.get(command_id)
        if command is None or command.device_id != device_id:
            raise not_found(f"no command {command_id} of device {device_id}")
        return command

    @router.delete(
        "/api/devices/{device_id}/commands/{command_id}",
        response_model=None,
        summary="Cancel a command",
        responses=answer(Command, "Cancelled.", examples.COMMAND_CANCELLED, problems=(404, 409)),
    )
    async def cancel(device_id: DevicePath, command_id: CommandPath) -> Response:
        """One that the device was told of may be carried out all the same; what it answers is not kept."""
        try:
            return json_response(await ask(CancelCommand(device_id, command_id), timeout_s))
        except DeviceNotFound:
            command = await _found(device_id, command_id)
            raise Problem(409, "conflict", f"command {command_id} is {command.state} already") from None

    return router
