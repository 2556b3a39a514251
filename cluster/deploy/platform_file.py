"""The platform's own files of a deployment: its configuration, and Ray Serve's."""

import copy
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from sensorium.cluster.deploy.checks import Order
from sensorium.cluster.deploy.layout import PODS_FILES
from sensorium.cluster.deploy.spec import Target
from sensorium.serve.deployment import APPLICATION, DEPLOYMENT

IMPORT_PATH: Final = "sensorium.cluster.deploy.serve_app:api"


class _Dumper(yaml.SafeDumper):
    """Repeats what occurs twice instead of pointing at it, and keeps the lines of texts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(*documents: Any, about: str = "") -> str:
    """The documents as YAML in the order they are in, under a comment; the same each time."""
    text: str = yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=110,
        explicit_start=len(documents) > 1,
    )
    return f"# {about}\n{text}" if about else text


def platform_config(order: Order) -> dict[str, Any]:
    """What `sensorium up --config` is given: the section `platform`, and what follows from the nodes."""
    tree = copy.deepcopy({key: value for key, value in order.platform.items() if value is not None})
    nodes = order.spec.nodes
    tree["cluster"] = {**tree.get("cluster", {}), "hosts": nodes.hosts, "nodes": nodes.count}
    if order.target is Target.KUBERAY:
        # Probes and services reach a pod by its address.
        if not order.http_is_open:
            tree["http"] = {**tree.get("http", {}), "host": "0.0.0.0"}
        for name in ("ca_file", "cert_file", "key_file"):
            if name in tree.get("mqtt", {}):
                tree["mqtt"][name] = str(PODS_FILES / Path(tree["mqtt"][name]).name)
    return tree


def serve_config(order: Order, config: PurePosixPath) -> dict[str, Any]:
    """What `serve deploy` is given, to change the API of a platform that runs; `config` is on the nodes."""
    http = order.spec.platform.http
    opened = order.http_is_open or order.target is not Target.KUBERAY
    return {
        "proxy_location": "EveryNode" if http.proxies == "every_node" else "HeadOnly",
        "http_options": {"host": http.host if opened else "0.0.0.0", "port": http.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"config": str(config)},
                "deployments": [{"name": DEPLOYMENT, "num_replicas": http.replicas}],
            }
        ],
    }
