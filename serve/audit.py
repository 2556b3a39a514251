"""`/api/audit`: who changed what."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response, page_response
from sensorium.serve.query import CursorQuery, EndQuery, PageLimitQuery, StartQuery, cursor_in, time_range
from sensorium.serve.services import KeepsAudit
from sensorium.storage.audit_chain import AuditEntry

_ENTRY: Final = {
    "number": 17,
    "at_ms": 1_767_225_600_000,
    "by": "ada",
    "client": "192.0.2.7",
    "way": "rest",
    "what": "device.change",
    "thing": "sensor-001",
    "device_id": "sensor-001",
    "before": {"device_id": "sensor-001", "metadata": {"floor": 2}},
    "after": {"device_id": "sensor-001", "metadata": {"floor": 3}},
    "note": None,
    "request_id": "5f0c2b7e8a634a0f9f0c9e6a7b1d2c3e",
    "entry_id": "8b7df143d91c4f2a8a1c6b0a5f5f2d10",
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


class AuditPage(msgspec.Struct, frozen=True):
    """Entries of the audit log, the newest first."""

    items: list[AuditEntry]
    next: str | None = None


class AuditHead(msgspec.Struct, frozen=True):
    """The newest entry: what to keep elsewhere and compare with later. 0 and "" while there is none."""

    number: int
    hash: str


def routes(audit: KeepsAudit) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/api/audit",
        response_model=None,
        summary="Who changed what",
        responses=answer(AuditPage, "A page of entries.", {"items": [_ENTRY], "next": None}),
    )
    async def entries(
        request: Request,
        who: Annotated[
            str | None,
            Query(max_length=128, description="The name that was given, or the address without one."),
        ] = None,
        what: Annotated[
            str | None,
            Query(
                max_length=64,
                pattern=r"^[a-z_]+(\.[a-z_]+)?$",
                description="Such as `rule.replace`, or `rule` for all that is done to rules.",
                examples=["device"],
            ),
        ] = None,
        thing: Annotated[
            str | None,
            Query(max_length=128, pattern=r"^[^\x00]*$", description="The id of what was changed."),
        ] = None,
        start: StartQuery = None,
        end: EndQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Every change that somebody asked for, by whichever way, with what was before and after. Filters add
        up. Secrets are not shown.
        """
        start_ms, end_ms = time_range(start, end)
        after = cursor_in("audit", cursor)
        page = await audit.page(_text(who), what, thing, start_ms, end_ms, after, limit)
        return page_response(AuditPage, request, "audit", page.items, page.next)

    @router.get(
        "/api/audit/head",
        response_model=None,
        summary="The end of the audit log",
        responses=answer(AuditHead, "The newest entry.", {"number": 17, "hash": _ENTRY["hash"]}),
    )
    async def head() -> Response:
        """Kept elsewhere, it shows later whether all up to here is as it was:
        `sensorium audit verify --since-hash HASH`.
        """
        return json_response(AuditHead(*await audit.head()))

    return router


def _text(value: str | None) -> str | None:
    return None if value is None else value.replace("\0", "\ufffd")
