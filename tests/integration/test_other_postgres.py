"""`DEVICE_DB_URL`: the log in a PostgreSQL of Debian's (15 or newer), over TCP, with a password."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import GetLatest, Reading, Register
from sensorium.storage import History, PgHostPorts, PgMembership, close_pool, migrate, open_pool

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
PASSWORD = "p@ss word"

pytestmark = [
    pytest.mark.database,
    pytest.mark.skipif(not BINARIES, reason="needs a PostgreSQL server (Debian: postgresql-15)"),
]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """A database in a new server on loopback."""
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    root = os.geteuid() == 0
    as_owner: dict[str, Any] = (
        {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if root else {}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="sensorium-other-"))
    password = directory / "password"
    password.write_text(PASSWORD)
    data = directory / "data"
    for path in (directory, password):
        shutil.chown(path, owner.pw_uid, owner.pw_gid)
    initdb = [BINARIES[-1].with_name("initdb"), "-D", data, "-U", "sensor", "-A", "scram-sha-256"]
    subprocess.run(
        [*initdb, f"--pwfile={password}"], check=True, stdout=subprocess.DEVNULL, cwd="/", **as_owner
    )
    options = ["-p", str(port), "-k", str(directory), "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen(
        [BINARIES[-1], "-D", data, *options], stderr=subprocess.DEVNULL, cwd="/", **as_owner
    )
    try:
        deadline = time.monotonic() + 20
        while "ready" not in _status(data) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield f"postgresql://sensor:p%40ss%20word@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(directory)


def _status(data: Path) -> str:
    try:
        return (data / "postmaster.pid").read_text()
    except FileNotFoundError:
        return ""


async def test_a_host_works_on_it(dsn: str) -> None:
    assert await migrate(dsn) > 0
    assert await migrate(dsn) >= 0
    pool = await open_pool(dsn, 2)
    host = DeviceHost(
        "host-0", await PgMembership(pool).join("host-0"), range(1024), PgHostPorts(dsn), HostSettings()
    )
    await host.start()
    now_ms = time.time_ns() // 1_000_000
    await host.answer(Register("a", "climate"))
    for number in range(10):
        reading = Reading("a", now_ms + number, now_ms, number, 0, [float(number)])
        await host.answer(reading, ("temperature",))
    latest = await host.answer(GetLatest("a"))
    assert latest.metrics["temperature"].value == 9.0
    await host.stop()
    points = await History(pool).readings("a", None, None, None, 100, "asc", None)
    assert [p.values["temperature"] for p in points.items] == [float(n) for n in range(10)]
    await close_pool(pool)


async def test_a_wrong_password_is_said_without_showing_it(dsn: str) -> None:
    with pytest.raises((LogUnavailable, asyncpg.InvalidPasswordError)) as caught:
        await migrate(dsn.replace("p%40ss%20word", "hunter2"))
    assert "hunter2" not in str(caught.value)
