"""`sensorium deploy` as a shell sees it, and the command that every node runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_orders import example
from shell import Done, sensorium

from sensorium.cluster.deploy import command, node
from sensorium.cluster.deploy.checks import read
from sensorium.cluster.deploy.plan import Plan, plan
from sensorium.cluster.errors import DeployFailed
from sensorium.ingest.broker import free_port
from sensorium.serve.environment import short_run_dir


def deploy(*arguments: str | Path, cwd: Path) -> Done:
    return sensorium("deploy", *arguments, cwd=cwd)


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    file = example(tmp_path, "cluster.yaml")
    done = deploy(file, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["files"]) == {"launcher.yaml", "platform.yaml", "serve.yaml"}
    assert told["command"][:2] == ["ray", "up"]
    assert not (tmp_path / "deploy").exists()


def test_write_only_writes_and_runs_nothing(tmp_path: Path) -> None:
    done = deploy(example(tmp_path, "cluster-kuberay.yaml"), "--write-only", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote deploy/plant-b-kuberay\n"), done.stderr
    assert (tmp_path / "deploy/plant-b-kuberay/manifests.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "gcp"), "sensorium: --target: 'gcp' is none of local, aws, kuberay\n"),
        (("--json",), "sensorium: --json goes with --dry-run\n"),
        (("--dry-run", "--write-only"), "sensorium: --dry-run writes nothing; give it or --write-only\n"),
        (("--target", "aws"), "sensorium: aws: is missing: the region, to begin with (and 3 more errors)\n"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = deploy(example(tmp_path, "cluster.yaml"), *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert not (tmp_path / "deploy").exists()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts programs of these names and exit codes on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def put(**codes: int) -> None:
        for name, code in codes.items():
            (folder / name).write_text(f"#!/bin/sh\necho $0 $@ > ran\nexit {code}\n")
            (folder / name).chmod(0o755)

    return put


def made(tmp_path: Path, name: str) -> Plan:
    return plan(read(example(tmp_path, name)), tmp_path / "out")


def test_what_is_missing_here_is_named(tmp_path: Path, programs, monkeypatch: pytest.MonkeyPatch) -> None:
    local, aws = made(tmp_path, "cluster.yaml"), made(tmp_path, "cluster-aws.yaml")
    with pytest.raises(DeployFailed, match="kubectl is not on the PATH"):
        command.check_runnable(made(tmp_path, "cluster-kuberay.yaml"))
    with pytest.raises(DeployFailed, match="ray is not on the PATH"):
        command.check_runnable(local)
    programs(ray=0, ssh=0)
    with pytest.raises(DeployFailed, match="rsync is not on the PATH"):
        command.check_runnable(local)
    programs(rsync=0)
    assert command.check_runnable(local).endswith("/ray")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DeployFailed, match="boto3 is not installed here"):
        command.check_runnable(aws)


def test_the_command_runs_where_the_files_are(tmp_path: Path, programs) -> None:
    planned = made(tmp_path, "cluster-kuberay.yaml")
    command.write_files(planned)
    programs(kubectl=0)
    command.run(planned)
    assert (tmp_path / "out/ran").read_text().endswith("kubectl apply -f manifests.yaml\n")
    programs(kubectl=3)
    with pytest.raises(DeployFailed, match="ended with code 3"):
        command.run(planned)


async def test_a_platform_that_never_comes_is_told(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(DeployFailed, match=r"is not ready after 0\.2 s"):
        await command.wait_until_ready(url, timeout_s=0.2)


@pytest.fixture
def name() -> Iterator[str]:
    """Of a cluster that nobody else on this machine has."""
    name = f"unit-test-{os.getpid()}"
    yield name
    shutil.rmtree(short_run_dir(name), ignore_errors=True)


def test_a_node_runs_its_command_with_the_environment_of_the_cluster(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sensorium.cluster.deploy.node", "--name", name, "--", "env"],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"},
    )
    assert done.returncode == 0, done.stderr
    given = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert given["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert given["RAY_SERVE_HAPROXY_METRICS_PORT"] != given["RAY_SERVE_HAPROXY_STATS_PORT"]
    assert os.access(given["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)
    assert given["HOME"] == "/nowhere"
    assert given["PATH"] == f"{Path(sys.executable).parent}:/usr/bin:/bin"


def test_a_node_waits_for_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=f"nothing listens on {address} after 0 s"):
        node.main(["--name", "unit-test", "--wait-for", address, "--wait-s", "0", "--", "true"])
