"""A whole platform of its own for a benchmark, with its broker and its devices registered."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from commands import start
from surroundings import mosquitto, readings_of

from sensorium.actors.messages import Register
from sensorium.actors.runtime import join_ray, make_router
from sensorium.cluster.run_directory import read_state
from sensorium.ingest.broker import free_port
from sensorium.storage.database import Pool, open_pool

TIMEOUT_S = 240.0


class Platform(NamedTuple):
    """Where it is reached, and its log."""

    http_url: str
    coap_port: int
    pool: Pool

    async def committed(self) -> int:
        """How many readings the log holds."""
        return await readings_of(self.pool)


@asynccontextmanager
async def platform_with(device_ids: Sequence[str]) -> AsyncIterator[Platform]:
    """Started, and stopped at the end, which comes after `TIMEOUT_S` at last."""
    coap_port = free_port()
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as name:
        directory = Path(name)
        with mosquitto(directory) as (broker_port, _):
            process = await asyncio.to_thread(start, directory / "data", broker_port, coap_port)
            try:
                state = read_state(directory / "data")
                await asyncio.to_thread(join_ray, state.ray_address)
                pool = await open_pool(state.database, 2)
                async with make_router(f"bench-{os.getpid()}") as router, asyncio.timeout(TIMEOUT_S):
                    await asyncio.gather(*(router.ask(Register(d, "bench"), 60) for d in device_ids))
                    yield Platform(state.http_url, coap_port, pool)
                pool.terminate()
            finally:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 60)
