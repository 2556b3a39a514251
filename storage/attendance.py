"""Whether a service is there, as the database knows at once: it holds a lock while its connection lives."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import connect, translated

DOWNLINK: Final = 1
"""Who hears what devices answer to commands."""

AGAIN_S: Final = 0.5
"""Between two looks for one who is not there, and two tries while the database is away."""

_SPACE: Final = 1_397_051_988
"""Of our advisory locks; the one below is that of hosts' commits."""


async def attend(dsn: str, service: int) -> None:
    """Be there until cancelled; while another is, wait for its end."""
    while True:
        try:
            connection = await connect(dsn, "sensorium-attends")
            gone = asyncio.Event()
            try:
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                with translated():
                    await connection.execute("SELECT pg_advisory_lock($1, $2)", _SPACE, service)
                await gone.wait()
            finally:
                connection.terminate()
        except LogUnavailable:
            pass
        await asyncio.sleep(AGAIN_S)


async def attended(dsn: str, service: int) -> AsyncIterator[bool]:
    """Whether it is there, whenever that changes and now and then; False while nobody can tell. Endless."""
    while True:
        try:
            connection = await connect(dsn, "sensorium-attended")
            try:
                while True:
                    with translated():
                        found = not await connection.fetchval(_TRY, _SPACE, service)
                        yield found
                        if found:
                            # Granted when it ends, or given up after a while, to be asked for again.
                            try:
                                await connection.execute(_WAIT, _SPACE, service)
                            except asyncpg.LockNotAvailableError:
                                continue
                            yield False
                    await asyncio.sleep(AGAIN_S)
            finally:
                connection.terminate()
        except LogUnavailable:
            yield False
        await asyncio.sleep(AGAIN_S)


# Shared and given back at once, so that those who ask do not see each other.
_TRY: Final = """
SELECT CASE WHEN pg_try_advisory_lock_shared($1, $2) THEN pg_advisory_unlock_shared($1, $2) ELSE false END
"""
_WAIT: Final = "SELECT pg_advisory_lock_shared($1, $2), pg_advisory_unlock_shared($1, $2)"
