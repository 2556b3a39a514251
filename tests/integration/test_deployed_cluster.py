"""A cluster of a head and two workers starts, serves and stops by the commands of `sensorium deploy`."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from machines import Machines, installed
from platform_process import status_json, wait_until
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.cluster.errors import NotRunning
from sensorium.cluster.run_directory import is_running, read_state
from sensorium.serve.environment import short_run_dir
from sensorium.storage import EmbeddedPostgres

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
]

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 45.0
_MARK = "SENSORIUM_TEST_RUN"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a short path, since it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="sens-dep-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def secrets(folder: Path) -> Iterator[str]:
    """The addresses of a database and a broker that the nodes share."""
    broker = RealMosquitto(folder)
    database = EmbeddedPostgres(folder / "pg")
    broker.start()
    try:
        database.start()
        yield f"DEVICE_DB_URL='{database.dsn}'\nMQTT_BROKER_URL={broker.url}\n"
    finally:
        database.stop()
        broker.stop()


@pytest.fixture(scope="module")
def machines(folder: Path, secrets: str) -> Iterator[Machines]:
    """The nodes, not started yet."""
    local = {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]}
    directory, launcher, name = installed(folder, secrets, local)
    nodes = Machines(directory, launcher)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(short_run_dir(name), ignore_errors=True)


def test_a_cluster_starts_serves_and_stops_by_the_written_commands(machines: Machines) -> None:
    machines.start_head()
    machines.start_worker(1)
    machines.start_worker(2)
    machines.start_platform()

    url = read_state(machines.folder / "data").http_url
    device = {"device_id": "deployed-1", "device_type": "pump"}
    assert httpx.post(f"{url}/api/devices", json=device, timeout=15).status_code == 201
    sent = httpx.post(f"{url}/api/devices/deployed-1/data", json={"pressure": 3.5}, timeout=15)
    assert sent.is_success, sent.text

    status: dict[str, Any] = status_json(machines.folder / "data")
    assert status["ready"], status
    nodes = status["nodes"]
    assert [node["alive"] for node in nodes] == [True, True, True]
    # None on the head, as the specification says.
    assert sorted(len(node["hosts"]) for node in nodes) == [0, 1, 1]
    assert sorted(host for node in nodes for host in node["hosts"]) == ["host-0", "host-1"]
    assert sorted(node["resources"].get("CPU") == 1.0 for node in nodes)[-2:] == [True, True]

    # Two platforms on one cluster would fight over its hosts.
    assert "a platform runs on the Ray cluster" in machines.second_platform()

    # A platform that was killed left its hosts behind on the nodes; the next one takes their place.
    os.kill(read_state(machines.folder / "data").pid, signal.SIGKILL)
    wait_until(lambda: not is_running(machines.folder / "data"), 10, "the killed platform")
    machines.start_platform()
    latest = httpx.get(f"{url}/api/devices/deployed-1/data/latest", timeout=15)
    assert latest.json()["metrics"]["pressure"]["value"] == 3.5, latest.text

    machines.stop_platform()
    with pytest.raises(NotRunning):
        read_state(machines.folder / "data")
    assert "sensorium.cluster.up: stopped" in (machines.folder / "platform.log").read_text()
    machines.stop_nodes()
    wait_until(lambda: not machines.processes(), 15, "the processes to end")
