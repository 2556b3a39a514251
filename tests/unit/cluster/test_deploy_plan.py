"""The files of a deployment: as they were, and as Ray and Kubernetes take them.

`SENSORIUM_WRITE_GOLDEN=1 pytest` on this file writes the golden files anew; look at what has changed.
"""

import copy
import os
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_orders import authority, example

from sensorium.cluster.config import load
from sensorium.cluster.deploy.checks import read
from sensorium.cluster.deploy.plan import FILES, Plan, plan
from sensorium.cluster.errors import ConfigError
from sensorium.serve.deployment import DEPLOYMENT

with warnings.catch_warnings():
    # Ray Serve's own models use what pydantic wants to be rid of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.serve.schema import ServeDeploySchema

    from sensorium.cluster.deploy.serve_app import api

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = ("cluster", "cluster-aws", "cluster-kuberay")

# From ray.io/v1 RayCluster, as far as we use it: what is not there would be refused or dropped in silence.
CRD: dict[str, Any] = {
    "rayVersion": str,
    "upgradeStrategy": {"type": str},
    "authOptions": {"mode": str, "secretName": str},
    "gcsFaultToleranceOptions": {"redisAddress": str, "redisPassword": {"valueFrom": dict}},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int, "env": list, "volumeMounts": list},
    "headGroupSpec": {
        "headService": dict,
        "labels": dict,
        "resources": dict,
        "rayStartParams": dict,
        "template": dict,
    },
    "workerGroupSpecs": list,
}
WORKER_GROUP: dict[str, Any] = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "labels": dict,
    "resources": dict,
    "rayStartParams": dict,
    "template": dict,
}


def planned(folder: Path, name: str) -> Plan:
    return plan(read(example(folder, f"{name}.yaml")), folder / "out")


def manifests(folder: Path) -> dict[str, Any]:
    documents = yaml.safe_load_all(planned(folder, "cluster-kuberay").files["manifests.yaml"])
    return {document["kind"]: document for document in documents}


