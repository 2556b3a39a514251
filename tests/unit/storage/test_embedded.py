"""The embedded server: starts, stops, recovers, and never outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil
import pytest

from sensorium.storage.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.database, pytest.mark.slow]
QUICK = {"shared_buffers": "32MB", "fsync": "off"}


@pytest.fixture
def directory(open_directory: Path) -> Path:
    # Long, so that the socket has to stand elsewhere.
    return open_directory / ("long" * 20)


def await_that(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def ask(dsn: str, question: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def test_it_recovers_from_a_crash_under_the_same_address(directory: Path) -> None:
    with EmbeddedPostgres(directory / "pg", QUICK) as server:
        assert len(os.fsencode(server.dsn.split("host=")[1])) < 100
        before, pid = server.dsn, server.pid
        await ask(before, "CREATE TABLE kept AS SELECT 7 AS n")
        server.kill9()
        assert not server.running
        server.start()
        assert (server.dsn, server.pid != pid) == (before, True)
        assert await ask(before, "SELECT n FROM kept") == 7
        pid = server.pid
    assert gone(pid)
    with pytest.raises(FileNotFoundError):
        os.stat(before.split("host=")[1])  # noqa: PTH116
    server.stop()


async def test_two_run_side_by_side(directory: Path) -> None:
    with EmbeddedPostgres(directory / "a", QUICK) as a, EmbeddedPostgres(directory / "b", QUICK) as b:
        assert a.dsn != b.dsn
        assert await ask(a.dsn, "SHOW data_directory") == str(directory / "a")
        assert await ask(b.dsn, "SHOW data_directory") == str(directory / "b")


async def test_local_settings_win(directory: Path) -> None:
    with EmbeddedPostgres(directory / "pg", QUICK):
        pass
    (directory / "pg" / "local.conf").write_text("work_mem = 1234kB\n")
    os.chmod(directory / "pg" / "local.conf", 0o644)  # noqa: PTH101
    with EmbeddedPostgres(directory / "pg", QUICK) as server:
        assert await ask(server.dsn, "SHOW work_mem") == "1234kB"


OWNER = """
import sys, threading, time
from sensorium.storage.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1], {"shared_buffers": "32MB", "fsync": "off"})
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_parent_but_not_with_the_thread_that_started_it(directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory / "pg")], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        # The starting thread has ended: had its end stopped the server, it would refuse this.
        server = EmbeddedPostgres(directory / "pg", QUICK)
        assert psutil.Process(pid).ppid() == owner.pid
        os.kill(owner.pid, signal.SIGKILL)
        await_that(lambda: gone(pid))
    with server:
        assert server.running


async def test_a_stale_pid_file_does_not_stop_it(directory: Path) -> None:
    with EmbeddedPostgres(directory / "pg", QUICK) as server:
        pid_file = (directory / "pg" / "postmaster.pid").read_text()
    # As after a power failure, the process id given to somebody else since.
    stale = directory / "pg" / "postmaster.pid"
    stale.write_text(pid_file.replace(pid_file.split()[0], str(os.getpid()), 1))
    with server:
        assert await ask(server.dsn, "SELECT 1") == 1
