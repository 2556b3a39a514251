"""Reads a cluster specification, and finds out whether a target can be had from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sensorium.cluster import explain, tracked_yaml, urls
from sensorium.cluster.config import ENVIRONMENT, checked
from sensorium.cluster.deploy.certificate import authority
from sensorium.cluster.deploy.spec import ClusterSpec, Target
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.tracked_yaml import Path as SettingPath
from sensorium.cluster.tracked_yaml import dotted

_FROM_NODES: Final = ("hosts", "nodes", "ray_address")
_FILES: Final = ("ca_file", "cert_file", "key_file")
"""Of the broker's section."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

Mistake = tuple[SettingPath, str]


@dataclass(frozen=True, slots=True)
class Order:
    """A specification that its target can be had from.

    Attributes:
        platform: the section `platform` as it was written.
    """

    spec: ClusterSpec
    target: Target
    platform: Mapping[str, Any]

    @property
    def http_is_open(self) -> bool:
        """Whether other machines can reach the API."""
        return self.spec.platform.http.host not in _LOOPBACK


def read(file: Path, target: Target | None = None) -> Order:
    """The specification in the file, for its own target or another.

    Raises:
        ConfigError: one line that names the first mistake and where it stands, and counts the rest.
    """
    try:
        tree, places = tracked_yaml.read(file)
    except tracked_yaml.YamlError as error:
        raise ConfigError(str(error)) from error
    platform = tree.get("platform")
    spec = explain.validated(ClusterSpec, tree, places, {"folder": file.absolute().parent})
    checked(spec.platform, places, ("platform",))
    order = Order(spec, target or spec.target, platform if isinstance(platform, dict) else {})
    if mistakes := list(_mistakes(order)):
        raise explain.first(
            [f"{explain.place(path, places)}{dotted(path)}: {text}" for path, text in mistakes]
        )
    return order


def _mistakes(order: Order) -> Iterator[Mistake]:
    yield from _of_platform(order)
    match order.target:
        case Target.LOCAL:
            yield from _of_ssh(order.spec)
            yield from _of_local(order.spec)
        case Target.AWS:
            yield from _of_ssh(order.spec)
            yield from _of_aws(order.spec)
        case Target.KUBERAY:
            yield from _of_kubernetes(order.spec)


def _of_platform(order: Order) -> Iterator[Mistake]:
    spec, config = order.spec, order.spec.platform
    for name in _FROM_NODES:
        if name in config.cluster.model_fields_set:
            yield ("platform", "cluster", name), "follows from nodes; remove it"
    for name, value in config.describe().items():
        if urls.HIDDEN in value:
            yield (
                ("platform", *name.split(".")),
                "holds a secret, and would be written into files; name its variable in secret_variables",
            )
    for variable in spec.secret_variables:
        if variable not in ENVIRONMENT:
            yield (
                ("secret_variables",),
                f"{variable} is no variable of the platform: {', '.join(ENVIRONMENT)}",
            )
        elif getattr(getattr(config, ENVIRONMENT[variable][0]), ENVIRONMENT[variable][1], None):
            yield ("platform", *ENVIRONMENT[variable]), f"comes from {variable} already; give it once"
    for name in _FILES:
        path = getattr(config.mqtt, name)
        if path is not None and not path.is_absolute():
            yield ("platform", "mqtt", name), "must be an absolute path, which the nodes will have as well"
    # What is embedded listens on the loopback of one node only.
    if spec.nodes.most > 1 or order.target is Target.KUBERAY:
        why = "is needed: nodes cannot reach what is embedded on another one"
        given = {"DEVICE_DB_URL", "LOG_DB_URLS"}.intersection(spec.secret_variables)
        if config.storage.main_url is None and not given:
            yield ("platform", "storage", "url"), f"{why}; or name DEVICE_DB_URL in secret_variables"
        if config.mqtt.url is None and "MQTT_BROKER_URL" not in spec.secret_variables:
            yield ("platform", "mqtt", "url"), f"{why}; or name MQTT_BROKER_URL in secret_variables"


