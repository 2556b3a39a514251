"""The read side of twins: how they were, how they changed, and which devices may be told of theirs now."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.errors import NoHistory
from sensorium.actors.placement import device_key
from sensorium.actors.twin import TWIN
from sensorium.actors.twin_documents import NOTHING, WHOLE_EVERY, Document, DocumentChange, before
from sensorium.storage._read import twin_of
from sensorium.storage.database import Connection, Pool, acquired
from sensorium.storage.events import Event, Events, as_written
from sensorium.storage.pages import Page
from sensorium.storage.spread import database_of_device

PREFIX: Final = "twin_"
DOCUMENTS: Final = ("desired", "reported")

CLOCK_SLACK_MS: Final = 3_600_000
"""By how much the clocks of two hosts may differ, so that a later change has an earlier time."""

# By their places in the log, since clocks of hosts differ. Of so many versions, one is kept whole.
_SINCE: Final = f"""
SELECT body FROM events WHERE device = $1 AND kind = $2 AND time >= $4 AND log_offset >=
    (SELECT min(log_offset) FROM events WHERE device = $1 AND kind = $2 AND time > $3)
ORDER BY log_offset LIMIT {WHOLE_EVERY}
"""


class StoredChange(NamedTuple):
    """A change of a document: "desired" or "reported" came to this version."""

    document: str
    version: int
    time_ms: int
    by: str
    patch: dict[str, Any]


class Twins:
    """Over the databases of a log, one or several. Every call raises `LogUnavailable` when one is away."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools
        self._events = Events(pools)

    async def at(self, device_id: str, at_ms: int) -> tuple[Document, Document]:
        """What was desired and what was reported at that time, changes of that millisecond included.

        Raises:
            NoHistory: what changed since is not kept any more.
        """
        key = device_key(device_id)
        async with (
            acquired(self._pool_of(device_id)) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow("SELECT body FROM twins WHERE device = $1", key)
            state = None if row is None else twin_of(row["body"])
            desired, reported = [
                await _at(connection, key, name, at_ms, NOTHING if state is None else getattr(state, name))
                for name in DOCUMENTS
            ]
        return desired, reported

    async def changes(
        self,
        device_id: str,
        document: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[StoredChange]:
        """The newest first; `start_ms` is included, `end_ms` is not. As old as retention has left.

        Raises:
            InvalidMessage: `after` or `limit` is out of its range.
        """
        kinds = [PREFIX + name for name in (DOCUMENTS if document is None else (document,))]
        page = await self._events.page(device_id, kinds, start_ms, end_ms, after=after, limit=limit)
        return Page([_change(event) for event in page.items], page.next)

    async def ready(self, limit: int, downlink: str) -> list[tuple[str, str, int]]:
        """Devices that may be told now by a protocol, as `PgCommands.ready` says it of commands: each with
        `TWIN` and 0; at most `limit` of each database."""
        found: list[tuple[str, str, int]] = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                rows = await connection.fetch(
                    "SELECT device_id FROM twins WHERE ready AND downlink = $2 ORDER BY device LIMIT $1",
                    limit,
                    downlink,
                )
            found += [(row["device_id"], TWIN, 0) for row in rows]
        return found

    def _pool_of(self, device_id: str) -> Pool:
        return self._pools[database_of_device(device_id, len(self._pools))]


async def _at(connection: Connection, key: int, name: str, at_ms: int, present: Document) -> Document:
    document = await document_at(connection, key, name, at_ms, present)
    if document.changed_ms is not None and document.changed_ms > at_ms:
        raise NoHistory("the log does not go back so far: its changes since then are not kept any more")
    return document


async def document_at(connection: Connection, key: int, name: str, at_ms: int, present: Document) -> Document:
    """A document as it was, or a newer one: the oldest that is known still."""
    rows = await connection.fetch(_SINCE, key, PREFIX + name, at_ms, at_ms - CLOCK_SLACK_MS)
    changes = [msgspec.convert(as_written(row["body"]), DocumentChange) for row in rows]
    return before(changes, present)


def _change(event: Event) -> StoredChange:
    told = event.body
    name = event.kind.removeprefix(PREFIX)
    return StoredChange(name, told["version"], event.time_ms, told["by"], told["patch"])
