"""The nodes of a cluster as processes of this machine, by the very commands that `sensorium deploy` writes.

What the launcher does besides (copying files, logging in) is done here by hand; `ray stop`, which would end
every Ray of the machine, is left out. `ray.cluster_utils.Cluster` would start Ray in another way than a
deployment does: without its labels, its token and the wrapper that sets its environment.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from platform_process import run_sensorium, wait_until

from sensorium.cluster.errors import NotRunning
from sensorium.cluster.run_directory import read_state
from sensorium.ingest.broker import free_port

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 45.0
NODE_TIMEOUT_S = 40.0
_MARK = "SENSORIUM_TEST_RUN"
_NODE = "SENSORIUM_TEST_NODE"


class Machines:
    """The nodes of a cluster, a head and workers. `close` leaves no process behind.

    Args:
        folder: where the launcher would install everything.
        launcher: the launcher's file as `deploy` writes it.
        head_ip: where workers find the head.
        inside: by node ("head", "worker-1" …) the command that runs another on that machine.

    Attributes:
        nodes: the node's process, by node.
    """

    def __init__(
        self,
        folder: Path,
        launcher: dict[str, Any],
        head_ip: str = "127.0.0.1",
        inside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder = folder
        self.launcher = launcher
        self.mark = uuid.uuid4().hex
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._head_ip = head_ip
        self._inside = inside or {}

    def start_head(self) -> None:
        """Ray on the head, as the launcher starts it."""
        command = self.launcher["head_start_ray_commands"][2]
        # It lets the head log in to the workers, which the launcher prepares.
        command = command.removesuffix(" --autoscaling-config=~/ray_bootstrap_config.yaml")
        self._node(f"{command} --temp-dir={self.folder / 'ray'}", "head")

    def start_worker(self, number: int, **environment: str) -> None:
        """Ray on a worker, with more environment variables than it has by itself."""
        self._node(self.launcher["worker_start_ray_commands"][1], f"worker-{number}", **environment)

    def kill_node(self, name: str) -> None:
        """SIGKILL to all of a node's processes, as when its machine is gone."""
        for process in self.processes_of(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.pop(name).wait(STOP_TIMEOUT_S)

    def stop_node(self, name: str) -> None:
        """End a node's Ray by SIGTERM."""
        node = self.nodes.pop(name)
        node.send_signal(signal.SIGTERM)
        node.wait(STOP_TIMEOUT_S)

    def processes_of(self, node: str, title: str = "") -> list[psutil.Process]:
        """A node's living processes whose command line starts so."""
        found = []
        for process in self._living():
            with suppress(psutil.Error):
                if process.environ().get(_NODE) == node and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    @property
    def ray_port(self) -> int:
        """Of the head's control store."""
        return int(self.launcher["head_start_ray_commands"][2].partition("--port=")[2].split()[0])

    @property
    def address(self) -> str:
        """Where programs join."""
        return f"{self._head_ip}:{self.ray_port}"

    def ray(self, *arguments: str) -> str:
        """What a command of Ray's prints, run on the head."""
        address = self.address
        command = shlex.join([str(self.folder / "venv/bin/ray"), *arguments, "--address", address])
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "auth_token")}
        return self._shell(command, **environment)

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
        for name in reversed(list(self.nodes)):
            self.stop_node(name)

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

    def _shell(self, command: str, **more: str) -> str:
        """Run it on the head. Its output goes to a file: what it leaves running would keep a pipe open."""
        output = self.folder / "shell.log"
        with output.open("wb") as file:
            done = subprocess.run(
                [*self._inside.get("head", ()), "bash", "-c", command],
                env={**self._environment("head"), **more},
                timeout=60,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert done.returncode == 0, f"{command}:\n{output.read_text()[-2000:]}"
        return output.read_text()

    def _node(self, command: str, name: str, **more: str) -> None:
        log_file = self.folder / f"{name}.log"
        with log_file.open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                # In the foreground, so that it ends by a signal of ours.
                [
                    *self._inside.get(name, ()),
                    *("bash", "-c", f"{command.replace('; env', '; exec env')} --block"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment(name), **more},
                start_new_session=True,
            )
        try:
            wait_until(lambda: "Ray runtime started" in log_file.read_text(), NODE_TIMEOUT_S, name)
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{log_file.read_text()[-3000:]}") from None

    def _environment(self, node: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RAY_HEAD_IP": self._head_ip,
            _MARK: self.mark,
            _NODE: node,
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


def installed(
    folder: Path,
    secrets: str,
    local: Mapping[str, Any],
    http_host: str = "127.0.0.1",
    security: Mapping[str, Any] | None = None,
    by_ray_alone: bool = False,
) -> tuple[Path, dict[str, Any], str]:
    """Three nodes by `deploy --write-only`, and the files where the launcher copies them.

    Args:
        folder: for all of it; its path should be short, since it holds sockets.
        secrets: lines of `env_file`, with the addresses of a database and a broker that the nodes share.
        local: the specification's section.
        http_host: where the API listens.
        security: of the specification's section, instead of a token of its own.
        by_ray_alone: whether hosts are called by Ray even where they are.

    Returns:
        the folder of the installation, the launcher's file, and the name to clean up by.
    """
    (folder / "secrets").write_text(secrets)
    if security is None:
        (folder / "token").write_text(uuid.uuid4().hex * 2)
    (folder / "requirements.lock").touch()
    (folder / "sensorium.whl").touch()
    name = f"test-{uuid.uuid4().hex[:8]}"
    there_dir = folder / "node"
    spec = {
        "name": name,
        "nodes": {"workers": [{"name": "w", "count": 2, "hosts": 1, "cpus": 1, "labels": {"hall": "a"}}]},
        "ray": {
            "port": free_port(),
            "client_port": free_port(),
            "dashboard_port": None,
            "object_store_mib": 80,
        },
        "local": {**local, "ssh_user": "root"},
        "install": {
            "requirements": "requirements.lock",
            "wheel": "sensorium.whl",
            "directory": str(there_dir),
        },
        "security": {
            **(security or {"token_auth": True, "token_file": "token"}),
            "env_file": "secrets",
        },
        "secret_variables": ["DEVICE_DB_URL", "MQTT_BROKER_URL"],
        "platform": {
            "http": {"host": http_host, "port": free_port(), "proxies": "head"},
            "mqtt": {"client_id": name},
            "coap": {"port": free_port()},
            "cluster": {"local_calls": not by_ray_alone},
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
    (there_dir / "venv").symlink_to(sys.prefix)
    return there_dir, launcher, name
