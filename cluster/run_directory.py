"""The data directory of a platform: who runs on it, and what that platform says of itself.

The lock on the pid file, not its content, tells whether somebody runs: it goes with the process, however
that ends.
"""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from sensorium.cluster.errors import AlreadyRunning, ClusterError, NotRunning

PID_FILE: Final = "sensorium.pid"
STATE_FILE: Final = "state.json"
POLL_S: Final = 0.05


class RunState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a running platform says of itself. Holds no secret.

    `phase` is "starting", "ready" or "stopping".
    """

    pid: int
    version: str
    started_ms: int
    phase: str = "starting"
    http_url: str = ""
    mqtt_url: str = ""
    database: str = ""
    ray_address: str = ""


class RunDirectory:
    """A data directory that this process runs a platform on, from entering to leaving.

    Raises:
        AlreadyRunning: on entering, when another process runs one on it.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / PID_FILE).open("a+", encoding="ascii")
        except OSError as error:
            raise ClusterError(f"{self.path} cannot hold the data: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AlreadyRunning(
                f"a platform (pid {_read_pid(self.path)}) runs on {self.path} already;"
                f" choose another --data-dir, or end it: sensorium down --data-dir {self.path}"
            ) from None
        # Of one that was killed: nobody shall take this one for ready.
        (self.path / STATE_FILE).unlink(missing_ok=True)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        (self.path / STATE_FILE).unlink(missing_ok=True)
        # The file stays: removing it would let two processes lock two files of one name.
        self._file.truncate(0)
        self._file.close()

    def write(self, state: RunState) -> None:
        """Replace the state as others see it."""
        fresh = self.path / f"{STATE_FILE}.new"
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(self.path / STATE_FILE)


def is_running(data_dir: Path) -> bool:
    """Whether a process runs a platform on the directory."""
    try:
        with (data_dir / PID_FILE).open(encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_state(data_dir: Path) -> RunState:
    """The state of the platform that runs there.

    Raises:
        NotRunning: nobody does.
    """
    if not is_running(data_dir):
        raise NotRunning(f"no platform runs on {data_dir}")
    try:
        return msgspec.json.decode((data_dir / STATE_FILE).read_bytes(), type=RunState)
    except FileNotFoundError:
        return RunState(_read_pid(data_dir), "", 0)


def stop(data_dir: Path, timeout_s: float) -> int:
    """Ask the platform that runs there to end, and wait for it.

    Returns:
        Its pid.

    Raises:
        NotRunning: nobody runs there.
        ClusterError: it had not ended after the timeout.
    """
    if not is_running(data_dir):
        raise NotRunning(f"no platform runs on {data_dir}")
    pid = _read_pid(data_dir)
    if pid <= 0:
        raise ClusterError(f"{data_dir / PID_FILE} is locked but names no process")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended between the two looks
    except PermissionError as error:
        raise ClusterError(f"pid {pid} belongs to another user") from error
    deadline_s = time.monotonic() + timeout_s
    while is_running(data_dir):
        if time.monotonic() > deadline_s:
            raise ClusterError(f"pid {pid} is still stopping after {timeout_s:g} s; look into its log")
        time.sleep(POLL_S)
    return pid


def _read_pid(data_dir: Path) -> int:
    text = (data_dir / PID_FILE).read_text(encoding="ascii").strip()
    return int(text) if text.isdecimal() else 0
