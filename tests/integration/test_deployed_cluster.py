"""A cluster of a head and two workers on this machine, by the very commands that `sensorium deploy` writes.

What the launcher does besides (copying files, logging in) is done here by hand; `ray stop`, which would end
every Ray of the machine, is left out.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from platform_process import run_sensorium, status_json, wait_until
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.cluster.errors import NotRunning
from sensorium.cluster.run_directory import is_running, read_state
from sensorium.ingest.broker import free_port
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


class Machines:
    """Three nodes of one machine. `close` leaves no process behind."""

    def __init__(self, folder: Path, launcher: dict[str, Any]) -> None:
        self.folder = folder
        self.launcher = launcher
        self.mark = uuid.uuid4().hex
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start_head(self) -> None:
        """Ray on the head, as the launcher starts it."""
        command = self.launcher["head_start_ray_commands"][2]
        # It lets the head log in to the workers, which the launcher prepares.
        command = command.removesuffix(" --autoscaling-config=~/ray_bootstrap_config.yaml")
        self._node(f"{command} --temp-dir={self.folder / 'ray'}", "head")

    def start_worker(self, number: int) -> None:
        """Ray on a worker."""
        self._node(self.launcher["worker_start_ray_commands"][1], f"worker-{number}")

    def start_platform(self) -> None:
        """The platform beside the head's Ray; returns when it serves."""
        self._shell(self.launcher["head_start_ray_commands"][3])
        try:
            wait_until(self._ready, START_TIMEOUT_S, "the platform")
        except TimeoutError as error:
            logs = (f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))
            raise AssertionError("\n".join([str(error), *logs])) from None

    def second_platform(self) -> str:
        """What a platform says that joins the same cluster with a data directory of its own."""
        command = self.launcher["head_start_ray_commands"][3]
        command = command.replace(f"--data-dir {self.folder}/data", f"--data-dir {self.folder}/other")
        command = command.replace(f">{self.folder}/platform.log", f">{self.folder}/other.log")
        # In the foreground: it ends by itself.
        self._shell(f"{command.removesuffix(' &')} || true")
        return (self.folder / "other.log").read_text()

    def stop_platform(self) -> None:
        """What precedes a new start on the head."""
        self._shell(self.launcher["head_start_ray_commands"][0])

    def stop_nodes(self) -> None:
        """End Ray, the head last."""
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
            node.wait(STOP_TIMEOUT_S)

    def processes(self) -> list[str]:
        """What lives of all this."""
        return [" ".join(process.cmdline())[:120] for process in self._living()]

    def close(self) -> None:
        """End what lives, by force."""
        for process in self._living():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _ready(self) -> bool:
        with suppress(NotRunning):
            return read_state(self.folder / "data").phase == "ready"
        return False

    def _shell(self, command: str) -> None:
        subprocess.run(["bash", "-c", command], env=self._environment(), timeout=60, check=True)

    def _node(self, command: str, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            node = subprocess.Popen(
                # In the foreground, so that it ends by a signal of ours.
                ["bash", "-c", f"{command.replace('; env', '; exec env')} --block"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._nodes.append(node)
        log_file = self.folder / f"{name}.log"
        wait_until(lambda: "Ray runtime started" in log_file.read_text(), START_TIMEOUT_S, log_file.name)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RAY_HEAD_IP": "127.0.0.1",
            _MARK: self.mark,
            # The tree under test, where it is not the one that the environment has installed.
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        }

    def _living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


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
    """The nodes, not started yet: `deploy --write-only`, and the files where the launcher copies them."""
    (folder / "secrets").write_text(secrets)
    (folder / "token").write_text(uuid.uuid4().hex * 2)
    (folder / "requirements.lock").touch()
    (folder / "sensorium.whl").touch()
    name = f"test-{os.getpid()}"
    installed = folder / "node"
    spec = {
        "name": name,
        "nodes": {"workers": [{"name": "w", "count": 2, "hosts": 1, "cpus": 1, "labels": {"hall": "a"}}]},
        "ray": {
            "port": free_port(),
            "client_port": free_port(),
            "dashboard_port": None,
            "object_store_mib": 80,
        },
        "local": {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"], "ssh_user": "root"},
        "install": {
            "requirements": "requirements.lock",
            "wheel": "sensorium.whl",
            "directory": str(installed),
        },
        "security": {"token_auth": True, "token_file": "token", "env_file": "secrets"},
        "secret_variables": ["DEVICE_DB_URL", "MQTT_BROKER_URL"],
        "platform": {
            "http": {"port": free_port(), "proxies": "head"},
            "mqtt": {"client_id": name},
            "coap": {"port": free_port()},
        },
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(spec))
    out = folder / "out"
    done = run_sensorium("deploy", folder / "cluster.yaml", "--write-only", "--output", out)
    assert done.returncode == 0, done.stderr
    launcher = yaml.safe_load((out / "launcher.yaml").read_text())
    for there, here in launcher["file_mounts"].items():
        Path(there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, there)
    (installed / "venv").symlink_to(sys.prefix)
    nodes = Machines(installed, launcher)
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
    # None on the head, as the specification says. A worker that was slow to join may have got none.
    assert sorted(len(node["hosts"]) for node in nodes) in ([0, 1, 1], [0, 0, 2])
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
