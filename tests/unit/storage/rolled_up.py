"""Has the projection count what a test has written."""

import asyncio

from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup_sink import SETTINGS, RollupSink


async def rolled_up(dsn: str, entries: int) -> None:
    """Return once the rollups have so many entries of the log. Raises what ended the projection."""
    runner = ProjectionRunner(dsn, SETTINGS, RollupSink())
    await runner.start()
    async with asyncio.timeout(30):
        while runner.statistics()["entries"] < entries:
            await runner.ping()
            await asyncio.sleep(0.01)
    await runner.stop()
