"""Bulk jobs in the GraphQL schema: a wish to many devices, how far it is, and what became of each of them."""

from enum import StrEnum
from typing import Any
from urllib.parse import quote

import strawberry
from strawberry.scalars import JSON

from sensorium.serve.bulk_jobs import ItemState
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_limits import checked_first
from sensorium.serve.graphql_rest import rest
from sensorium.serve.graphql_scalars import EpochMs

strawberry.enum(ItemState, name="BulkDeviceState")


@strawberry.enum
class BulkKind(StrEnum):
    """What many devices were to have: a command, or a change of what is desired of them."""

    COMMAND = "commands"
    TWIN = "twins"

    def path(self, *parts: str) -> str:
        """Where the REST API has these jobs, or what is below them."""
        return "/".join((f"/api/{self.value}/bulk", *(quote(part, safe="") for part in parts)))


@strawberry.type(description="A bulk job as it was asked for; `bulkJob` says how far it is.")
class ListedBulkJob:
    job_id: str
    kind: str
    state: str
    created_ms: EpochMs
    per_second: float
    spec: JSON
    total: int


@strawberry.type(description="One command, or one change of twins, to many devices, and how far it is.")
class BulkJob(ListedBulkJob):
    pending: int
    given: int
    refused: int
    cancelled: int
    finished: bool
    commands: JSON
    failures: JSON


@strawberry.type(description="A device of a bulk job: what became of it, and its command once it was given.")
class BulkDevice:
    device_id: str
    state: str
    reason: str | None
    command_id: str | None
    command_state: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class BulkJobPage:
    items: list[ListedBulkJob]
    next: str | None


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class BulkDevicePage:
    items: list[BulkDevice]
    next: str | None


@strawberry.type
class JobQueries:
    @strawberry.field(description="How far one command, or one change of twins, to many devices is.")
    async def bulk_job(self, info: Info, job_id: str, kind: BulkKind = BulkKind.COMMAND) -> BulkJob:
        return job_of(await rest(info, "GET", kind.path(job_id)))

    @strawberry.field(description="Bulk jobs, newest first.")
    async def bulk_jobs(
        self, info: Info, kind: BulkKind = BulkKind.COMMAND, first: int = 100, after: str | None = None
    ) -> BulkJobPage:
        page = {"limit": checked_first(first), "cursor": after}
        said = await rest(info, "GET", kind.path(), query=page)
        return BulkJobPage(items=[ListedBulkJob(**item) for item in said["items"]], next=said["next"])

    @strawberry.field(description="The devices of a bulk job in order of their ids.")
    async def bulk_job_devices(
        self,
        info: Info,
        job_id: str,
        kind: BulkKind = BulkKind.COMMAND,
        state: ItemState | None = None,
        first: int = 100,
        after: str | None = None,
    ) -> BulkDevicePage:
        query = {"state": state, "limit": checked_first(first), "cursor": after}
        said = await rest(info, "GET", kind.path(job_id, "devices"), query=query)
        return BulkDevicePage(items=[BulkDevice(**item) for item in said["items"]], next=said["next"])


def job_of(said: dict[str, Any]) -> BulkJob:
    """From what the REST API says of it."""
    return BulkJob(**said)
