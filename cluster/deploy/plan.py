"""What a deployment would write and run: a pure function of the specification and the output directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.cluster.deploy import kuberay, launcher
from sensorium.cluster.deploy.checks import Order
from sensorium.cluster.deploy.layout import PODS_CONFIG, Layout
from sensorium.cluster.deploy.platform_file import platform_config, serve_config, to_yaml
from sensorium.cluster.deploy.spec import Target

FILES = frozenset({"launcher.yaml", "manifests.yaml", "platform.yaml", "serve.yaml"})
"""Every file that a deployment may write."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment before it is done.

    Attributes:
        files: text by name; they belong into `directory`.
        command: what is run there, in `directory`.
        on_nodes: shell commands by the kind of node that runs them, in their order.
        needs: what must be there before, by name.
        url: where the API will be, when that is known.
    """

    name: str
    target: Target
    directory: Path
    nodes: int
    most_nodes: int
    hosts: int
    files: dict[str, str]
    command: tuple[str, ...]
    on_nodes: dict[str, list[str]]
    needs: dict[str, str]
    url: str | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "target": str(self.target),
            "directory": str(self.directory),
            "nodes": self.nodes,
            "most_nodes": self.most_nodes,
            "hosts": self.hosts,
            "files": self.files,
            "command": list(self.command),
            "on_nodes": self.on_nodes,
            "needs": self.needs,
            "url": self.url,
        }

    def told(self) -> str:
        """For people."""
        up_to = f" (up to {self.most_nodes})" if self.most_nodes > self.nodes else ""
        plural = "s" if self.nodes > 1 or up_to else ""
        lines = [
            f"{self.name} on {self.target}: {self.nodes} node{plural}{up_to},"
            f" {self.hosts} device host{'s' if self.hosts > 1 else ''}",
            f"files in {self.directory}:",
            *(f"  {name} ({len(text.encode())} bytes)" for name, text in self.files.items()),
        ]
        for kind, commands in self.on_nodes.items():
            lines += [f"on {kind}:", *(f"  {number}. {text}" for number, text in enumerate(commands, 1))]
        if self.needs:
            lines += ["must be there already:", *(f"  {name}: {what}" for name, what in self.needs.items())]
        lines += ["run:", f"  {' '.join(self.command)}"]
        if self.url is not None:
            lines.append(f"then wait for {self.url}/readyz")
        return "\n".join(lines)


def plan(order: Order, directory: Path) -> Plan:
    """How the specification is deployed."""
    about = f"Written by `sensorium deploy` for {order.spec.name}; change the specification instead."
    on_nodes: dict[str, list[str]] = {}
    needs: dict[str, str] = {}
    command: tuple[str, ...]
    url = None
    if order.target is Target.KUBERAY:
        files = {"manifests.yaml": to_yaml(*kuberay.manifests(order), about=about)}
        command = ("kubectl", "apply", "-f", "manifests.yaml")
        needs = {f"secret {name}": f"with {keys}" for name, keys in kuberay.secrets(order).items()}
        needs = {"KubeRay operator": "1.5 or newer", **needs}
        config = PODS_CONFIG
    else:
        files = {"launcher.yaml": to_yaml(launcher.launcher_config(order, directory), about=about)}
        # The cache would keep what an earlier version of the file has said of the machines.
        command = ("ray", "up", "--yes", "--no-config-cache", "launcher.yaml")
        on_nodes = {
            "every node": launcher.setup_commands(order),
            "the head": launcher.head_commands(order),
            "each worker": launcher.worker_commands(order),
        }
        config = Layout(order).config
        files["platform.yaml"] = to_yaml(platform_config(order), about=about)
        if order.target is Target.LOCAL and order.http_is_open:
            assert order.spec.local is not None
            url = f"http://{order.spec.local.head_ip}:{order.spec.platform.http.port}"
    files["serve.yaml"] = to_yaml(serve_config(order, config), about=about)
    nodes = order.spec.nodes
    return Plan(
        name=order.spec.name,
        target=order.target,
        directory=directory,
        nodes=nodes.count,
        most_nodes=nodes.most,
        hosts=nodes.hosts,
        files=files,
        command=command,
        on_nodes=on_nodes,
        needs=needs,
        url=url,
    )
