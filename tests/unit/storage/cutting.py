"""Connections of hosts, cut where they are."""

import asyncio

from sensorium.storage import PgLog
from sensorium.storage.assignments import application_of
from sensorium.storage.database import Connection

_CUT_WAITING = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = $1 AND wait_event_type = 'Lock'
"""


async def cut_waiting(observer: Connection, log: PgLog) -> None:
    """Cut the log's connection as soon as it waits for a lock."""
    cut = 0
    async with asyncio.timeout(5):
        while not cut:
            cut = await observer.fetchval(_CUT_WAITING, application_of(log.incarnation))
