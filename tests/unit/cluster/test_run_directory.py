"""One platform a data directory, whoever dies how."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sensorium.cluster.errors import AlreadyRunning, ClusterError, NotRunning
from sensorium.cluster.run_directory import (
    PID_FILE,
    STATE_FILE,
    RunDirectory,
    RunState,
    is_running,
    read_state,
    stop,
)

HOLDER = """
import signal, sys
from pathlib import Path
from sensorium.cluster.run_directory import RunDirectory
ignore = sys.argv[2] == "stubborn"
signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: sys.exit(0))
with RunDirectory(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Starts processes that hold the directory."""
    started: list[subprocess.Popen[str]] = []

    def start(manner: str = "polite") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), manner], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_state_is_there_while_it_runs(tmp_path: Path) -> None:
    state = RunState(os.getpid(), "0.1.0", 5, "ready", "http://h", "mqtt://h", "postgresql://h")
    with RunDirectory(tmp_path / "a" / "b") as directory:
        assert is_running(tmp_path / "a" / "b")
        assert read_state(directory.path).pid == os.getpid()
        directory.write(state)
        assert read_state(directory.path) == state
    assert not is_running(tmp_path / "a" / "b")
    with pytest.raises(NotRunning):
        read_state(tmp_path / "a" / "b")


def test_a_second_one_is_refused_and_told_whose_it_is(tmp_path: Path, holder) -> None:
    first = holder()
    with pytest.raises(AlreadyRunning, match=rf"pid {first.pid}\)"), RunDirectory(tmp_path):
        pass
    assert is_running(tmp_path)


def test_stop_waits_for_the_end(tmp_path: Path, holder) -> None:
    process = holder()
    assert stop(tmp_path, 10) == process.pid
    assert process.wait(10) == 0
    with pytest.raises(NotRunning):
        stop(tmp_path, 1)


def test_stop_gives_up_on_one_that_does_not_end(tmp_path: Path, holder) -> None:
    holder("stubborn")
    with pytest.raises(ClusterError, match="still stopping"):
        stop(tmp_path, 0.2)


def test_a_killed_one_leaves_the_directory_free(tmp_path: Path, holder) -> None:
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert (tmp_path / PID_FILE).read_text() != ""
    deadline = time.monotonic() + 5
    while is_running(tmp_path):
        assert time.monotonic() < deadline
    with RunDirectory(tmp_path):
        assert is_running(tmp_path)


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot hold the data"), RunDirectory(tmp_path / "file"):
        pass


def test_whoever_follows_a_killed_one_is_not_taken_for_ready(tmp_path: Path, holder) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.write(RunState(os.getpid(), "0.1.0", 5, "ready", "http://h", "mqtt://h", "postgresql://h"))
        left_behind = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(left_behind)
    process = holder()
    state = read_state(tmp_path)
    assert (state.pid, state.phase, state.http_url) == (process.pid, "starting", "")