def _of_ssh(spec: ClusterSpec) -> Iterator[Mistake]:
    if spec.install is None:
        yield ("install",), "is missing: what to set the nodes up with"
    elif spec.install.wheel.suffix != ".whl":
        yield ("install", "wheel"), "is no wheel (.whl); make one with: python -m build --wheel"
    security = spec.security
    if security.token_auth and security.token_file is None:
        yield (
            ("security", "token_file"),
            "is missing; make one with: umask 77; openssl rand -hex 32 > auth_token",
        )
    if security.tls is not None:
        try:
            authority(security.tls.ca_file, security.tls.ca_key_file)
        except ConfigError as error:
            yield ("security", "tls"), str(error)
    if spec.secret_variables:
        if security.env_file is None:
            yield ("security", "env_file"), f"is missing: it gives {', '.join(spec.secret_variables)}"
        else:
            given = _variables(security.env_file)
            for variable in spec.secret_variables:
                if variable not in given:
                    yield ("security", "env_file"), f"does not give {variable}"
    elif security.env_file is not None:
        yield ("security", "env_file"), "gives nothing that secret_variables names"


def _variables(file: Path) -> set[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text") from error
    return {line.partition("=")[0].strip() for line in lines if "=" in line and not line.startswith("#")}


def _of_local(spec: ClusterSpec) -> Iterator[Mistake]:
    if spec.local is None:
        yield ("local",), "is missing: the addresses of the machines"
        return
    groups = spec.nodes.workers
    if len(groups) > 1:
        yield ("nodes", "workers"), "the target local knows one group only: its machines are all alike"
        return
    machines, wanted = len(spec.local.worker_ips), sum(group.most for group in groups)
    if machines != wanted:
        yield ("local", "worker_ips"), f"{machines} addresses for {wanted} workers"


def _of_aws(spec: ClusterSpec) -> Iterator[Mistake]:
    if spec.aws is None:
        yield ("aws",), "is missing: the region, to begin with"
    if spec.nodes.head.instance_type is None:
        yield ("nodes", "head", "instance_type"), "is needed by aws"
    for index, group in enumerate(spec.nodes.workers):
        if group.instance_type is None:
            yield ("nodes", "workers", index, "instance_type"), "is needed by aws"
    if spec.install is not None and not spec.install.extra_requirements:
        yield (
            ("install", "extra_requirements"),
            "must name a file that pins boto3 by hash: the head starts and ends machines with it",
        )


def _of_kubernetes(spec: ClusterSpec) -> Iterator[Mistake]:
    if spec.kubernetes is None:
        yield ("kubernetes",), "is missing: the namespace and the image"
        return
    if spec.secret_variables and spec.kubernetes.env_secret is None:
        yield ("kubernetes", "env_secret"), f"is missing: it gives {', '.join(spec.secret_variables)}"
    if spec.kubernetes.token_secret is not None and not spec.security.token_auth:
        yield ("kubernetes", "token_secret"), "needs security.token_auth: true"
    if spec.kubernetes.files_secret is None:
        for name in _FILES:
            if getattr(spec.platform.mqtt, name) is not None:
                yield ("platform", "mqtt", name), "needs kubernetes.files_secret, which brings it to the pods"
    if spec.security.tls is not None and spec.kubernetes.tls_secret is None:
        yield ("kubernetes", "tls_secret"), "is missing: security.tls asks for TLS"
    kinds = [("head",), *(("workers", index) for index in range(len(spec.nodes.workers)))]
    for path, node in zip(kinds, [spec.nodes.head, *spec.nodes.workers], strict=True):
        for name in ("cpus", "memory_gib"):
            if getattr(node, name) is None:
                yield ("nodes", *path, name), "is needed by kuberay: what the pod asks for"
