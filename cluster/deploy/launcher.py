"""The Ray cluster launcher's YAML, for machines that are reached by SSH: `ray up launcher.yaml`."""

import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from sensorium.cluster.deploy import layout
from sensorium.cluster.deploy.checks import Order
from sensorium.cluster.deploy.layout import Layout, machines_of
from sensorium.cluster.deploy.spec import Node, Target

HEAD_TYPE = "head"


def launcher_config(order: Order, directory: Path) -> dict[str, Any]:
    """The launcher's configuration; `directory` is where the platform's files are written on this machine."""
    machines = machines_of(order)
    auth = {"ssh_user": machines.ssh_user}
    if machines.ssh_private_key is not None:
        auth["ssh_private_key"] = str(machines.ssh_private_key)
    config: dict[str, Any] = {
        "cluster_name": order.spec.name,
        "provider": _provider(order),
        "auth": auth,
        "max_workers": order.spec.nodes.most - 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": order.spec.nodes.idle_timeout_min,
    }
    if order.target is Target.LOCAL:
        config["min_workers"] = order.spec.nodes.count - 1
    else:
        config |= {"head_node_type": HEAD_TYPE, "available_node_types": _node_types(order)}
    return config | {
        "file_mounts": {str(there): str(here) for there, here in _mounts(order, directory).items()},
        "initialization_commands": [],
        "setup_commands": setup_commands(order),
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": head_commands(order),
        "worker_start_ray_commands": worker_commands(order),
    }


def setup_commands(order: Order) -> list[str]:
    """Make the virtual environment with what is locked, then with Sensorium; again only what has changed."""
    there, install = Layout(order), order.spec.install
    assert install is not None
    pip = f"{there.bin}/python -m pip install --quiet --disable-pip-version-check"
    locked = [there.directory / file.name for file in (install.requirements, *install.extra_requirements)]
    given = " ".join(f"-r {shlex.quote(str(file))}" for file in locked)
    return [
        f"test -x {there.bin}/python || {install.python} -m venv {there.directory}/venv",
        f"{pip} --require-hashes {given}",
        f"{pip} --no-deps --force-reinstall {shlex.quote(str(there.directory / install.wheel.name))}",
        *([f"chmod 600 {there.token}"] if order.spec.security.token_file else []),
        *([f"chmod 600 {there.authority}/ca.key"] if order.spec.security.tls else []),
        *([f"chmod 600 {there.secrets}"] if order.spec.security.env_file else []),
    ]


def head_commands(order: Order) -> list[str]:
    """Start the head anew: a platform that runs there is ended first, so that everything is flushed."""
    return [
        layout.platform_stop_command(order),
        f"{Layout(order).bin}/ray stop",
        layout.head_command(order),
        layout.platform_command(order),
    ]


def worker_commands(order: Order) -> list[str]:
    """Start a worker anew."""
    return [f"{Layout(order).bin}/ray stop", layout.worker_command(order)]


def _provider(order: Order) -> dict[str, Any]:
    if order.target is Target.LOCAL:
        local = order.spec.local
        assert local is not None
        return {"type": "local", "head_ip": local.head_ip, "worker_ips": list(local.worker_ips)}
    aws = order.spec.aws
    assert aws is not None
    provider = {"type": "aws", "region": aws.region}
    if aws.availability_zone is not None:
        provider["availability_zone"] = aws.availability_zone
    # A machine that is stopped instead of ended comes back with last week's Sensorium.
    return {**provider, "cache_stopped_nodes": False}


def _node_types(order: Order) -> dict[str, Any]:
    nodes = order.spec.nodes
    types = {HEAD_TYPE: {**_node_type(order, nodes.head), "min_workers": 0, "max_workers": 0}}
    for group in nodes.workers:
        bounds = {"min_workers": group.count, "max_workers": group.most}
        types[group.name] = {**_node_type(order, group), **bounds}
    return types


def _node_type(order: Order, node: Node) -> dict[str, Any]:
    aws = order.spec.aws
    assert aws is not None
    instance = {"InstanceType": node.instance_type}
    if aws.image_id is not None:
        instance["ImageId"] = aws.image_id
    return {
        "node_config": instance,
        "resources": layout.resources_of(node),
        "labels": dict(sorted(node.all_labels.items())),
    }


def _mounts(order: Order, directory: Path) -> dict[PurePosixPath, Path]:
    """What is copied to the nodes, by its path there."""
    there, spec = Layout(order), order.spec
    assert spec.install is not None
    mounts = {
        there.config: directory.absolute() / "platform.yaml",
        there.serve: directory.absolute() / "serve.yaml",
    }
    for file in (spec.install.requirements, *spec.install.extra_requirements, spec.install.wheel):
        mounts[there.directory / file.name] = file
    security = spec.security
    if security.token_file is not None:
        mounts[there.token] = security.token_file
    if security.env_file is not None:
        mounts[there.secrets] = security.env_file
    if security.tls is not None:
        mounts[there.authority / "ca.crt"] = security.tls.ca_file
        mounts[there.authority / "ca.key"] = security.tls.ca_key_file
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(spec.platform.mqtt, name)
        if path is not None:
            mounts[PurePosixPath(path)] = path
    return mounts
