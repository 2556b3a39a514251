"""What the database tells those who listen, over a connection that is made again when it breaks."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import connect, translated

RECONNECT_MIN_S: Final = 0.2
RECONNECT_MAX_S: Final = 5.0
HEARTBEAT_S: Final = 15.0
"""A connection that broke silently is noticed in so long."""

MAX_WAITING: Final = 1_000
"""Notices that wait to be read; beyond it the reader is told that it may have missed some."""


async def notices(dsn: str, channel: str, look_every_s: float) -> AsyncIterator[list[str] | None]:
    """Batches of payloads as they come. None: some may have been missed, so look into the tables.

    That is said at the start, after each reconnect, and every `look_every_s`. Runs until it is closed.
    """
    delay_s = RECONNECT_MIN_S
    while True:
        try:
            async for batch in _of_one_connection(dsn, channel, look_every_s):
                delay_s = RECONNECT_MIN_S
                yield batch
        except LogUnavailable:
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, RECONNECT_MAX_S)


async def _of_one_connection(dsn: str, channel: str, look_every_s: float) -> AsyncIterator[list[str] | None]:
    connection = await connect(dsn, "sensorium-notices")
    waiting: list[str] = []
    missed = True
    something = asyncio.Event()
    something.set()
    loop = asyncio.get_running_loop()
    checked_s = loop.time()

    def note(*said: Any) -> None:
        if len(waiting) < MAX_WAITING:
            waiting.append(said[-1])
        something.set()

    def ended(*_: Any) -> None:
        something.set()

    try:
        connection.add_termination_listener(ended)
        with translated():
            await connection.add_listener(channel, note)
        while True:
            try:
                async with asyncio.timeout(look_every_s):
                    await something.wait()
            except TimeoutError:
                missed = True
                if loop.time() - checked_s >= HEARTBEAT_S:
                    checked_s = loop.time()
                    with translated():
                        await connection.execute("SELECT 1")
            something.clear()
            if connection.is_closed():
                raise LogUnavailable("the connection that listens broke")
            batch, waiting[:] = list(waiting), []
            if missed or len(batch) >= MAX_WAITING or "" in batch:
                missed = False
                yield None
            if batch:
                yield batch
    finally:
        connection.terminate()
