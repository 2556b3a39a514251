"""`sensorium scale` and `sensorium drain`: how many hosts there are, and on which machines."""

import asyncio
from typing import Final

import msgspec

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ConfigError, PlatformUnreachable
from sensorium.cluster.status import HostList, Node

LOOK_EVERY_S: Final = 0.5


async def scale(url: str, hosts: int, timeout_s: float) -> HostList:
    """Have that many hosts; how it stands when each has its shards.

    Raises:
        PlatformUnreachable: no platform answers there, or it is not done in time; it goes on all the same.
    """
    async with PlatformApi(url) as api:
        await api.scale(hosts)
        return await _balanced(api, timeout_s)


async def drain(url: str, node: str, timeout_s: float, *, undo: bool = False) -> Node:
    """Have no hosts on a node, or allow them again; the node, when each host has its shards.

    Args:
        node: its id, the beginning of it, or its address.

    Raises:
        ConfigError: no node that lives is called so, or several are.
        PlatformUnreachable: as `scale`.
    """
    async with PlatformApi(url) as api:
        found = chosen(msgspec.convert(await api.nodes(), list[Node]), node)
        await api.steer_node(found.node_id, "undrain" if undo else "drain")
        await _balanced(api, timeout_s)
        return chosen(msgspec.convert(await api.nodes(), list[Node]), found.node_id)


def chosen(nodes: list[Node], name: str) -> Node:
    """The one that is called so. Raises ConfigError."""
    living = [node for node in nodes if node.alive]
    found = [node for node in living if node.address == name or (name and node.node_id.startswith(name))]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{node.address} ({node.node_id[:8]})" for node in living) or "none"
    fault = "several nodes are" if found else "no node that lives is"
    raise ConfigError(f"{fault} called {name!r}; there are {known}")


async def _balanced(api: PlatformApi, timeout_s: float) -> HostList:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                hosts = msgspec.convert(await api.hosts(), HostList)
                if hosts.balanced:
                    return hosts
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise PlatformUnreachable(
            f"not in place after {timeout_s:g} s; it goes on, see: sensorium status"
        ) from None
