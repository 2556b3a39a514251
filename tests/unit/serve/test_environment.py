"""How HAProxy is run: ports of its own, figures on this machine only, no longer than who started it."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sensorium.serve import haproxy_exec
from sensorium.serve.environment import ProxyPorts, serve_environment, short_run_dir

CONFIG = """global
    log 127.0.0.1:514 local0 info
defaults
    option log-health-checks
    mode http
    log global
    option httplog
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
    http-request set-log-level debug if healthcheck
listen stats
  bind *:8404
  stats enable
"""
PORTS = ProxyPorts(21_001, 21_002, 21_003)


def test_figures_move_to_loopback_clients_are_named_and_nothing_is_logged() -> None:
    expected = (
        CONFIG.replace("    log 127.0.0.1:514 local0 info\n", "")
        .replace("    option log-health-checks\n", "")
        .replace("    log global\n    option httplog\n", "")
        .replace("defaults\n", "defaults\n    option forwardfor\n")
        .replace("bind :9101", "bind 127.0.0.1:9101")
        .replace("bind *:8404", "bind 127.0.0.1:8404")
    )
    assert haproxy_exec.as_ours(CONFIG) == expected


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="s-") as path:
        yield Path(path)


def test_two_platforms_share_nothing(tmp: Path) -> None:
    assert short_run_dir("a") != short_run_dir("b")
    first = serve_environment(tmp / "a", PORTS)
    second = serve_environment(tmp / "b", ProxyPorts(21_004, 21_005, 21_006))
    for name in first:
        own = "CALLBACK" not in name and any(
            word in name for word in ("PATH", "LOC", "STATE", "METRICS_PORT", "STATS_PORT", "FALLBACK")
        )
        assert (first[name] != second[name]) == own, name


def test_a_path_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(ValueError, match="too long a path"):
        serve_environment(Path("/" + "x" * 60), PORTS)


def test_a_directory_that_others_may_write_to_is_refused(tmp: Path) -> None:
    tmp.chmod(0o777)
    with pytest.raises(ValueError, match="others may write"):
        serve_environment(tmp, PORTS)


def test_the_launcher_runs_haproxy(tmp: Path) -> None:
    launcher = serve_environment(tmp, PORTS)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    version = subprocess.run([launcher, "-v"], capture_output=True, text=True, check=True, timeout=20)
    assert "HAProxy version" in version.stdout


def test_haproxy_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = haproxy_exec.__file__
    command = [sys.executable, "-ISs", script, "/bin/sleep", "60"]
    start = f"import subprocess, time; p = subprocess.Popen({command!r}); print(p.pid, flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{start}; time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until(lambda: gone(child))
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def gone(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
