"""Three nodes under load: hosts, nodes, coordinator, platform and database are lost, nodes join and leave,
one is cut off (both ways, one way, from the database alone) and healed.

Each test compares what the broker acknowledged with what the log holds, as `log_audit` says. The nodes are
machines of a network where that can be; else they share the loopback, and nothing can be cut."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Final

import network
import pytest
from cluster_faults import CUTS, cut
from cluster_world import COORDINATOR, DEVICES, HOST, World, loopback_cluster, networked_cluster
from postgres_server import BINARIES
from real_mosquitto import MOSQUITTO
from recovery import struck

from sensorium.actors.lease import LEASE_S
from sensorium.cluster.run_directory import is_running, read_state

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
]


ALONE: Final = network.why_not() or ("" if BINARIES else "PostgreSQL is not installed, to have an address")
"""Why the nodes cannot have addresses of their own."""

BOUND_S: Final = LEASE_S + 3.0
CORES: Final = 8
"""From which on the bound is asserted: what was lost starts anew as processes, each of some seconds of a
core, beside three nodes and the load. With fewer the time is only printed."""

MESSAGE_EVERY_S: Final = 0.5
"""A device sends so often, so a recovery is not seen any earlier."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """All of it, started."""
    with loopback_cluster() if ALONE else networked_cluster() as started:
        yield started


async def test_a_host_killed(world: World) -> None:
    await world.spread_evenly()
    async with world.load("host-killed") as load:
        victim = world.process(HOST, "worker-1")
        victim.kill()
        await world.recovered(load, "a host killed")
        await world.eventually(lambda: world.machines.processes_of("worker-1", HOST), "another in its place")
        await world.spread_evenly()
        assert not victim.is_running()


async def test_the_coordinator_killed(world: World) -> None:
    """Hosts serve on, and the next one goes on with them."""
    hosts = {world.process(HOST, f"worker-{worker}").pid for worker in (1, 2)}
    async with world.load("coordinator-killed") as load:
        world.process(COORDINATOR, world.node_of(COORDINATOR)).kill()
        await world.recovered(load, "the coordinator killed")
        await world.spread_evenly()
    assert hosts == {world.process(HOST, f"worker-{worker}").pid for worker in (1, 2)}


async def test_the_database_stopped_and_started(world: World) -> None:
    async with world.load("database-stopped") as load:
        await asyncio.to_thread(world.stop_database)
        await load.more(DEVICES)
        await asyncio.to_thread(world.database.start)
        await world.recovered(load, "the database started again")
        await world.spread_evenly()


async def test_a_node_drained_and_another_joins(world: World) -> None:
    """A node that Ray is asked to drain hands over first: no host is ever lost."""
    async with world.load("node-drained") as load:
        drained = next(node["node_id"] for node in world.nodes() if node["hosts"])
        before = {worker: world.process(HOST, f"worker-{worker}") for worker in (1, 2)}
        asked = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test")
        world.machines.ray("drain-node", "--node-id", drained, *asked, "--deadline-remaining-seconds", "60")
        await world.eventually(lambda: world.spread() == [0, 0, 1], "the node to be empty")
        (worker,) = [worker for worker, host in before.items() if not host.is_running()]
        await world.recovered(load, "a node drained")
        world.machines.stop_node(f"worker-{worker}")
        world.machines.start_worker(worker)
        await world.spread_evenly()
        await world.recovered(load, "a node joined")


async def test_a_node_killed_and_another_joins(world: World) -> None:
    async with world.load("node-killed") as load:
        world.machines.kill_node("worker-2")
        await world.recovered(load, "a node killed")
        world.machines.start_worker(2)
        await world.spread_evenly()
        await world.recovered(load, "a node joined")


async def test_the_platform_killed_and_started_again(world: World) -> None:
    """The driver on the head: hosts and services serve on without it, and the next one takes over."""
    async with world.load("platform-killed") as load:
        os.kill(read_state(world.machines.folder / "data").pid, signal.SIGKILL)
        await world.eventually(lambda: not is_running(world.machines.folder / "data"), "its end", 10)
        await world.recovered(load, "the platform killed")
        await asyncio.to_thread(world.machines.start_platform)
        await world.recovered(load, "the platform started again")
        await world.spread_evenly()


@pytest.mark.skipif(bool(ALONE), reason=ALONE)
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
