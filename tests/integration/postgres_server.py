"""A PostgreSQL of Debian's, and a PgBouncer before it: started on loopback, deleted after the test."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from sensorium.ingest.broker import free_port

BINARIES: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
PGBOUNCER: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin")
PASSWORD: Final = "p@ss word"
READY_WITHIN_S: Final = 20

needs_postgres = pytest.mark.skipif(not BINARIES, reason="needs a PostgreSQL server (Debian: postgresql)")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: pgbouncer)")


class Server:
    """One server, of the user that may run it, in a directory of its own.

    `options` are settings of postgresql.conf; `of` is the primary whose standby this one is to be. It listens
    at `address`, for `clients` (a network) as well as for this machine.
    """

    def __init__(
        self, *, of: "Server | None" = None, address: str = "127.0.0.1", clients: str = "", **options: str
    ) -> None:
        self.address = address
        self.port = free_port()
        self.directory = owned_directory()
        self.data = self.directory / "data"
        self._options = {"listen_addresses": address, "unix_socket_directories": str(self.directory)}
        self._options |= options
        self._process: subprocess.Popen[bytes] | None = None
        if of is None:
            password = self.write("password", PASSWORD)
            run("initdb", "-D", self.data, "-U", "sensor", "-A", "scram-sha-256", f"--pwfile={password}")
        else:
            # -R: it follows the primary, with the same password, from its first start on.
            run("pg_basebackup", "-R", "-d", of.url(), "-D", self.data, "-c", "fast")
        if clients:
            with (self.data / "pg_hba.conf").open("a") as rights:
                rights.write(f"host all all {clients} scram-sha-256\n")

    def url(self, user: str = "sensor", password: str = PASSWORD, database: str = "postgres") -> str:
        return f"postgresql://{user}:{quote(password)}@{self.address}:{self.port}/{database}"

    @property
    def log_file(self) -> Path:
        """What the server says."""
        return self.directory / "log"

    def write(self, name: str, text: str | bytes) -> Path:
        """A file beside the data that only the server may read."""
        path = self.directory / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        shutil.chown(path, owner().pw_uid, owner().pw_gid)
        return path

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in self._options.items()]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [BINARIES[-1], "-D", self.data, "-p", str(self.port), *settings],
                stderr=log,
                cwd="/",
                **as_owner(),
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while "ready" not in self._status():
            assert self._process.poll() is None, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.05)

    def promote(self) -> None:
        run("pg_ctl", "promote", "-w", "-D", self.data)

    def kill(self) -> None:
        """As when its machine is gone: no client is told goodbye, nothing more is sent to a standby."""
        if self._process is not None:
            run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", self.data)
            self._process.wait(READY_WITHIN_S)
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)

    def _status(self) -> str:
        try:
            return (self.data / "postmaster.pid").read_text()
        except FileNotFoundError:
            return ""


@contextmanager
def server(
    *, of: Server | None = None, address: str = "127.0.0.1", clients: str = "", **options: str
) -> Iterator[Server]:
    """A started server, deleted at the end."""
    it = Server(of=of, address=address, clients=clients, **options)
    try:
        it.start()
        yield it
    finally:
        it.close()


@contextmanager
def pgbouncer(behind: Server, pool_size: int) -> Iterator[str]:
    """PgBouncer in session mode before a server; the URL to use it by."""
    assert PGBOUNCER is not None
    directory, port = owned_directory(), free_port()
    users = directory / "users"
    users.write_text(f'"sensor" "{PASSWORD}"\n')
    ini = directory / "pgbouncer.ini"
    ini.write_text(
        "[databases]\n"
        f"postgres = host=127.0.0.1 port={behind.port} dbname=postgres\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {directory}\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\n"
        f"pool_mode = session\ndefault_pool_size = {pool_size}\nmax_client_conn = 200\n"
        f"logfile = {directory / 'log'}\n"
    )
    for path in (users, ini):
        shutil.chown(path, owner().pw_uid, owner().pw_gid)
    process = subprocess.Popen([PGBOUNCER, "-q", ini], stderr=subprocess.DEVNULL, cwd="/", **as_owner())
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not (directory / f".s.PGSQL.{port}").exists():
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"postgresql://sensor:{quote(PASSWORD)}@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(READY_WITHIN_S)
        shutil.rmtree(directory)


def owner() -> pwd.struct_passwd:
    """Whom the servers run as: root may not run them."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def as_owner() -> dict[str, Any]:
    """For `subprocess`, to run a server."""
    if os.geteuid() != 0:
        return {}
    return {"user": owner().pw_uid, "group": owner().pw_gid, "extra_groups": []}


def owned_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="sensorium-other-"))
    shutil.chown(directory, owner().pw_uid, owner().pw_gid)
    return directory


def run(program: str, *arguments: str | Path) -> None:
    """One of PostgreSQL's own programs, to its end."""
    done = subprocess.run(
        [BINARIES[-1].with_name(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        **as_owner(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
