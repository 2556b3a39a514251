"""What a cluster specification may say: each setting, its default and its bounds.

What a target needs beyond that, and how the file is read, is in `checks`.
"""

import re
from enum import StrEnum
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from sensorium.cluster.config import Config
from sensorium.cluster.sections import Port, Section

HOSTS_LABEL: Final = "sensorium.io/hosts"
"""The node label that says how many hosts a node is meant for; the runtime keeps away from 0."""

MAX_HOSTS: Final = 1024
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


class Target(StrEnum):
    """Where a cluster is deployed to."""

    LOCAL = "local"
    AWS = "aws"
    KUBERAY = "kuberay"


def _beside(path: Path, info: ValidationInfo) -> Path:
    """The file, which is found from the specification's folder."""
    found: Path = (info.context or {}).get("folder", Path()) / path.expanduser()
    if not found.is_file():
        raise ValueError(f"no such file: {found}")
    return Path(normpath(found.absolute()))


def _not_ours(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if key.startswith(("ray.io/", "sensorium.io/")):
            raise ValueError(f"{key}: labels under ray.io/ and sensorium.io/ are set by Ray and Sensorium")
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{key}: a label's value has 1 to 63 letters, digits, dots, dashes, underscores")
    return labels


def _file_name(text: Any) -> Any:
    if isinstance(text, str) and ("\n" in text or text != text.strip()):
        raise ValueError("must be one line without spaces around it")
    return text


LocalFile = Annotated[Path, Field(strict=False), BeforeValidator(_file_name), AfterValidator(_beside)]
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""As Kubernetes takes it for names of objects, with room for what is appended."""
ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
LabelKey = Annotated[
    str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
User = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]


class Node(Section):
    """A machine. What is not given, Ray finds out on the machine itself."""

    hosts: Annotated[int, Field(ge=0, le=256)] = 0
    """Device hosts that it is meant to carry; about one a core."""
    cpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    memory_gib: Annotated[int, Field(ge=1, le=24_576)] | None = None
    resources: dict[ResourceName, Annotated[int, Field(ge=0, le=1_000_000)]] = Field(default_factory=dict)
    """Ray's custom resources."""
    labels: Annotated[dict[LabelKey, str], AfterValidator(_not_ours)] = Field(default_factory=dict)
    """Ray's node labels."""
    instance_type: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] | None = None
    """Of the cloud."""

    @property
    def all_labels(self) -> dict[str, str]:
        """The labels, and the one that says how many hosts it carries."""
        return {**self.labels, HOSTS_LABEL: str(self.hosts)}


class Workers(Node):
    """Machines of one kind beside the head."""

    name: Name
    count: Annotated[int, Field(ge=0, le=1000)]
    """Those that are always there."""
    max_count: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Up to which Ray's autoscaler may go; by default `count`."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError(f"max_count ({self.max_count}) must be at least count ({self.count})")
        return self

    @property
    def most(self) -> int:
        """The most of them there can be."""
        return self.count if self.max_count is None else self.max_count


class Nodes(Section):
    """The machines."""

    head: Node = Field(default_factory=Node)
    workers: Annotated[list[Workers], Field(max_length=16)] = Field(default_factory=list)
    idle_timeout_min: Annotated[int, Field(ge=1, le=10_080)] = 10
    """After which the autoscaler takes away a node beyond `count` that runs nothing."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [group.name for group in self.workers]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two groups of workers are called {min(twice)}")
        if "head" in names:
            raise ValueError("a group of workers cannot be called head")
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise ValueError(f"they carry {self.hosts} hosts together; it must be 1 to {MAX_HOSTS}")
        return self

    @property
    def hosts(self) -> int:
        """Of the nodes that are always there."""
        return self.head.hosts + sum(group.count * group.hosts for group in self.workers)

    @property
    def count(self) -> int:
        """Of the nodes that are always there, the head among them."""
        return 1 + sum(group.count for group in self.workers)

    @property
    def most(self) -> int:
        """The most nodes there can be."""
        return 1 + sum(group.most for group in self.workers)


class Ray(Section):
    """How Ray runs on the nodes."""

    port: Port = 6379
    client_port: Port = 10001
    dashboard_port: Port | None = 8265
    """On the head's loopback; without, neither a dashboard nor `serve deploy`."""
    object_store_mib: Annotated[int, Field(ge=80, le=1 << 20)] = 200
    """Batches travel inline: little of it is used."""


