"""A runtime over a real database, in this process: a device goes to its own process and back under load."""

import asyncio
from typing import Any

import pytest
from tests.unit.actors.local import LocalLauncher, LocalTransport

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.coordinator import Coordinator, RuntimeSpec
from sensorium.actors.host import HostSettings
from sensorium.actors.messages import Accepted, GetDevice, Patch
from sensorium.actors.placement import device_key
from sensorium.actors.router import Router
from sensorium.storage import PgHostPorts, PgMembershipFactory
from sensorium.storage.database import Pool, acquired

pytestmark = pytest.mark.slow

NOW_MS = 1_700_000_000_000
DEVICES = [f"device-{n}" for n in range(20)]
MOVED = DEVICES[0]


async def _isolated(router: Router, isolation: str) -> None:
    await router.ask(Patch(MOVED, isolation=isolation))
    wanted = f"device:{MOVED}" if isolation == "process" else None
    async with asyncio.timeout(30):
        while (await router.ask(GetDevice(MOVED)))["process"] != wanted:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("databases", [1, 2])
async def test_there_and_back(databases: int, two_dsns: list[str], two_pools: list[Pool]) -> None:
    first, *others = two_dsns[:databases]
    settings = HostSettings(
        auto_register_as="generic", activation=ActivationSettings(snapshot_every_s=0.2, max_active=100)
    )
    ports, members = PgHostPorts(first, tuple(others)), PgMembershipFactory(first, others=tuple(others))
    coordinator = Coordinator(RuntimeSpec(2, ports, members, settings), LocalLauncher())
    await coordinator.start()
    outcomes: dict[tuple[str, int], Any] = {}
    sent = dict.fromkeys(DEVICES, 0)

    async def load(router: Router) -> None:
        while True:
            for device in DEVICES:
                sent[device] += 1
                place = (device, sent[device])
                router.reading(
                    *(device, NOW_MS + sent[device], NOW_MS, sent[device], ("t",), [float(sent[device])], 0),
                    outcomes.__setitem__,
                    place,
                )
            await asyncio.sleep(0.01)

    async with Router("test", LocalTransport(coordinator)) as router:
        sending = asyncio.create_task(load(router))
        while (MOVED, 3) not in outcomes:
            await asyncio.sleep(0.01)
        for isolation in ("process", "shared", "process", "shared"):
            await _isolated(router, isolation)
            await asyncio.sleep(0.2)
        sending.cancel()
        await router.drained(1)
    await coordinator.stop()
    assert len(outcomes) == sum(sent.values())
    assert all(isinstance(outcome, Accepted) for outcome in outcomes.values())
    stored: dict[int, list[int]] = {}
    streams: dict[int, list[int]] = {}
    for pool in two_pools[:databases]:
        async with acquired(pool) as connection:
            for row in await connection.fetch(
                "SELECT device, key FROM readings ORDER BY committed_at, log_offset"
            ):
                stored.setdefault(row["device"], []).append(row["key"])
            for row in await connection.fetch(
                "SELECT shard, log_offset FROM readings UNION ALL SELECT shard, log_offset FROM events"
            ):
                streams.setdefault(row["shard"], []).append(row["log_offset"])
    assert stored == {device_key(device): list(range(1, number + 1)) for device, number in sent.items()}
    for shard, offsets in streams.items():
        assert sorted(offsets) == list(range(1, len(offsets) + 1)), f"gaps in shard {shard}"
    assert max(streams) >= 1024
