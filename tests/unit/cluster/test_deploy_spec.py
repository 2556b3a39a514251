"""What a cluster specification may say, for which target, and how a mistake is told."""

from pathlib import Path

import pytest
from deploy_orders import example

from sensorium.cluster.deploy.checks import read
from sensorium.cluster.deploy.spec import Target
from sensorium.cluster.errors import ConfigError

LOCAL = """\
name: a
nodes: {head: {hosts: 2}}
local: {head_ip: 10.0.0.1, ssh_user: joe}
install: {requirements: r.lock, wheel: s.whl}
"""
KUBERAY = """\
name: a
target: kuberay
nodes: {head: {hosts: 2, cpus: 2, memory_gib: 4}}
kubernetes: {namespace: n, image: i}
platform: {storage: {url: 'postgresql://h/d'}, mqtt: {url: 'mqtt://h'}}
"""
WORKERS = "nodes: {workers: [{name: w, count: 1, hosts: 1}]}"
FAR = "platform: {storage: {url: 'postgresql://h/d'}, mqtt: {url: 'mqtt://h'}}"


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        for name in ("r.lock", "s.whl", "token", "env"):
            (tmp_path / name).write_text("A=1\n")
        file = tmp_path / "c.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def replaced(text: str, line: str) -> str:
    """`text` with its line of the same key replaced, or with the line added."""
    key = line.partition(":")[0]
    kept = [old for old in text.splitlines() if not old.startswith(f"{key}:")]
    return "\n".join([*kept, line]) + "\n"


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-aws.yaml", "cluster-kuberay.yaml"])
def test_the_examples_are_right(tmp_path: Path, name: str) -> None:
    order = read(example(tmp_path, name))
    assert order.spec.nodes.hosts == {"cluster.yaml": 16, "cluster-aws.yaml": 8}.get(name, 12)


