"""Where things are on the nodes, and with what they are started there. The same for head and workers."""

import json
import shlex
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Final

from sensorium.cluster.deploy.checks import Order
from sensorium.cluster.deploy.spec import Machines, Node, Target

PODS_CONFIG: Final = PurePosixPath("/etc/sensorium/config/platform.yaml")
PODS_FILES: Final = PurePosixPath("/etc/sensorium/files")
PODS_AUTHORITY: Final = PurePosixPath("/etc/sensorium/authority")
PODS_TLS: Final = PurePosixPath("/etc/sensorium/tls")
_OPEN_FILES: Final = 65_536


class Layout:
    """The paths on machines that are reached by SSH.

    Attributes:
        directory: where everything is.
        bin: the programs of its virtual environment.
        config, serve: the platform's configuration and Ray Serve's.
    """

    def __init__(self, order: Order) -> None:
        install, machines = order.spec.install, machines_of(order)
        assert install is not None
        home = "/root" if machines.ssh_user == "root" else f"/home/{machines.ssh_user}"
        self.directory = PurePosixPath(install.directory or f"{home}/sensorium")
        self.bin = self.directory / "venv/bin"
        self.config = self.directory / "platform.yaml"
        self.serve = self.directory / "serve.yaml"
        self.data = self.directory / "data"
        self.log = self.directory / "platform.log"
        self.token = self.directory / "auth_token"
        self.authority = self.directory / "authority"
        self.tls = self.directory / "tls"
        self.secrets = self.directory / "secrets.env"


def machines_of(order: Order) -> Machines:
    """How the target's machines are reached."""
    machines = order.spec.local if order.target is Target.LOCAL else order.spec.aws
    assert machines is not None
    return machines


def ray_environment(order: Order, token: PurePosixPath | None, tls: PurePosixPath | None) -> dict[str, str]:
    """What all of Ray's processes must agree on: who may talk to whom.

    Said in any case: a token that lies in somebody's home would switch authentication on for one node only.
    """
    environment = {"RAY_AUTH_MODE": "token" if order.spec.security.token_auth else "disabled"}
    if order.spec.security.token_auth and token is not None:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    if tls is not None:
        environment |= {
            "RAY_USE_TLS": "1",
            "RAY_TLS_CA_CERT": str(tls / "ca.crt"),
            "RAY_TLS_SERVER_CERT": str(tls / "tls.crt"),
            "RAY_TLS_SERVER_KEY": str(tls / "tls.key"),
        }
    return environment


def certificate_options(source: PurePosixPath, directory: PurePosixPath, names: list[str]) -> list[str]:
    """What has `deploy.node` make the node's certificate, which also names what it is reached by."""
    named = [option for name in names for option in ("--named", name)]
    return ["--authority", str(source), "--certificate", str(directory), *named]


def head_command(order: Order) -> str:
    """The shell command that starts Ray on the head, as a daemon."""
    ray = order.spec.ray
    flags = [
        "--head",
        f"--port={ray.port}",
        f"--ray-client-server-port={ray.client_port}",
        *_address_of_head(order),
        *(
            ["--include-dashboard=false"]
            if ray.dashboard_port is None
            else ["--dashboard-host=127.0.0.1", f"--dashboard-port={ray.dashboard_port}"]
        ),
    ]
    # The launcher puts its own file there; ~ is for the shell of the node.
    return _started(order, [*flags, *_of_node(order, order.spec.nodes.head)]) + (
        " --autoscaling-config=~/ray_bootstrap_config.yaml"
    )


def worker_command(order: Order) -> str:
    """The shell command that starts Ray on a worker, as a daemon. The launcher sets RAY_HEAD_IP."""
    # A cloud's machines learn from their node type what they are; those of `local` are all alike.
    groups = order.spec.nodes.workers
    flags = _of_node(order, groups[0]) if order.target is Target.LOCAL and groups else _of_node(order, None)
    return _started(order, flags) + f' --address="$RAY_HEAD_IP:{order.spec.ray.port}"'


def platform_command(order: Order) -> str:
    """The shell command that starts the platform beside the head's Ray, in the background."""
    layout = Layout(order)
    address = f"127.0.0.1:{order.spec.ray.port}"
    up = [str(layout.bin / "sensorium"), "up", "--ray-address", address]
    up += ["--data-dir", str(layout.data), "--config", str(layout.config)]
    wrapped = _wrapped(order, up, ["--wait-for", address])
    return f"({_secrets(order)}exec setsid nohup {wrapped} >{layout.log} 2>&1 </dev/null) &"


def platform_stop_command(order: Order) -> str:
    """The shell command that ends a platform that runs there; no error when none does."""
    layout = Layout(order)
    return f"test ! -d {layout.data} || {layout.bin}/sensorium down --data-dir {layout.data}"


def resources_of(node: Node) -> dict[str, int]:
    """The node's resources as Ray's autoscaler counts them."""
    resources = dict(node.resources)
    if node.cpus is not None:
        resources["CPU"] = node.cpus
    if node.memory_gib is not None:
        resources["memory"] = node.memory_gib << 30
    return resources


def _address_of_head(order: Order) -> list[str]:
    """Which of the head's addresses Ray takes, where that is known."""
    local = order.spec.local
    if order.target is not Target.LOCAL or local is None:
        return []
    try:
        return [f"--node-ip-address={ip_address(local.head_ip)}"]
    except ValueError:
        return []  # a name: the head knows best what it stands for


def _of_node(order: Order, node: Node | None) -> list[str]:
    flags = [f"--object-store-memory={order.spec.ray.object_store_mib << 20}"]
    if node is None or order.target is Target.AWS:
        return flags
    if node.cpus is not None:
        flags.append(f"--num-cpus={node.cpus}")
    if node.resources:
        flags.append(f"--resources={json.dumps(node.resources, separators=(',', ':'), sort_keys=True)}")
    labels = ",".join(f"{key}={value}" for key, value in sorted(node.all_labels.items()))
    return [*flags, f"--labels={labels}"]


def _started(order: Order, flags: list[str]) -> str:
    # Nobody asks for the output of workers, and who forwards it would be a process of each node.
    ray = [str(Layout(order).bin / "ray"), "start", "--disable-usage-stats", "--include-log-monitor=false"]
    ray += flags
    return f"{_secrets(order)}ulimit -n {_OPEN_FILES}; {_wrapped(order, ray, _certificate(order))}"


def _certificate(order: Order) -> list[str]:
    if order.spec.security.tls is None:
        return []
    layout = Layout(order)
    local = order.spec.local if order.target is Target.LOCAL else None
    return certificate_options(layout.authority, layout.tls, [local.head_ip] if local else [])


def _secrets(order: Order) -> str:
    # Ray's processes have them as well, for `serve deploy` builds the API in one of these.
    return f"set -a; . {Layout(order).secrets}; set +a; " if order.spec.security.env_file is not None else ""


def _wrapped(order: Order, command: list[str], options: list[str]) -> str:
    layout = Layout(order)
    environment = ray_environment(order, layout.token, layout.tls if order.spec.security.tls else None)
    python = [str(layout.bin / "python"), "-m", "sensorium.cluster.deploy.node", "--name", order.spec.name]
    given = [f"{name}={value}" for name, value in environment.items()]
    return shlex.join(["env", *given, *python, *options, "--", *command])
