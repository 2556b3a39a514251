"""The cluster as the API shows and steers it: machines, hosts, and what the coordinator says of them."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayError

from sensorium.actors.errors import SensoriumError, Unavailable
from sensorium.actors.runtime import draining_nodes
from sensorium.serve.pages import HostItem, HostList, IsolatedDevice, NodeItem

STATISTICS_FRESH_S: Final = 0.5
STATISTICS_TIMEOUT_S: Final = 5.0


class Overview:
    """What the coordinator says of hosts and services, at most `STATISTICS_FRESH_S` old."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._lock = asyncio.Lock()
        self._at_s = float("-inf")
        self._statistics: Mapping[str, Any] = {}

    async def statistics(self) -> Mapping[str, Any]:
        """As `Coordinator.statistics`. Raises `Unavailable` when it does not answer."""
        async with self._lock:
            if time.monotonic() - self._at_s > STATISTICS_FRESH_S:
                self._statistics = await self._asked("statistics")
                self._at_s = time.monotonic()
            return self._statistics

    async def nodes(self) -> list[NodeItem]:
        """The machines, each with the hosts that say they are on it. Raises as `statistics`."""
        statistics = await self.statistics()
        hosts: dict[str, list[str]] = {}
        for host in statistics.get("hosts", ()):
            hosts.setdefault(str(host.get("node")), []).append(host["name"])
        found = await asyncio.to_thread(ray.nodes)
        draining = {*statistics.get("drained", ()), *await asyncio.to_thread(draining_nodes)}
        items = [
            NodeItem(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                alive=node["Alive"],
                draining=node["Alive"] and node["NodeID"] in draining,
                # Ray names a resource after each node, for its own use.
                resources={k: v for k, v in sorted(node["Resources"].items()) if not k.startswith("node:")},
                hosts=sorted(hosts.get(node["NodeID"], ())),
            )
            for node in found
        ]
        return sorted(items, key=lambda item: (item.address, item.node_id))

    async def hosts(self) -> HostList:
        """The hosts by name, and how many there should be. Raises as `statistics`."""
        statistics = await self.statistics()
        items = [
            HostItem(
                name=host["name"],
                state="leaving" if host.get("leaving") else "serving",
                node_id=str(host.get("node", "")),
                pid=host.get("pid", 0),
                incarnation=host["incarnation"],
                shards=host["shards_owned"],
                devices_active=host["devices_active"],
                activations=host["activations"],
                lease_age_s=host["lease_age_s"],
                timers_lag_s=host["timers_lag_s"],
                commit_lag_s=host["log_down_s"],
                device=host.get("device"),
            )
            for host in statistics.get("hosts", ())
        ]
        items.sort(key=lambda item: item.name)
        return HostList(
            items,
            statistics.get("hosts_wanted", len(items)),
            statistics.get("balanced", True),
            [IsolatedDevice(**one) for one in statistics.get("isolated", ())],
            statistics.get("max_isolated", 0),
        )

    async def scale(self, hosts: int) -> None:
        """See `Coordinator.scale`. Raises as `statistics`."""
        await self._steer("scale", hosts)

    async def drain(self, node_id: str) -> bool:
        """See `Coordinator.drain`. False when no such node lives."""
        return await self._steer_node("drain", node_id)

    async def undrain(self, node_id: str) -> bool:
        """See `Coordinator.undrain`. False when no such node lives."""
        return await self._steer_node("undrain", node_id)

    async def room_for(self, device_id: str) -> None:
        """See `Coordinator.room_for`. Raises as that, and as `statistics`."""
        await self._asked("room_for", device_id)

    async def rebalance(self) -> None:
        """See `Coordinator.rebalance`. Raises as `statistics`."""
        await self._steer("rebalance")

    async def _steer_node(self, how: str, node_id: str) -> bool:
        known = any(node.alive and node.node_id == node_id for node in await self.nodes())
        if known:
            await self._steer(how, node_id)
        return known

    async def _steer(self, method: str, *args: Any) -> None:
        await self._asked(method, *args)
        self._at_s = float("-inf")

    async def _asked(self, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(STATISTICS_TIMEOUT_S):
                return await self._coordinator.call.remote(method, *args)
        except TimeoutError:
            raise Unavailable(f"the coordinator did not answer in {STATISTICS_TIMEOUT_S:g} s") from None
        except SensoriumError:
            raise
        except RayError as error:
            raise Unavailable(f"the coordinator is not there: {str(error).splitlines()[0]}") from error

    async def check_hosts(self) -> None:
        """Raises `Unavailable` while a host or an ingestor is down, or a host cannot commit."""
        statistics = await self.statistics()
        troubles = [f"{name} is down" for name in statistics.get("down", ())]
        for host in statistics.get("hosts", ()):
            # What one database of several lacks is no matter of the platform's, but for the main one's.
            if host.get("log_down_s", 0.0) > 0.0 and 1 in host.get("databases_down", (1,)):
                troubles.append(f"{host['name']} has not been able to commit for {host['log_down_s']:.0f} s")
        if troubles:
            raise Unavailable(", ".join(troubles))
