"""A platform as a user starts it: `sensorium up` in a process of its own, watched to its last child."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from sensorium.cluster.run_directory import RunState, read_state
from sensorium.ingest.broker import free_port

SENSORIUM = Path(sys.executable).with_name("sensorium")
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
_MARK = "SENSORIUM_TEST_RUN"
# A test run that is killed leaves no platform behind: 1 is PR_SET_PDEATHSIG, 15 SIGTERM.
_ENDS_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
_ADDRESSES = ("MQTT_BROKER_URL", "DEVICE_DB_URL", "LOG_DB_URLS", "RAY_ADDRESS")


def wait_until(condition: Callable[[], object], deadline_s: float, what: str) -> None:
    """Return once it holds. Raises `TimeoutError` that says what was waited for."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.05)


def run_sensorium(*arguments: str | Path, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """A command of the CLI, run to its end."""
    return subprocess.run(
        [SENSORIUM, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=_clean_environment(),
    )


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _ADDRESSES}


class PlatformProcess:
    """One run of `sensorium up`. `start` it, then `stop` it or `kill` it; `close` leaves nothing behind.

    Attributes:
        data_dir: where the run keeps everything; its output goes beside it.
        http_port, mqtt_port, coap_port: as given to it.
    """

    def __init__(
        self,
        data_dir: Path,
        http_port: int,
        mqtt_port: int,
        *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.http_port = http_port
        self.mqtt_port = mqtt_port
        self.coap_port = free_port()
        self._options = options
        self._environment = dict(environment or {})
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()
        self._out = data_dir.with_name(f"{data_dir.name}.out")
        self._err = data_dir.with_name(f"{data_dir.name}.err")

    @property
    def pid(self) -> int:
        """Of `sensorium up` itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def state(self) -> RunState:
        """What the run says of itself."""
        return read_state(self.data_dir)

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._err.read_text(errors="replace")

    def spawn(self) -> None:
        """Start it without waiting."""
        arguments = [
            "--data-dir",
            self.data_dir,
            "--http-port",
            self.http_port,
            "--mqtt-port",
            self.mqtt_port,
            "--coap-port",
            self.coap_port,
        ]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _ENDS_WITH_US, SENSORIUM, "up", *map(str, arguments), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**_clean_environment(), **self._environment, _MARK: self._mark},
                start_new_session=True,
            )

    def start(self) -> float:
        """Start it and wait for its line `ready`; how many seconds that took."""
        began_s = time.monotonic()
        self.spawn()
        wait_until(lambda: self._ready() or self._ended(), READY_TIMEOUT_S, "the line ready")
        assert self._ready(), f"it ended instead:\n{self.errors}"
        return time.monotonic() - began_s

    def _ready(self) -> bool:
        return f"ready http://127.0.0.1:{self.http_port}\n" == self._out.read_text()

    def _ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        self.processes()
        self._process.send_signal(how)
        return self.wait(STOP_TIMEOUT_S)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End `sensorium up` itself as `kill -9` does."""
        assert self._process is not None
        self.processes()
        self._process.kill()
        self._process.wait(10)

    def processes(self) -> list[psutil.Process]:
        """What lives of it: itself, its children, and whatever was started by it and has lost its parent.

        Those that are found once are remembered, so that a later look finds them however they hide.
        """
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            self._seen |= {root, *root.children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    self._seen.add(process)
        return [process for process in self._seen if _lives(process)]

    def named(self, name: str) -> list[psutil.Process]:
        """Its living processes of this name."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    def listening(self) -> set[int]:
        """The TCP ports on which its processes listen."""
        ports = set()
        for process in self.processes():
            with suppress(psutil.Error):
                ports |= {
                    connection.laddr.port
                    for connection in process.net_connections("tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        return ports

    def left(self, within_s: float, besides: Collection[str] = ()) -> list[str]:
        """What still lives when it has ended for so long, by name and command; [] as soon as nothing does.

        Processes whose title begins like one of `besides` do not count.
        """

        def told() -> list[str]:
            titles = ((_title(process), process.pid) for process in self.processes())
            return [f"{title} ({pid})" for title, pid in titles if title and not title.startswith(beside)]

        beside = tuple(besides)
        with suppress(TimeoutError):
            wait_until(lambda: not told(), within_s, "the processes to end")
        return told()

    def close(self) -> None:
        """End whatever lives of it, by force."""
        if self._process is not None:
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.resume()
                    process.kill()
            self._process.wait(10)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    """The command line's beginning; "" of a process that has ended meanwhile."""
    try:
        return " ".join(process.cmdline()).strip()[:160] or process.name()
    except psutil.Error:
        return ""


def status_json(data_dir: Path) -> dict[str, object]:
    """`sensorium status --json`."""
    answer: dict[str, object] = msgspec.json.decode(
        run_sensorium("status", "--data-dir", data_dir, "--json").stdout
    )
    return answer
