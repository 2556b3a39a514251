"""The Kubernetes manifests for a cluster under the KubeRay operator, 1.5 or newer.

The platform runs in the head's container beside Ray: a driver has to be on a node of its cluster. Secrets are
referred to by name, never written.
"""

import shlex
from importlib.metadata import version
from typing import Any, Final

from sensorium.cluster.deploy.checks import Order
from sensorium.cluster.deploy.layout import (
    PODS_AUTHORITY,
    PODS_CONFIG,
    PODS_FILES,
    PODS_TLS,
    certificate_options,
    ray_environment,
)
from sensorium.cluster.deploy.platform_file import platform_config, serve_config, to_yaml
from sensorium.cluster.deploy.spec import Kubernetes, Node, Workers

CLUSTER_LABEL: Final = "ray.io/cluster"
NODE_TYPE_LABEL: Final = "ray.io/node-type"
STARTUP_S: Final = 600
"""How long the head may take until the platform is ready: images are pulled, nodes are waited for."""
STOP_S: Final = 90
"""More than the platform needs to flush, so that it is not killed over it."""

_OVERWRITE: Final = {"ray.io/overwrite-container-cmd": "true"}
_DATA: Final = "/var/lib/sensorium"
_PROBE_EVERY_S: Final = 5

Manifest = dict[str, Any]


