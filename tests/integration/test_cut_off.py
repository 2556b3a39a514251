"""A worker with an address of its own is cut off under load: both ways, one way, from the database alone; and
healed. What the broker acknowledged is compared with what the log holds."""

import os
from collections.abc import Iterator
from typing import Final

import network
import pytest
from cluster_faults import CUTS, cut
from cluster_world import World, networked_cluster
from postgres_server import needs_postgres
from real_mosquitto import MOSQUITTO
from recovery import struck

from sensorium.actors.lease import LEASE_S

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    needs_postgres,
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
    pytest.mark.skipif(network.why_not() is not None, reason=f"{network.why_not()}"),
]

BOUND_S: Final = LEASE_S + 3.0
CORES: Final = 8
"""From which on the bound is asserted: what was lost starts anew as processes, each of some seconds of a
core, beside three nodes and the load. With fewer the time is only printed."""

MESSAGE_EVERY_S: Final = 0.5
"""A device sends so often, so a recovery is not seen any earlier."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """All of it, started."""
    with networked_cluster() as started:
        yield started


@pytest.mark.parametrize("how", CUTS)
async def test_a_worker_cut_off(world: World, how: str) -> None:
    """It is the one that the messages come in by, so that has to come up elsewhere too."""
    await world.spread_evenly()
    async with world.load(how.replace(" ", "-")) as load:
        fault = await struck(cut(world, how), world.struck)
        took_s = await world.recovered(load, how)
        await fault
        await world.recovered(load, "healed")
    if (os.cpu_count() or 1) >= CORES:
        assert took_s < BOUND_S + MESSAGE_EVERY_S, world.coordinator_log()
