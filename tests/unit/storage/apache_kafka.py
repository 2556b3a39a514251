"""A real Apache Kafka, one node in KRaft mode, as a child process.

Its classes are found in the folder that SENSORIUM_TEST_KAFKA_JARS names (`tests/servers/kafka.pom.xml` says
which they are) and run by the `java` on the path.
"""

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Self

from tests.integration.certificates import issue

from sensorium.ingest.broker import free_port

START_TIMEOUT_S: Final = 60.0
USER, PASSWORD = "us", "hunter2"


def missing() -> str | None:
    """Why there is none to be had here; None: there is one."""
    if shutil.which("java") is None:
        return "there is no java on the path"
    folder = os.environ.get("SENSORIUM_TEST_KAFKA_JARS", "")
    if not folder or not list(Path(folder).glob("kafka_*.jar")):
        return "needs Apache Kafka: set SENSORIUM_TEST_KAFKA_JARS to a folder with its classes"
    return None


class ApacheKafka:
    """`with` it: it listens from entering to leaving; `stop` and `start` are an outage that loses nothing.

    Attributes:
        address: without security.
        secure_address: TLS by a certificate of `ca_file`, and SCRAM-SHA-512 as `USER` with `PASSWORD`.
    """

    def __init__(self, directory: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.secure_address = f"127.0.0.1:{free_port()}"
        authority = issue("authority")
        self.ca_file, _ = authority.write(directory, "ca")
        cert, key = issue("127.0.0.1", authority).write(directory, "kafka")
        (directory / "keystore.pem").write_text(key.read_text() + cert.read_text())
        self._properties = directory / "server.properties"
        self._properties.write_text(self._configuration(directory, free_port()))
        self._log = directory / "kafka.log"
        # One that begins with a dash would be taken for an option.
        cluster_id = base64.urlsafe_b64encode(bytes(1) + os.urandom(15)).decode().rstrip("=")
        scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        subprocess.run(
            [
                *self._java("kafka.tools.StorageTool", "format", "--cluster-id", cluster_id),
                *("--add-scram", scram, "--config", str(self._properties)),
            ],
            check=True,
            capture_output=True,
            timeout=START_TIMEOUT_S,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with what it had, and wait until it takes connections."""
        with self._log.open("ab") as log:
            command = self._java("kafka.Kafka", str(self._properties))
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        host, _, port = self.address.partition(":")
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise TimeoutError(f"Kafka does not listen:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _configuration(self, directory: Path, controller_port: int) -> str:
        controller = f"127.0.0.1:{controller_port}"
        listeners = f"PLAIN://{self.address},CLIENTS://{self.secure_address}"
        secure = "listener.name.clients"
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://{controller}",
            "advertised.listeners": listeners,
            "inter.broker.listener.name": "PLAIN",
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:SASL_SSL",
            "log.dirs": str(directory / "logs"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # The tests write records of years ago, and retention goes by their time.
            "log.retention.ms": "-1",
            f"{secure}.ssl.keystore.type": "PEM",
            f"{secure}.ssl.keystore.location": str(directory / "keystore.pem"),
            f"{secure}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            f"{secure}.scram-sha-512.sasl.jaas.config": f"{module} required;",
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def _java(self, *arguments: str) -> list[str]:
        jars = Path(os.environ["SENSORIUM_TEST_KAFKA_JARS"]) / "*"
        return ["java", "-Xmx384m", "-XX:+UseSerialGC", "-cp", str(jars), *arguments]
