"""A cluster of a head and two workers starts, serves and stops by the commands of `sensorium deploy`.

It has the token and the authority that docs/deploy.md tells to make; whoever lacks one of them is refused.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from machines import Machines, installed
from platform_process import status_json, wait_until
from real_mosquitto import MOSQUITTO, RealMosquitto

from sensorium.cluster.deploy import certificate
from sensorium.cluster.errors import NotRunning
from sensorium.cluster.run_directory import is_running, read_state
from sensorium.serve.environment import short_run_dir
from sensorium.storage import EmbeddedPostgres

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
]

PAGE = Path(__file__).parents[2] / "docs/deploy.md"
SECURITY = {
    "token_auth": True,
    "token_file": "auth_token",
    "tls": {"ca_file": "ca.crt", "ca_key_file": "ca.key"},
}
JOIN_TIMEOUT_S = 60.0


def example(beginning: str) -> str:
    """The page's example that begins so."""
    (found,) = re.findall(rf"```sh\n({re.escape(beginning)}.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def make_secrets(folder: Path) -> None:
    """Make token and authority as the page says."""
    script = example("(umask 77; openssl rand")
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True, timeout=30)


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
    make_secrets(folder)
    directory, launcher, name = installed(folder, secrets, local, security=SECURITY)
    nodes = Machines(directory, launcher)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(short_run_dir(name), ignore_errors=True)


def joins_who_has_token_and_certificate(machines: Machines) -> None:
    """The page's example of a program that joins, as it stands and with one thing wrong."""
    script = example("cd sensorium\n").replace("cd sensorium", f"cd {machines.folder}")
    script = script.replace("10.0.0.10:6379", machines.address)
    environment = {"PATH": os.environ["PATH"], "HOME": str(machines.folder)}
    strangers = machines.folder / "strangers"
    strangers.mkdir()
    make_secrets(strangers)
    certificate.make(strangers, strangers / "tls")

    done = subprocess.run(
        ["bash", "-ec", script], env=environment, timeout=JOIN_TIMEOUT_S, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.count(" node_")) == (0, 3), done.stdout + done.stderr

    wrong = {
        "no TLS": (script.replace("RAY_USE_TLS=1", "RAY_USE_TLS=0"), "Failed to connect"),
        "another authority's certificate": (
            script.replace("$PWD/tls/tls.", f"{strangers}/tls/tls."),
            "Failed to connect",
        ),
        "no token": (script.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "InvalidAuthToken"),
        "another token": (script.replace("$PWD/auth_token", f"{strangers}/auth_token"), "InvalidAuthToken"),
    }
    with ExitStack() as stack:
        said = {}
        for number, (why, (text, _)) in enumerate(wrong.items()):
            said[why] = strangers / f"{number}.log"
            output = stack.enter_context(said[why].open("w"))
            command = ["bash", "-ec", text.replace("venv/bin/ray", "exec venv/bin/ray")]
            refused = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            stack.callback(refused.wait)
            # Without a certificate, Ray tries for a minute.
            stack.callback(refused.kill)
        for why, (_, words) in wrong.items():
            wait_until(lambda w=why, words=words: words in said[w].read_text(), JOIN_TIMEOUT_S, why)
            assert " node_" not in said[why].read_text(), why


def test_a_cluster_starts_serves_and_stops_by_the_written_commands(machines: Machines) -> None:
    machines.start_head()
    machines.start_worker(1)
    machines.start_worker(2)
    machines.start_platform()
    joins_who_has_token_and_certificate(machines)

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
