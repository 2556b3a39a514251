"""How long a platform under load takes to serve every device again, by what its log says."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

import asyncpg
from field import Load

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.placement import device_key
from sensorium.storage.database import connect as connect_database

_NEWEST = """
SELECT device, (extract(epoch FROM max(time)) * 1000)::bigint AS newest_ms
FROM readings WHERE device = ANY($1::bigint[]) GROUP BY device
"""


async def struck(fault: Coroutine[Any, Any, None], event: asyncio.Event) -> "asyncio.Task[None]":
    """Begin a fault; return when `event` says that its damage is done. What mends it goes on in the task."""
    event.clear()
    task = asyncio.create_task(fault)
    done = asyncio.create_task(event.wait())
    await asyncio.wait({task, done}, return_when=asyncio.FIRST_COMPLETED)
    done.cancel()
    if task.done():
        task.result()
    return task


async def recovered(dsn: str, load: Load, wanted: Mapping[str, int], timeout_s: float) -> float:
    """Return once the log holds of each device a message that was sent from `wanted` on; how long it took."""
    began_s = time.monotonic()
    newest_ms: dict[int, int] = {}
    keys = {device_key(device_id): sequence for device_id, sequence in wanted.items()}
    async with asyncio.timeout(timeout_s):
        while True:
            # The database may be what is broken.
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, LogUnavailable, OSError):
                connection = await connect_database(dsn, "sensorium test recovery")
                try:
                    while not all(
                        newest_ms.get(key, -1) >= load.started_ms + first for key, first in keys.items()
                    ):
                        await asyncio.sleep(0.05)
                        rows = await connection.fetch(_NEWEST, list(keys))
                        newest_ms = {row["device"]: row["newest_ms"] for row in rows}
                    return time.monotonic() - began_s
                finally:
                    connection.terminate()
            await asyncio.sleep(0.1)