def test_the_smallest_is_one_machine_with_everything_embedded(written) -> None:
    order = read(written(LOCAL))
    assert (order.target, order.spec.nodes.count, order.spec.nodes.most) == (Target.LOCAL, 1, 1)
    assert order.spec.platform.storage.url is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (replaced(LOCAL, "nodez: 1"), "c.yaml:5: nodez: unknown key; did you mean nodes?"),
        (
            replaced(LOCAL, "nodes: {head: {host: 1}}"),
            ":4: nodes.head.host: unknown key; did you mean nodes.head.hosts?",
        ),
        (
            replaced(LOCAL, "nodes: {workers: [{name: w, cuont: 1}]}"),
            "nodes.workers[0].cuont: unknown key; did you mean nodes.workers[0].count?",
        ),
        (
            replaced(LOCAL, "platform: {mqtt: {prot: 1}}"),
            ":5: platform.mqtt.prot: unknown key; did you mean platform.mqtt.port?",
        ),
        (
            replaced(LOCAL, "nodes: {head: {hosts: -1}}"),
            ":4: nodes.head.hosts: must be greater than or equal to 0",
        ),
        (replaced(LOCAL, "nodes: {head: {hosts: '2'}}"), ":4: nodes.head.hosts: must be a whole number"),
        (replaced(LOCAL, "nodes: {}"), ":4: nodes: they carry 0 hosts together; it must be 1 to 1024"),
        (
            replaced(LOCAL, "nodes: {workers: [{name: w, count: 900, hosts: 2}]}"),
            "nodes: they carry 1800 hosts together",
        ),
        (
            replaced(LOCAL, "nodes: {workers: [{name: w, count: 3, max_count: 2}]}"),
            "nodes.workers[0]: max_count (2) must be at least count (3)",
        ),
        (
            replaced(LOCAL, "nodes: {head: {hosts: 1, labels: {ray.io/x: a}}}"),
            "ray.io/x: labels under ray.io/ and sensorium.io/ are set by",
        ),
        (
            replaced(LOCAL, "nodes: {head: {hosts: 1, labels: {x: 'a b'}}}"),
            "nodes.head.labels: x: a label's value has 1 to 63",
        ),
        (replaced(LOCAL, "name: Plant_A"), ":4: name: string must match pattern"),
        (replaced(LOCAL, "target: gcp"), ":5: target: must be 'local', 'aws' or 'kuberay'"),
        (
            replaced(LOCAL, "platform: {cluster: {hosts: 4}}"),
            ":5: platform.cluster.hosts: follows from nodes; remove it",
        ),
        (
            replaced(LOCAL, "platform: {storage: {url: 'postgresql://u:hunter2@h/d'}}"),
            "platform.storage.url: holds a secret, and would be",
        ),
        (
            replaced(LOCAL, "platform: {edge: {enabled: true}}"),
            ":5: platform.edge.enabled: the edge gateway does not exist in this",
        ),
        (replaced(LOCAL, "platform: {mqtt: {url: 'mqtts://h', ca_file: c.yaml}}"), "platform.mqtt.ca_file: "),
        (
            replaced(LOCAL, "install: {requirements: r.lock, wheel: none.whl}"),
            ":4: install.wheel: no such file: /",
        ),
        (
            replaced(LOCAL, "install: {requirements: r.lock, wheel: r.lock}"),
            ":4: install.wheel: is no wheel (.whl)",
        ),
        (
            replaced(LOCAL, "local: {head_ip: a, worker_ips: [a], ssh_user: joe}"),
            ":4: local: a is given twice",
        ),
        (
            replaced(LOCAL, "local: {head_ip: a, worker_ips: [b], ssh_user: joe}"),
            ":4: local.worker_ips: 1 addresses for 0 workers",
        ),
        (
            replaced(LOCAL, "local: {head_ip: a, ssh_user: 'joe; rm'}"),
            ":4: local.ssh_user: string must match pattern",
        ),
        (
            replaced(LOCAL, "security: {token_auth: true}"),
            ":5: security.token_file: is missing; make one with: ",
        ),
        (replaced(LOCAL, "security: {token_file: token}"), ":5: security: token_file needs token_auth: true"),
        (
            replaced(LOCAL, "security: {tls: {ca_file: env, ca_key_file: env}}"),
            "/env: is no certificate in PEM",
        ),
        (
            replaced(LOCAL, "security: {env_file: env}"),
            ":5: security.env_file: gives nothing that secret_variables names",
        ),
        (
            replaced(LOCAL, "secret_variables: [DEVICE_DB_URL]"),
            "security.env_file: is missing: it gives DEVICE_DB_URL",
        ),
        (
            replaced(replaced(LOCAL, "secret_variables: [DEVICE_DB_URL]"), "security: {env_file: env}"),
            "security.env_file: does not give DEVICE_DB_URL",
        ),
        (
            replaced(LOCAL, "secret_variables: [HOME]"),
            ":5: secret_variables: HOME is no variable of the platform: DEVICE_DB_URL",
        ),
        (
            replaced(LOCAL, WORKERS),
            "platform.storage.url: is needed: nodes cannot reach what is embedded on another one",
        ),
        (replaced(replaced(LOCAL, WORKERS), FAR), ":2: local.worker_ips: 0 addresses for 1 workers"),
        (replaced(LOCAL, "target: aws"), "aws: is missing: the region, to begin with"),
        (
            replaced(replaced(LOCAL, "target: kuberay"), FAR),
            "kubernetes: is missing: the namespace and the image",
        ),
        (
            replaced(KUBERAY, "nodes: {head: {hosts: 1}}"),
            ":5: nodes.head.cpus: is needed by kuberay: what the pod asks for",
        ),
        (replaced(KUBERAY, "platform: {}"), "platform.storage.url: is needed"),
        (
            replaced(KUBERAY, "secret_variables: [TIMESERIES_DB_URL]"),
            "kubernetes.env_secret: is missing: it gives TIMESERIES_DB_URL",
        ),
        (
            replaced(KUBERAY, "secret_variables: [DEVICE_DB_URL]"),
            ":5: platform.storage.url: comes from DEVICE_DB_URL already; give it once",
        ),
        (
            replaced(KUBERAY, "kubernetes: {namespace: n, image: i, token_secret: t}"),
            "kubernetes.token_secret: needs security.token_auth: true",
        ),
        (
            replaced(KUBERAY, "security: {tls: {ca_file: env, ca_key_file: env}}"),
            "kubernetes.tls_secret: is missing: security.tls asks",
        ),
        ("name: a\n", "nodes: is missing"),
        ("- 1\n", ":1: must be a mapping of sections"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(written, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(written(text))
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "hunter2" not in message


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read(tmp_path / "none.yaml")


def test_one_specification_may_serve_two_targets(tmp_path: Path, written) -> None:
    text = replaced(KUBERAY, "local: {head_ip: 10.0.0.1, ssh_user: joe}")
    file = written(replaced(text, "install: {requirements: r.lock, wheel: s.whl}"))
    assert read(file).target is Target.KUBERAY
    assert read(file, Target.LOCAL).target is Target.LOCAL