def manifests(order: Order) -> list[Manifest]:
    """Everything to apply, in the order of need."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": _kubernetes(order).namespace},
        },
        _config_map(order),
        _ray_cluster(order),
        _service(order),
        _disruption_budget(order),
    ]


def secrets(order: Order) -> dict[str, str]:
    """The secrets that must be there, by name, each with what it holds."""
    kubernetes, spec = _kubernetes(order), order.spec
    wanted: dict[str, str] = {}
    if kubernetes.env_secret is not None:
        wanted[kubernetes.env_secret] = ", ".join(spec.secret_variables) or "environment variables"
    if kubernetes.token_secret is not None:
        wanted[kubernetes.token_secret] = "auth_token"
    if kubernetes.tls_secret is not None:
        wanted[kubernetes.tls_secret] = "ca.crt, ca.key"
    if kubernetes.files_secret is not None:
        files = (spec.platform.mqtt.ca_file, spec.platform.mqtt.cert_file, spec.platform.mqtt.key_file)
        wanted[kubernetes.files_secret] = ", ".join(file.name for file in files if file) or "files"
    if kubernetes.redis is not None and kubernetes.redis.password_secret is not None:
        wanted[kubernetes.redis.password_secret] = "password"
    if kubernetes.pull_secret is not None:
        wanted[kubernetes.pull_secret] = ".dockerconfigjson"
    return wanted


def _kubernetes(order: Order) -> Kubernetes:
    assert order.spec.kubernetes is not None
    return order.spec.kubernetes


def _metadata(order: Order, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": _kubernetes(order).namespace,
        "labels": {"app.kubernetes.io/name": "sensorium", "app.kubernetes.io/instance": order.spec.name},
    }


def _config_map(order: Order) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(order, f"{order.spec.name}-config"),
        "data": {
            "platform.yaml": to_yaml(platform_config(order)),
            "serve.yaml": to_yaml(serve_config(order, PODS_CONFIG)),
        },
    }


def _ray_cluster(order: Order) -> Manifest:
    spec, kubernetes = order.spec, _kubernetes(order)
    cluster: Manifest = {
        # The operator refuses authentication by token to a Ray that it does not know to have it.
        "rayVersion": version("ray"),
        # Two clusters on one log would fence each other's hosts; the old one ends before the new one starts.
        "upgradeStrategy": {"type": "Recreate"},
        "authOptions": {"mode": "token" if spec.security.token_auth else "disabled"},
    }
    if kubernetes.token_secret is not None:
        cluster["authOptions"]["secretName"] = kubernetes.token_secret
    if kubernetes.redis is not None:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": kubernetes.redis.address}
        if (secret := kubernetes.redis.password_secret) is not None:
            reference = {"secretKeyRef": {"name": secret, "key": "password"}}
            cluster["gcsFaultToleranceOptions"]["redisPassword"] = {"valueFrom": reference}
    if any(group.most > group.count for group in spec.nodes.workers):
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": spec.nodes.idle_timeout_min * 60,
            **({"env": _tls_variables(order), "volumeMounts": [_TLS_MOUNT]} if kubernetes.tls_secret else {}),
        }
    cluster["headGroupSpec"] = _head_group(order)
    cluster["workerGroupSpecs"] = [_worker_group(order, group) for group in spec.nodes.workers]
    metadata = {**_metadata(order, spec.name), "annotations": dict(_OVERWRITE)}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": cluster}


def _head_group(order: Order) -> Manifest:
    spec = order.spec
    start = {
        "port": str(spec.ray.port),
        "dashboard-host": "127.0.0.1",
        **_start_parameters(order),
    }
    if spec.ray.dashboard_port is None:
        start["include-dashboard"] = "false"
    return {
        # Workers reach Ray through this service before the platform on the head is ready.
        "headService": {"spec": {"publishNotReadyAddresses": True}},
        **_resources(spec.nodes.head),
        "rayStartParams": start,
        "template": _pod(order, spec.nodes.head, "head", _head_container(order)),
    }


def _worker_group(order: Order, group: Workers) -> Manifest:
    return {
        "groupName": group.name,
        "replicas": group.count,
        "minReplicas": group.count,
        "maxReplicas": group.most,
        **_resources(group),
        "rayStartParams": _start_parameters(order),
        "template": _pod(order, group, "worker", {"args": [_script(f"exec {_ray_start(order)}")]}),
    }


def _start_parameters(order: Order) -> dict[str, str]:
    return {
        "object-store-memory": str(order.spec.ray.object_store_mib << 20),
        # Nobody asks for the output of workers.
        "include-log-monitor": "false",
    }


def _resources(node: Node) -> Manifest:
    given: Manifest = {"labels": dict(sorted(node.all_labels.items()))}
    if node.resources:
        given["resources"] = {name: str(amount) for name, amount in sorted(node.resources.items())}
    return given


def _head_container(order: Order) -> Manifest:
    http = {"port": order.spec.platform.http.port}
    address = f"127.0.0.1:{order.spec.ray.port}"
    up = ["sensorium", "up", "--ray-address", address, "--data-dir", _DATA, "--config", str(PODS_CONFIG)]
    platform = shlex.join([*_wrapper(order), "--wait-for", address, "--", *up])
    return {
        # The platform is the container's first process: it gets SIGTERM and flushes, and Ray ends after it.
        "args": [_script(f"{_ray_start(order)} & exec {platform}")],
        "ports": [
            {"name": "gcs-server", "containerPort": order.spec.ray.port},
            {"name": "http", "containerPort": order.spec.platform.http.port},
        ],
        "startupProbe": {
            "httpGet": {"path": "/readyz", **http},
            "periodSeconds": _PROBE_EVERY_S,
            "timeoutSeconds": 5,
            "failureThreshold": STARTUP_S // _PROBE_EVERY_S,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", **http},
            "periodSeconds": _PROBE_EVERY_S,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", **http},
            "periodSeconds": _PROBE_EVERY_S,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
    }


def _wrapper(order: Order) -> list[str]:
    return ["python", "-m", "sensorium.cluster.deploy.node", "--name", order.spec.name]


def _ray_start(order: Order) -> str:
    return f'{shlex.join(_wrapper(order))} -- /bin/bash -c "$KUBERAY_GEN_RAY_START_CMD"'


def _script(command: str) -> str:
    return f"ulimit -n 65536; {command}"


def _pod(order: Order, node: Node, role: str, container: Manifest) -> Manifest:
    kubernetes = _kubernetes(order)
    size = {"cpu": str(node.cpus), "memory": f"{node.memory_gib}Gi"}
    # Ray and the platform keep sockets and logs there; the log of readings is in PostgreSQL.
    volumes: list[Manifest] = [
        {"name": "ray", "emptyDir": {}},
        {"name": "data", "emptyDir": {}},
        {"name": "config", "configMap": {"name": f"{order.spec.name}-config"}},
    ]
    mounts: list[Manifest] = [
        {"name": "ray", "mountPath": "/tmp/ray"},
        {"name": "data", "mountPath": _DATA},
        {"name": "config", "mountPath": str(PODS_CONFIG.parent), "readOnly": True},
    ]
    if kubernetes.files_secret is not None:
        volumes.append({"name": "files", "secret": {"secretName": kubernetes.files_secret}})
        mounts.append({"name": "files", "mountPath": str(PODS_FILES), "readOnly": True})
    if kubernetes.tls_secret is not None:
        volumes.append({"name": "authority", "secret": {"secretName": kubernetes.tls_secret}})
        volumes.append({"name": "tls", "emptyDir": {"medium": "Memory"}})
        mounts.append(_TLS_MOUNT)
    pod: Manifest = {
        "terminationGracePeriodSeconds": STOP_S,
        "containers": [
            {
                "name": f"ray-{role}",
                "image": kubernetes.image,
                "command": ["/bin/bash", "-c", "--"],
                **container,
                "env": _tls_variables(order),
                **(
                    {"envFrom": [{"secretRef": {"name": kubernetes.env_secret}}]}
                    if kubernetes.env_secret
                    else {}
                ),
                "resources": {"requests": size, "limits": dict(size)},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if kubernetes.tls_secret is not None:
        pod["initContainers"] = [_certificate(order)]
    if kubernetes.pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": kubernetes.pull_secret}]
    if role == "worker":
        # One machine that is lost shall not take all workers with it.
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {CLUSTER_LABEL: order.spec.name, NODE_TYPE_LABEL: role}},
            }
        ]
    return {"metadata": {"annotations": dict(_OVERWRITE)}, "spec": pod}


def _certificate(order: Order) -> Manifest:
    """What runs before a pod's containers and makes a certificate for its address."""
    kubernetes, name = _kubernetes(order), f"{order.spec.name}-head-svc"
    # The head's has to have the names of its service, which workers find it by; a worker's has them in vain.
    names = [name, *(f"{name}.{kubernetes.namespace}{rest}" for rest in ("", ".svc", ".svc.cluster.local"))]
    options = certificate_options(PODS_AUTHORITY, PODS_TLS, names)
    return {
        "name": "certificate",
        "image": kubernetes.image,
        "command": [*_wrapper(order), *options, "--", "true"],
        "volumeMounts": [
            {"name": "authority", "mountPath": str(PODS_AUTHORITY), "readOnly": True},
            {"name": "tls", "mountPath": str(PODS_TLS)},
        ],
    }


_TLS_MOUNT: Final[Manifest] = {"name": "tls", "mountPath": str(PODS_TLS), "readOnly": True}


def _tls_variables(order: Order) -> list[Manifest]:
    # Who may talk to whom by token is the operator's to tell the pods, from authOptions.
    variables = ray_environment(order, None, PODS_TLS) if _kubernetes(order).tls_secret else {}
    return [{"name": name, "value": value} for name, value in variables.items() if name != "RAY_AUTH_MODE"]


def _service(order: Order) -> Manifest:
    selector = {CLUSTER_LABEL: order.spec.name, NODE_TYPE_LABEL: "head"}
    port = {"name": "http", "port": 80, "targetPort": order.spec.platform.http.port}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(order, f"{order.spec.name}-http"),
        "spec": {"type": _kubernetes(order).service_type, "selector": selector, "ports": [port]},
    }


def _disruption_budget(order: Order) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(order, f"{order.spec.name}-pods"),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {CLUSTER_LABEL: order.spec.name}}},
    }
