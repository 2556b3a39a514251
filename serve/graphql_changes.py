"""What GraphQL changes: each mutation is a call of the REST API, made within the process."""

from enum import StrEnum
from typing import Any
from urllib.parse import quote

import msgspec
import strawberry
from strawberry.scalars import JSON

from sensorium.actors.records import Alarm as AlarmRecord
from sensorium.actors.records import Command as CommandRecord
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_jobs import BulkJob, BulkKind, job_of
from sensorium.serve.graphql_rest import rest
from sensorium.serve.graphql_twins import Twin, twin_of
from sensorium.serve.graphql_types import Alarm, Command, Device, Rule, rule_of
from sensorium.serve.pages import SavedRule
from sensorium.serve.problems import not_found


@strawberry.enum
class Action(StrEnum):
    """What people do to alarms."""

    ACK = "ack"
    UNACK = "unack"
    ASSIGN = "assign"
    COMMENT = "comment"
    SHELVE = "shelve"
    UNSHELVE = "unshelve"


@strawberry.input
class LocationInput:
    latitude: float | None = None
    longitude: float | None = None
    address: str | None = None


@strawberry.type
class Mutation:
    @strawberry.mutation(description="Register a device, or revive it.")
    async def register_device(
        self,
        info: Info,
        device_id: str,
        device_type: str,
        location: LocationInput | None = None,
        metadata: JSON | None = None,
        isolation: str | None = None,
    ) -> Device:
        body = {"device_id": device_id, "device_type": device_type, "isolation": isolation}
        place = None if location is None else _given(vars(location))
        await rest(info, "POST", "/api/devices", _given({**body, "location": place, "metadata": metadata}))
        return await _registered(info, device_id)

    @strawberry.mutation(description="Change a device by a JSON merge patch, as in the REST API.")
    async def update_device(self, info: Info, device_id: str, patch: JSON) -> Device:
        await rest(info, "PATCH", f"/api/devices/{_quoted(device_id)}", patch)
        return await _registered(info, device_id)

    @strawberry.mutation(description="Retire a device: its readings are refused, its history stays.")
    async def decommission_device(self, info: Info, device_id: str) -> Device:
        await rest(info, "DELETE", f"/api/devices/{_quoted(device_id)}")
        return await _registered(info, device_id)

    @strawberry.mutation(description="Send a command; with `waitS` it may have ended.")
    async def send_command(
        self,
        info: Info,
        device_id: str,
        command: str,
        parameters: JSON | None = None,
        timeout_s: float | None = None,
        retries: int | None = None,
        idempotency_key: str | None = None,
        wait_s: float | None = None,
        expires_at: str | None = None,
    ) -> Command:
        body = {
            "command": command,
            "parameters": parameters,
            "timeout_s": timeout_s,
            "retries": retries,
            "idempotency_key": idempotency_key,
            "wait_s": wait_s,
            "expires_at": expires_at,
        }
        said = await rest(info, "POST", f"/api/devices/{_quoted(device_id)}/commands", _given(body))
        found: Any = msgspec.convert(said, CommandRecord)
        return found  # type: ignore[no-any-return]

    @strawberry.mutation(
        description="One command to all active devices of a selection: `deviceType`, `deviceIds`, `metadata`."
    )
    async def send_commands(
        self,
        info: Info,
        command: str,
        device_type: str | None = None,
        device_ids: list[str] | None = None,
        metadata: JSON | None = None,
        parameters: JSON | None = None,
        timeout_s: float | None = None,
        retries: int | None = None,
        expires_at: str | None = None,
        per_second: float | None = None,
        idempotency_key: str | None = None,
    ) -> BulkJob:
        select = {"device_type": device_type, "device_ids": device_ids, "metadata": metadata}
        body = {
            "command": command,
            "select": _given(select),
            "parameters": parameters,
            "timeout_s": timeout_s,
            "retries": retries,
            "expires_at": expires_at,
            "per_second": per_second,
            "idempotency_key": idempotency_key,
        }
        return job_of(await rest(info, "POST", "/api/commands/bulk", _given(body)))

    @strawberry.mutation(
        description="Give it to no more devices, and cancel the commands of it that are open."
    )
    async def cancel_bulk_job(self, info: Info, job_id: str, kind: BulkKind = BulkKind.COMMAND) -> BulkJob:
        return job_of(await rest(info, "DELETE", kind.path(job_id)))

    @strawberry.mutation(
        description="Change what is desired of a device by a JSON merge patch; `replace`: as a whole. With"
        " `version` only if that is the present one of what is desired."
    )
    async def desire(
        self,
        info: Info,
        device_id: str,
        values: JSON,
        replace: bool = False,
        version: int | None = None,
        by: str | None = None,
    ) -> Twin:
        path = f"/api/devices/{_quoted(device_id)}/twin/desired{_by(by)}"
        matching = {} if version is None else {"If-Match": f'"d{version}"'}
        await rest(info, "PUT" if replace else "PATCH", path, values, matching)
        found = await info.context.twins.load(device_id)
        if found is None:
            raise not_found(f"no device {device_id}")
        return twin_of(found)

    @strawberry.mutation(description="Cancel an open command.")
    async def cancel_command(self, info: Info, device_id: str, command_id: str) -> Command | None:
        await rest(info, "DELETE", f"/api/devices/{_quoted(device_id)}/commands/{_quoted(command_id)}")
        found: Any = await info.context.services.commands.get(command_id)
        return found  # type: ignore[no-any-return]

    @strawberry.mutation(
        description="Do something to an alarm: `assignee`, `text` or `forS` go with ASSIGN, COMMENT, SHELVE."
    )
    async def act_on_alarm(
        self,
        info: Info,
        alarm_id: str,
        action: Action,
        by: str | None = None,
        assignee: str | None = None,
        text: str | None = None,
        for_s: float | None = None,
    ) -> Alarm:
        body = _given({"by": by, "assignee": assignee, "text": text, "for_s": for_s})
        said = await rest(info, "POST", f"/api/alarms/{_quoted(alarm_id)}/{action.value}", body)
        found: Any = msgspec.convert(said, AlarmRecord)
        return found  # type: ignore[no-any-return]

    @strawberry.mutation(description="Create a rule; `spec` is as in the REST API.")
    async def create_rule(self, info: Info, spec: JSON, by: str | None = None) -> Rule:
        said = await rest(info, "POST", f"/api/analytics/rules{_by(by)}", spec)
        return rule_of(msgspec.convert(said, SavedRule))

    @strawberry.mutation(description="Replace a rule.")
    async def replace_rule(self, info: Info, rule_id: str, spec: JSON, by: str | None = None) -> Rule:
        said = await rest(info, "PUT", f"/api/analytics/rules/{_quoted(rule_id)}{_by(by)}", spec)
        return rule_of(msgspec.convert(said, SavedRule))

    @strawberry.mutation(description="Delete a rule; its id is given back.")
    async def delete_rule(self, info: Info, rule_id: str) -> str:
        await rest(info, "DELETE", f"/api/analytics/rules/{_quoted(rule_id)}")
        return rule_id


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _by(by: str | None) -> str:
    return "" if by is None else f"?by={_quoted(by)}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


async def _registered(info: Info, device_id: str) -> Device:
    found: Any = await info.context.services.registry.get(device_id)
    return found  # type: ignore[no-any-return]
