"""Comings and goings of devices, read from the log's events."""

import pytest
from storage_rows import NOON_MS

from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, EventRow
from sensorium.storage.connections import Connection, Connections
from sensorium.storage.database import Pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog

pytestmark = pytest.mark.database


async def test_pages_hold_every_connection_once(dsn: str, pool: Pool) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    device = device_key("d")
    kinds = ["online", "updated", "offline", "online", "offline"]
    try:
        await log.commit(
            Commit(
                events=[
                    # Two of them at one time.
                    EventRow(shard_of("d"), offset, device, NOON_MS + offset // 2, kind, b"{}")
                    for offset, kind in enumerate(kinds, 1)
                ]
            )
        )
    finally:
        await log.close()
    connections = Connections([pool])
    said, after = [], None
    while True:
        page = await connections.page("d", after=after, limit=1)
        said += page.items
        after = page.next
        if after is None:
            break
    assert said == [
        Connection(NOON_MS + 2, False),
        Connection(NOON_MS + 2, True),
        Connection(NOON_MS + 1, False),
        Connection(NOON_MS, True),
    ]
    assert (await connections.page("d", NOON_MS + 1, NOON_MS + 2)).items == [Connection(NOON_MS + 1, False)]
    assert (await connections.page("other")).items == []
