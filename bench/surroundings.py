"""What benchmarks run in: a Mosquitto that does not limit them, and the machine's name."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from mosquitto_conf import write_conf

from sensorium.ingest.broker import free_port
from sensorium.storage.database import Pool, acquired


@contextmanager
def mosquitto(directory: Path) -> Iterator[tuple[int, int]]:
    """A broker without limits on a free port; gives the port and the process id."""
    binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(binary).exists():
        sys.exit("bench: needs mosquitto (Debian: apt-get install mosquitto)")
    port = free_port()
    process = subprocess.Popen([binary, "-c", str(write_conf(directory / "mosquitto.conf", port))])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


async def readings_of(pool: Pool) -> int:
    """How many readings the log holds."""
    async with acquired(pool) as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM readings")
    return count


def cpu_s(name: str) -> float:
    """CPU time of all processes of ours whose command line holds the name."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total