class Install(Section):
    """What the nodes are set up with. Not used by kuberay, whose image holds it all."""

    requirements: LocalFile
    """With hashes, as `requirements.lock`."""
    wheel: LocalFile
    extra_requirements: Annotated[list[LocalFile], Field(max_length=8)] = Field(default_factory=list)
    """With hashes as well: what a cloud's provider needs."""
    python: Annotated[str, Field(pattern=r"^[A-Za-z0-9/._-]+$")] = "python3.11"
    directory: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=80)] | None = None
    """On the nodes, writable for the user; by default `sensorium` in the user's home."""


class Tls(Section):
    """Between Ray's processes. Each node makes a certificate for its addresses, signed by this authority."""

    ca_file: LocalFile
    ca_key_file: LocalFile
    """Without a password. Whoever has it can join, as every node can."""


class Security(Section):
    """Who may talk to Ray, and what only the nodes may know."""

    token_auth: bool = False
    token_file: LocalFile | None = None
    tls: Tls | None = None
    env_file: LocalFile | None = None
    """NAME=value lines, copied to the nodes and read by the platform: addresses with passwords."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.token_file is not None and not self.token_auth:
            raise ValueError("token_file needs token_auth: true")
        return self


class Machines(Section):
    """What targets that are reached by SSH have in common."""

    ssh_user: User
    ssh_private_key: LocalFile | None = None


class Local(Machines):
    """Machines that are there already."""

    head_ip: Address
    worker_ips: list[Address] = Field(default_factory=list)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        every = [self.head_ip, *self.worker_ips]
        if twice := {address for address in every if every.count(address) > 1}:
            raise ValueError(f"{min(twice)} is given twice")
        return self


class Aws(Machines):
    """Machines of Amazon's cloud."""

    ssh_user: User = "ubuntu"
    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")]
    availability_zone: Annotated[str, Field(pattern=r"^[a-z0-9,-]+$")] | None = None
    image_id: Annotated[str, Field(pattern=r"^ami-[0-9a-f]{8,17}$")] | None = None
    """With Python of the installed version; Ray's choice for the region by default."""


class Redis(Section):
    """Where Ray's control store survives the head."""

    address: Annotated[str, Field(pattern=r"^(rediss?://)?[A-Za-z0-9.-]+:\d{1,5}$")]
    password_secret: Name | None = None
    """A Secret with the key `password`."""


class Kubernetes(Section):
    """A cluster with the KubeRay operator. Secrets are named here and made by you."""

    namespace: Name
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./:@_-]{0,255}$")]
    """With Sensorium and its requirements, `python` and `bash` on the PATH."""
    pull_secret: Name | None = None
    env_secret: Name | None = None
    """Its keys are environment variables of the platform, such as DEVICE_DB_URL."""
    token_secret: Name | None = None
    """With the key `auth_token`. By default the operator makes one."""
    tls_secret: Name | None = None
    """With the keys `ca.crt` and `ca.key`, as in `security.tls`: TLS between Ray's processes."""
    files_secret: Name | None = None
    """Holds the files that `platform` names, by their names."""
    redis: Redis | None = None
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"


class ClusterSpec(Section):
    """A cluster and the platform on it."""

    name: Name
    target: Annotated[Target, Field(strict=False)] = Target.LOCAL
    nodes: Nodes
    ray: Ray = Field(default_factory=Ray)
    security: Security = Field(default_factory=Security)
    platform: Config = Field(default_factory=Config)
    """As `sensorium up --config` takes it: storage, mqtt, http and the rest."""
    secret_variables: Annotated[list[Variable], Field(max_length=32)] = Field(default_factory=list)
    """Environment variables that the platform gets from `env_file` or `env_secret`."""
    install: Install | None = None
    local: Local | None = None
    aws: Aws | None = None
    kubernetes: Kubernetes | None = None
