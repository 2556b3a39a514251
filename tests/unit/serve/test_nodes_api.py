"""`/api/nodes` and `/api/hosts`: what they show, what they steer and what they refuse."""

from collections.abc import Sequence

import pytest

from sensorium.serve.overview import Overview
from sensorium.serve.pages import HostItem, HostList, NodeItem
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import world

NODE = "1e9372e0"


class Machines:
    """Two hosts on one node, as `services.RunsHosts`."""

    def __init__(self) -> None:
        self.wanted = 2
        self.drained: set[str] = set()

    async def nodes(self) -> Sequence[NodeItem]:
        return [NodeItem(NODE, "10.0.0.1", True, NODE in self.drained, {"CPU": 2.0}, ["host-0"])]

    async def hosts(self) -> HostList:
        items = [HostItem(f"host-{n}", "serving", NODE, 7, 3, 512, 9, 9, 0.1, 0.0, 0.0) for n in range(2)]
        return HostList(items, self.wanted, self.wanted == len(items))

    async def scale(self, hosts: int) -> None:
        self.wanted = hosts

    async def drain(self, node_id: str) -> bool:
        self.drained.add(node_id)
        return node_id == NODE

    async def undrain(self, node_id: str) -> bool:
        self.drained.discard(node_id)
        return node_id == NODE


async def test_hosts_are_shown_and_scaled() -> None:
    async with world(cluster=Machines()) as api:
        shown = (await api.http.get("/api/hosts")).json()
        assert [host["name"] for host in shown["items"]] == ["host-0", "host-1"]
        assert (shown["wanted"], shown["balanced"]) == (2, True)
        scaled = await api.http.post("/api/hosts/scale?hosts=5")
        assert (scaled.status_code, scaled.json()["wanted"], scaled.json()["balanced"]) == (202, 5, False)
        assert api.audit.noted == [("", "cluster.scale", "hosts", {"hosts": 2}, {"hosts": 5})]


@pytest.mark.parametrize("hosts", ["0", "-1", "1025", "many", "1.5"])
async def test_a_number_of_hosts_out_of_range_is_refused(hosts: str) -> None:
    machines = Machines()
    async with world(cluster=machines) as api:
        assert_problem(await api.http.post(f"/api/hosts/scale?hosts={hosts}"), 422, "invalid")
    assert machines.wanted == 2


async def test_nodes_are_drained_and_used_again() -> None:
    async with world(cluster=Machines()) as api:
        drained = await api.http.post(f"/api/nodes/{NODE}/drain")
        assert (drained.status_code, drained.json()["items"][0]["draining"]) == (202, True)
        used = await api.http.post(f"/api/nodes/{NODE}/undrain")
        assert (used.status_code, used.json()["items"][0]["draining"]) == (202, False)
        for verb in ("drain", "undrain"):
            assert_problem(await api.http.post(f"/api/nodes/abc/{verb}"), 404, "not_found")


async def test_without_a_cluster_it_says_so() -> None:
    async with world() as api:
        assert_problem(await api.http.get("/api/nodes"), 503, "unavailable")


async def test_hosts_come_from_what_the_coordinator_says() -> None:
    host = {
        "name": "host-0", "incarnation": 3, "shards_owned": 1024, "devices_active": 9, "activations": 11,
        "lease_age_s": 0.2, "timers_lag_s": 0.0, "log_down_s": 1.5, "leaving": True, "node": NODE, "pid": 7,
    }  # fmt: skip

    class Coordinator:
        @property
        def call(self) -> "Coordinator":
            return self

        async def remote(self, _: str) -> dict[str, object]:
            return {"hosts": [host], "hosts_wanted": 2, "balanced": False}

    shown = await Overview(Coordinator()).hosts()
    assert (shown.wanted, shown.balanced) == (2, False)
    assert shown.items == [HostItem("host-0", "leaving", NODE, 7, 3, 1024, 9, 11, 0.2, 0.0, 1.5)]
