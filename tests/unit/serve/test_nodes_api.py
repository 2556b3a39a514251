"""`/api/nodes` and `/api/hosts`: what they show, what they steer and what they refuse."""

from collections.abc import Sequence

import pytest

from sensorium.actors.errors import IsolationLimit
from sensorium.serve.overview import Overview
from sensorium.serve.pages import HostItem, HostList, IsolatedDevice, NodeItem
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import world

NODE = "1e9372e0"


class Machines:
    """Two hosts on one node, as `services.RunsHosts`."""

    def __init__(self) -> None:
        self.wanted = 2
        self.drained: set[str] = set()
        self.room = True
        self.looks = 0

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

    async def room_for(self, device_id: str) -> None:
        if not self.room:
            raise IsolationLimit(f"no room for {device_id}")

    async def rebalance(self) -> None:
        self.looks += 1


async def test_a_device_is_isolated_and_goes_by_its_profile_again() -> None:
    machines = Machines()
    async with world(cluster=machines) as api:
        body = {"device_id": "a", "device_type": "pump", "isolation": "process"}
        created = await api.http.post("/api/devices", json=body)
        assert created.status_code == 201
        found = {key: created.json()[key] for key in ("isolation", "isolation_by", "process")}
        assert found == {"isolation": "process", "isolation_by": "device", "process": None}
        for isolation, by in (("shared", "device"), (None, "profile")):
            patched = await api.http.patch("/api/devices/a", json={"isolation": isolation})
            assert (patched.json()["isolation"], patched.json()["isolation_by"]) == ("shared", by)
        assert machines.looks == 3
        await api.http.patch("/api/devices/a", json={"metadata": {"x": 1}})
        assert machines.looks == 3
        listed = (await api.http.get("/api/devices")).json()["items"]
        assert listed[0]["isolation"] is None


async def test_a_device_for_whose_process_there_is_no_room_stays_as_it_is() -> None:
    machines = Machines()
    async with world(cluster=machines) as api:
        await api.http.post("/api/devices", json={"device_id": "a", "device_type": "pump"})
        machines.room = False
        refused = await api.http.patch("/api/devices/a", json={"isolation": "process", "metadata": {"x": 1}})
        assert_problem(refused, 409, "isolation_limit")
        body = {"device_id": "b", "device_type": "pump", "isolation": "process"}
        assert_problem(await api.http.post("/api/devices", json=body), 409, "isolation_limit")
        assert (await api.http.get("/api/devices/a")).json()["metadata"] == {}
        assert (await api.http.get("/api/devices/b")).status_code == 404
        back = await api.http.patch("/api/devices/a", json={"isolation": "shared"})
        assert back.status_code == 200


@pytest.mark.parametrize("isolation", ["own", "", 1, ["process"]])
async def test_what_is_no_isolation_is_refused(isolation: object) -> None:
    async with world() as api:
        await api.http.post("/api/devices", json={"device_id": "a", "device_type": "pump"})
        refused = await api.http.patch("/api/devices/a", json={"isolation": isolation})
        assert_problem(refused, 422, "invalid")


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
            isolated = [{"device_id": "d", "process": "device:d", "state": "own"}]
            own = {**host, "name": "device:d", "leaving": False, "device": "d"}
            told = {"hosts": [host, own], "hosts_wanted": 2, "balanced": False}
            return {**told, "isolated": isolated, "max_isolated": 8}

    shown = await Overview(Coordinator()).hosts()
    assert (shown.wanted, shown.balanced) == (2, False)
    assert shown.items == [
        HostItem("device:d", "serving", NODE, 7, 3, 1024, 9, 11, 0.2, 0.0, 1.5, "d"),
        HostItem("host-0", "leaving", NODE, 7, 3, 1024, 9, 11, 0.2, 0.0, 1.5),
    ]
    assert shown.isolated == [IsolatedDevice("d", "device:d", "own")]
    assert shown.max_isolated == 8
