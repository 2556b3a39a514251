"""A Mosquitto with persistence and without bounds on its queues, as a field installation has it."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

from platform_process import wait_until

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MOSQUITTO_PUB = shutil.which("mosquitto_pub")

_CONF = """\
listener {port} {host}
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
persistence true
persistence_location {directory}/
user root
log_type error
log_type subscribe
log_dest file {directory}/subscriptions.log
"""


class RealMosquitto:
    """Start and stop it as often as needed; it keeps sessions and queues over a stop by SIGTERM."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.address = BrokerAddress(host=host, port=free_port())
        self._log = directory / "subscriptions.log"
        self._conf = directory / "mosquitto.conf"
        self._conf.write_text(_CONF.format(host=host, port=self.address.port, directory=directory))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `MQTT_BROKER_URL`."""
        return f"mqtt://{self.address.host}:{self.address.port}"

    def subscriptions(self, topic: str) -> int:
        """How often clients have subscribed to just this."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sum(topic in line.split() for line in lines)

    def start(self) -> None:
        """Return once it accepts connections."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._conf)], stderr=subprocess.DEVNULL)
        wait_until(self._accepts, 10, "the broker")

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.address.host, self.address.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it cleanly: everything is written down."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(20)
