"""A device unlike its peers, from its readings to its anomaly: projection, comparison, turn and commit."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from rolled_up import rolled_up
from storage_rows import reading, registration
from tests.unit.serve.world import OneHost

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.peer_watch import HOUR_MS
from sensorium.actors.placement import SHARDS
from sensorium.actors.records import Commit
from sensorium.actors.router import Router
from sensorium.cluster.processes import _now_ms, peer_adapter
from sensorium.serve.peers import SETTLED_MS
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.anomalies import Anomalies
from sensorium.storage.database import Pool
from sensorium.storage.ports_factory import PgHostPorts

pytestmark = pytest.mark.database


async def test_the_odd_one_of_eight_is_found_and_commits_it(dsn: str, pool: Pool) -> None:
    hour_ms = (_now_ms() - SETTLED_MS) // HOUR_MS * HOUR_MS - HOUR_MS
    log = PgLog(dsn, await PgMembership(pool).join("before"))
    rows = [reading(f"d{n}", 1, hour_ms + 5, n, t=20.0 + n if n else 500.0) for n in range(8)]
    await log.commit(Commit(readings=rows, registrations=[registration(f"d{n}") for n in range(8)]))
    await log.close()
    await rolled_up(dsn, len(rows))

    incarnation = await PgMembership(pool).join("a")
    host = DeviceHost("a", incarnation, range(SHARDS), PgHostPorts(dsn), HostSettings(), _now_ms)
    await host.start()
    async with Router("peers", OneHost(host)) as router, AsyncExitStack() as stack:
        adapter = await peer_adapter((dsn,), "place", router, stack)
        await adapter.start()
        async with asyncio.timeout(20):
            while not adapter.statistics()["told"]:
                adapter.check()
                await asyncio.sleep(0.02)
        await adapter.stop()
    await host.stop()
    (found,) = (await Anomalies([pool]).page("d0")).items
    assert (found.detector, found.value, found.expected, found.peers) == ("peers", 500.0, 24.5, 7)
    assert found.start_ms == hour_ms