def check_fields(document: Any, fields: Any, path: str = "") -> None:
    if isinstance(fields, type):
        assert isinstance(document, fields), path
        return
    for key, value in document.items():
        assert key in fields, f"{path}.{key} is no field"
        check_fields(value, fields[key], f"{path}.{key}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_files_are_those_that_were_looked_at(tmp_path: Path, name: str) -> None:
    files = planned(tmp_path, name).files
    assert set(files) <= FILES
    for file, text in files.items():
        golden = GOLDEN / name / file
        neutral = text.replace(str(tmp_path), "/FOLDER").replace(version("ray"), "RAY_VERSION")
        if os.environ.get("SENSORIUM_WRITE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(neutral)
        assert neutral == golden.read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_specification_gives_the_same_files_and_no_secret(tmp_path: Path, name: str) -> None:
    first, second = planned(tmp_path, name), planned(tmp_path, name)
    assert first.as_json() == second.as_json()
    assert "u:p@" not in str(first.as_json())
    assert "0" * 64 not in str(first.as_json())


@pytest.mark.parametrize("name", ["cluster", "cluster-aws"])
def test_ray_takes_the_launchers_file(tmp_path: Path, name: str) -> None:
    config = yaml.safe_load(planned(tmp_path, name).files["launcher.yaml"])
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    types = prepared["available_node_types"]
    if name == "cluster":
        assert [(t["min_workers"], t["max_workers"]) for t in types.values()] == [(2, 2)]
    else:
        assert (types["hosts"]["min_workers"], types["hosts"]["max_workers"]) == (2, 6)
        assert types["hosts"]["resources"] == {"CPU": 4}
        assert types["hosts"]["labels"]["sensorium.io/hosts"] == "4"
    # Ray appends its own commands to those of its defaults only where a file leaves them out.
    assert prepared["head_setup_commands"] == config["setup_commands"]
    assert prepared["head_start_ray_commands"] == config["head_start_ray_commands"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_ray_serve_takes_its_file(tmp_path: Path, name: str) -> None:
    config = yaml.safe_load(planned(tmp_path, name).files["serve.yaml"])
    schema = ServeDeploySchema.model_validate(config)
    assert schema.applications[0].import_path == f"{api.__module__}:{api.__name__}"
    assert [d.name for d in schema.applications[0].deployments] == [DEPLOYMENT]


def test_the_application_of_serve_deploy_is_the_platforms(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text("storage: {url: 'postgresql://h/d'}\nhttp: {replicas: 3, max_body_bytes: 2048}\n")
    application = api({"config": str(file)})
    deployment = application._bound_deployment
    assert (deployment.name, deployment.num_replicas) == (DEPLOYMENT, 3)
    settings = deployment.init_args[0]
    assert (settings.dsn, settings.max_body_bytes) == ("postgresql://h/d", 2048)
    file.write_text("")
    with pytest.raises(ConfigError, match=r"storage\.url is needed"):
        api({"config": str(file)})
    with pytest.raises(ConfigError, match="takes one argument, config; got none"):
        api({})


@pytest.mark.parametrize("name", ["cluster", "cluster-aws"])
def test_sensorium_takes_the_platforms_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(planned(tmp_path, name).files["platform.yaml"])
    config = load(file)
    assert (config.cluster.nodes, config.cluster.hosts) == ((3, 16) if name == "cluster" else (3, 8))
    assert config.cluster.ray_address is None


def test_the_operator_takes_the_cluster(tmp_path: Path) -> None:
    documents = manifests(tmp_path)
    assert list(documents) == ["Namespace", "ConfigMap", "RayCluster", "Service", "PodDisruptionBudget"]
    cluster = documents["RayCluster"]
    assert cluster["apiVersion"] == "ray.io/v1"
    check_fields(cluster["spec"], CRD, "spec")
    for group in cluster["spec"]["workerGroupSpecs"]:
        check_fields(group, WORKER_GROUP, group["groupName"])
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        for value in (*group["rayStartParams"].values(), *group.get("resources", {}).values()):
            assert isinstance(value, str)
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_pods_mount_what_they_name_and_the_head_is_probed(tmp_path: Path) -> None:
    documents = manifests(tmp_path)
    cluster = documents["RayCluster"]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        paths = [m["mountPath"] for m in container["volumeMounts"]]
        # The runtime cannot make a mount point inside of what is mounted read-only.
        assert not [(a, b) for a in paths for b in paths if b.startswith(f"{a}/")]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 8000}
    assert head["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    assert head["startupProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    assert "sensorium up --ray-address 127.0.0.1:6379" in head["args"][0]
    config = yaml.safe_load(documents["ConfigMap"]["data"]["platform.yaml"])
    assert (config["http"]["host"], config["cluster"]) == ("0.0.0.0", {"hosts": 12, "nodes": 4})
    selector = documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert selector == {"ray.io/cluster": documents["RayCluster"]["metadata"]["name"]}


def test_secrets_are_referred_to(tmp_path: Path) -> None:
    file = example(tmp_path, "cluster-kuberay.yaml")
    ca = tmp_path / "broker-ca.pem"
    ca.touch()
    text = file.read_text().replace(
        "  env_secret:", "  token_secret: t\n  tls_secret: s\n  files_secret: f\n  env_secret:"
    )
    broker = 'url: "mqtt://mosquitto.iot:1883"'
    file.write_text(text.replace(broker, f'url: "mqtts://mosquitto.iot:8883", ca_file: {ca}'))
    made = plan(read(file), tmp_path / "out")
    documents = {d["kind"]: d for d in yaml.safe_load_all(made.files["manifests.yaml"])}
    assert "Secret" not in documents
    cluster = documents["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "t"}
    check_fields(cluster, CRD, "spec")
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v} == {"s", "f"}
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert variables["RAY_USE_TLS"] == "1"
    assert variables["RAY_TLS_CA_CERT"] == "/etc/sensorium/tls/ca.crt"
    (first,) = pod["initContainers"]
    assert {"--authority", "/etc/sensorium/authority", "plant-b-head-svc.iot.svc"} < set(first["command"])
    mounted = {m["name"] for c in (first, *pod["containers"]) for m in c["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert made.needs["secret s"] == "with ca.crt, ca.key"
    config = yaml.safe_load(documents["ConfigMap"]["data"]["platform.yaml"])
    assert config["mqtt"]["ca_file"] == "/etc/sensorium/files/broker-ca.pem"
    assert made.needs["secret f"] == "with broker-ca.pem"


def test_tls_and_token_reach_the_start_commands(tmp_path: Path) -> None:
    file = example(tmp_path, "cluster-aws.yaml")
    authority(tmp_path)
    tls = "  tls: {ca_file: ../ca.crt, ca_key_file: ../ca.key}\n"
    file.write_text(file.read_text().replace("  token_auth: true\n", f"  token_auth: true\n{tls}"))
    config = yaml.safe_load(plan(read(file), tmp_path / "out").files["launcher.yaml"])
    starts = [config[f"{kind}_start_ray_commands"] for kind in ("head", "worker")]
    for commands in (starts[0][2:], starts[1][1:]):
        for command in commands:
            assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/home/ubuntu/sensorium/auth_token" in command
            assert "RAY_USE_TLS=1 RAY_TLS_CA_CERT=/home/ubuntu/sensorium/tls/ca.crt" in command
    there = "/home/ubuntu/sensorium"
    made = f"--authority {there}/authority --certificate {there}/tls -- {there}/venv/bin/ray start"
    assert made in starts[0][2]
    assert made in starts[1][1]
    assert "--certificate" not in starts[0][3]
    assert config["file_mounts"][f"{there}/authority/ca.key"] == str(tmp_path / "ca.key")
    assert f"chmod 600 {there}/authority/ca.key" in config["setup_commands"]


def test_a_plan_tells_what_would_run(tmp_path: Path) -> None:
    told = planned(tmp_path, "cluster").told()
    assert told.startswith("plant-a on local: 3 nodes, 16 device hosts\n")
    assert "ray up --yes --no-config-cache launcher.yaml" in told
    assert told.endswith("then wait for http://10.0.0.10:8000/readyz")
    assert "2 nodes" not in planned(tmp_path, "cluster-aws").told()
    assert "up to 7" in planned(tmp_path, "cluster-aws").told()
    assert "secret plant-b-env: with DEVICE_DB_URL" in planned(tmp_path, "cluster-kuberay").told()
