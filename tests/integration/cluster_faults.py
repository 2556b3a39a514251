"""What can happen to a cluster of several machines. Each fault ends with all as it was before."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from cluster_world import COORDINATOR, DATABASE, HOST, World
from network import Network

from sensorium.cluster.run_directory import is_running, read_state

CUT_S: Final = 12.0
"""Longer than the lease, and shorter than it takes Ray to give a node up."""

AWAY_S: Final = 10.0
"""After which a machine that was lost comes back."""

NOTICED_S: Final = 5.0
"""In which a node that Ray has given up hears of it and ends."""

ClusterFault = Callable[[World], Coroutine[Any, Any, None]]
"""Does it, says so by `World.struck`, and mends it; what is served meanwhile is looked at beside it."""

CUTS: Final[Mapping[str, Callable[[Network, str], None]]] = {
    "worker cut off": lambda net, node: net.cut_off(node),
    "worker's packets lost": lambda net, node: net.cut_off(node, receiving=False),
    "packets to worker lost": lambda net, node: net.cut_off(node, sending=False),
    "worker cut from database": lambda net, node: net.cut(node, DATABASE),
}
"""By name: each is done to the worker that the devices' messages come in by, or to one with a host."""


async def _busy_worker(world: World) -> str:
    """The worker that messages come in by; one with a host, where a spare on the head has taken over."""
    node = await asyncio.to_thread(world.ingestor_node)
    return await asyncio.to_thread(world.node_of, HOST) if node == "head" else node


async def kill_node(world: World) -> None:
    """SIGKILL to all processes of a worker; another comes later."""
    node = await _busy_worker(world)
    world.machines.kill_node(node)
    world.struck.set()
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(world.machines.start_worker, int(node.rpartition("-")[2]))
    await world.spread_evenly()


async def kill_driver(world: World) -> None:
    """SIGKILL to `sensorium up` on the head. What it leaves serves on, until another takes over."""
    folder = world.machines.folder / "data"
    left_behind = world.process(COORDINATOR, "head")
    os.kill(read_state(folder).pid, signal.SIGKILL)
    await world.eventually(lambda: not is_running(folder), "its end", 10)
    await asyncio.sleep(AWAY_S)
    starting = asyncio.create_task(asyncio.to_thread(world.machines.start_platform))
    await world.eventually(lambda: not left_behind.is_running(), "what was left behind to be ended")
    world.struck.set()
    await starting
    await world.spread_evenly()


async def restart_database(world: World) -> None:
    """The database stopped as by its service manager, and started."""
    await asyncio.to_thread(world.stop_database)
    world.struck.set()
    await asyncio.to_thread(world.database.start)
    await world.spread_evenly()


async def cut(world: World, how: str) -> None:
    """A worker cut off in one of the ways of `CUTS`, and healed."""
    assert world.network is not None
    node = await _busy_worker(world)
    try:
        CUTS[how](world.network, node)
        world.struck.set()
        await asyncio.sleep(CUT_S)
    finally:
        world.network.heal()
    await asyncio.sleep(NOTICED_S)
    if world.machines.nodes[node].poll() is not None:
        # Ray had given it up; whoever looks after the machine starts it again.
        await asyncio.to_thread(world.machines.start_worker, int(node.rpartition("-")[2]))
    await world.spread_evenly()


FAULTS: Final[Mapping[str, ClusterFault]] = {
    "node killed": kill_node,
    "head's driver killed": kill_driver,
    "database stopped and started": restart_database,
    **{how: partial(cut, how=how) for how in CUTS},
}
