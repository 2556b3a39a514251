"""`sensorium scale` and `sensorium drain`: which node is meant, and how hosts are shown."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sensorium.cluster.cli import app
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.nodes import chosen
from sensorium.cluster.status import Host, HostList, IsolatedDevice, Node, Status, hosts_table, table

NODES = [
    Node("aa11", "10.0.0.1", True, {}, []),
    Node("ab22", "10.0.0.2", True, {}, ["host-0"]),
    Node("cc33", "10.0.0.3", False, {}, []),
]


@pytest.mark.parametrize(("name", "node_id"), [("10.0.0.1", "aa11"), ("ab", "ab22"), ("ab22", "ab22")])
def test_a_node_is_called_by_its_address_or_id(name: str, node_id: str) -> None:
    assert chosen(NODES, name).node_id == node_id


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a", "several nodes are called 'a'; there are 10.0.0.1 (aa11), 10.0.0.2 (ab22)"),
        ("10.0.0.3", "no node that lives is called '10.0.0.3'"),
        ("", "no node that lives is called ''"),
    ],
)
def test_a_name_that_is_not_one_nodes_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(NODES, name)
    assert said in str(refused.value)


def test_scaling_below_one_is_refused_before_anything_is_asked() -> None:
    done = CliRunner().invoke(app, ["scale", "0"])
    assert done.exit_code == 2
    assert "greater than or equal to 1" in done.output


def test_hosts_are_shown_with_their_node() -> None:
    host = Host("host-0", "leaving", "ab22", 4711, 12, 1024, 5000, 5012, 0.1, 0.0, 2.5)
    shown = Status("ready", 1, "0.1.0", 5.0, "", "", "", nodes=NODES, hosting=HostList([host], 1, False))
    console = Console(width=140)
    with console.capture() as captured:
        console.print(hosts_table(shown))
    for part in ("host-0", "10.0.0.2", "leaving", "4711", "1,024", "5,012", "2.5 s"):
        assert part in captured.get()


def test_isolated_devices_are_shown_beside_the_hosts() -> None:
    figures = ("serving", "ab22", 4711, 12, 1, 1, 1, 0.1, 0.0, 0.0)
    hosts = [Host("host-0", *figures), Host("device:press", *figures, device="press")]
    isolated = [IsolatedDevice(name, f"device:{name}", state) for name, state in STATES]
    hosting = HostList(hosts, 1, True, isolated, 8)
    shown = Status("ready", 1, "0.1.0", 5.0, "", "", "", ready=True, hosts=2, hosting=hosting)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table(shown), hosts_table(shown))
    lines = captured.get().splitlines()
    assert "1 of at most 8 in a process of their own; oven is starting" in captured.get()
    assert [line.split()[1:] for line in lines if line.startswith("hosts ")] == [["1"]]
    assert any("device:press" in line and "4711" in line for line in lines)


STATES = [("press", "own"), ("oven", "starting")]
