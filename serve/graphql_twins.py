"""Twins in the GraphQL schema: as they are, as they were at a time, and the changes between."""

from typing import Any
from urllib.parse import quote

import msgspec
import strawberry
from strawberry.scalars import JSON

from sensorium.actors.twin import TwinInfo
from sensorium.actors.twin_documents import Document
from sensorium.serve.graphql_context import Info
from sensorium.serve.graphql_limits import checked_first
from sensorium.serve.graphql_rest import rest
from sensorium.serve.graphql_scalars import EpochMs
from sensorium.serve.twins import DocumentName

strawberry.enum(DocumentName)


@strawberry.type(description="One document of a twin; `fields` says who wrote what when, by JSON pointer.")
class TwinDocument:
    version: int
    values: JSON
    fields: JSON
    changed_ms: EpochMs | None


@strawberry.type(
    description="What is desired of a device and what it reports; `delta` is what it has yet to do."
)
class Twin:
    desired: TwinDocument
    reported: TwinDocument
    delta: JSON
    told_version: int


@strawberry.type(description="A twin as it was; `delta` is what was desired and not reported so.")
class PastTwin:
    device_id: str
    at_ms: EpochMs
    desired: TwinDocument
    reported: TwinDocument
    delta: JSON


@strawberry.type(description="A document of a twin came to this version by a merge patch.")
class TwinChange:
    document: str
    version: int
    time_ms: EpochMs
    by: str
    patch: JSON


@strawberry.type(description="Part of a list; `next` is the `after` of what follows, null at the end.")
class TwinChangePage:
    items: list[TwinChange]
    next: str | None


@strawberry.type
class TwinQueries:
    @strawberry.field(description="A device's twin as it was then, as far back as the log goes.")
    async def twin_at(self, info: Info, device_id: str, at_ms: EpochMs) -> PastTwin:
        said = await rest(info, "GET", _path(device_id), query={"at": at_ms})
        desired, reported = TwinDocument(**said.pop("desired")), TwinDocument(**said.pop("reported"))
        return PastTwin(**said, desired=desired, reported=reported)

    @strawberry.field(description="What was written into a device's twin, when and by whom, newest first.")
    async def twin_changes(
        self,
        info: Info,
        device_id: str,
        document: DocumentName | None = None,
        start_ms: EpochMs | None = None,
        end_ms: EpochMs | None = None,
        first: int = 100,
        after: str | None = None,
    ) -> TwinChangePage:
        which = {"document": document, "start": start_ms, "end": end_ms}
        page = {"limit": checked_first(first), "cursor": after}
        said = await rest(info, "GET", f"{_path(device_id)}/changes", query={**which, **page})
        return TwinChangePage(items=[TwinChange(**item) for item in said["items"]], next=said["next"])


def _path(device_id: str) -> str:
    return f"/api/devices/{quote(device_id, safe='')}/twin"


def twin_of(twin: TwinInfo) -> Twin:
    """From what the device says of it."""

    def shown(document: Document) -> TwinDocument:
        fields: Any = msgspec.to_builtins(document.fields)
        changed: Any = document.changed_ms
        values: Any = document.values
        return TwinDocument(version=document.version, values=values, fields=fields, changed_ms=changed)

    left: Any = twin.delta
    return Twin(
        desired=shown(twin.desired),
        reported=shown(twin.reported),
        delta=left,
        told_version=twin.told_version,
    )
