"""The generated broker configuration in a real Mosquitto, with certificates made as docs/broker.md says."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from platform_process import PlatformProcess, run_sensorium, wait_until
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB

from sensorium.ingest.broker import free_port
from sensorium.ingest.errors import BrokerRefused
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address
from sensorium.ingest.mqtt_client import NO_SUBSCRIBERS, MqttClient, MqttOptions, Will
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

pytestmark = pytest.mark.skipif(
    MOSQUITTO is None or MOSQUITTO_PUB is None or shutil.which("openssl") is None,
    reason="needs Mosquitto, its clients and openssl",
)
PAGE = Path(__file__).parents[2] / "docs" / "broker.md"
NOT_AUTHORISED = 0x87


class SecureBroker:
    """A broker that was configured by the page, on other ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.platform_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self) -> None:
        make_pki, *_ = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
        subprocess.run(["bash", "-ec", make_pki], cwd=self.directory, check=True, capture_output=True)
        pki = self.directory / "pki"
        done = run_sensorium(
            *("broker-config", "--target", "mosquitto"),
            *("--ca", pki / "ca.pem", "--cert", pki / "broker.pem", "--key", pki / "broker.key"),
            *("--port", str(self.port), "--host", "127.0.0.1", "--platform-port", str(self.platform_port)),
            *("--user", "root", self.directory / "broker"),
        )
        assert done.returncode == 0, done.stderr
        assert "wrote" in done.stdout

    def start(self) -> None:
        assert MOSQUITTO is not None
        configuration = self.directory / "broker" / "mosquitto.conf"
        self._process = subprocess.Popen([MOSQUITTO, "-c", configuration], stderr=subprocess.DEVNULL)
        for port in (self.port, self.platform_port):
            wait_until(lambda port=port: _listens(port), 10, "the broker")  # type: ignore[misc]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def files(self, name: str) -> tuple[str, str, str]:
        pki = self.directory / "pki"
        return str(pki / "ca.pem"), str(pki / f"{name}.pem"), str(pki / f"{name}.key")

    def address(self, name: str, port: int | None = None) -> BrokerAddress:
        return broker_address(f"mqtts://127.0.0.1:{port or self.port}", *self.files(name))


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    running = SecureBroker(tmp_path_factory.mktemp("secure"))
    running.configure()
    running.start()
    yield running
    running.stop()


QUICK = MqttOptions(session_expiry_s=0, retry_max_s=0.2, connect_timeout_s=5.0, refused_retry_s=0.2)


class Client:
    def __init__(self, client: MqttClient, inbox: asyncio.Queue[Packet]) -> None:
        self.mqtt = client
        self.inbox = inbox

    async def publish(self, topic: str) -> int:
        async with asyncio.timeout(5):
            return await self.mqtt.publish(topic, b'{"t": 1}')


@asynccontextmanager
async def client(
    address: BrokerAddress, client_id: str, *topics: str, will: Will | None = None
) -> AsyncIterator[Client]:
    inbox: asyncio.Queue[Packet] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for packet in packets:
            inbox.put_nowait(packet)

    subscriptions = tuple((topic, 1) for topic in topics)
    async with MqttClient(
        address, client_id, subscriptions=subscriptions, on_packets=take, options=QUICK, will=will
    ) as mqtt:
        async with asyncio.timeout(10):
            await mqtt.connected()
        yield Client(mqtt, inbox)


async def test_a_device_publishes_for_itself_and_for_nobody_else(broker: SecureBroker) -> None:
    async with client(broker.address("sensor-001"), "any") as device:
        for topic in ("telemetry", "status", "commands/c-1/response", "twin/reported", "firmware/progress"):
            assert await device.publish(f"devices/sensor-001/{topic}") in (0, NO_SUBSCRIBERS)
        for topic in (
            "devices/sensor-002/telemetry",
            "devices/sensor-002/status",
            "devices/sensor-002/commands/c-1/response",
            "devices/sensor-001/commands",
            "devices/sensor-001/twin/desired",
            "application/1/device/a8404137b182428e/event/up",
            "spBv1.0/plant/NDATA/sensor-001",
        ):
            with pytest.raises(BrokerRefused) as refused:
                await device.publish(topic)
            assert refused.value.reason_code == NOT_AUTHORISED


async def test_a_device_hears_its_own_commands_only(broker: SecureBroker) -> None:
    platform = broker.address("sensorium", broker.platform_port)
    async with (
        client(platform, "sensorium-a", "devices/+/telemetry") as telling,
        client(broker.address("sensor-001"), "x", "devices/+/commands", "devices/sensor-002/#") as device,
    ):
        await telling.publish("devices/sensor-002/commands")
        await telling.publish("devices/sensor-001/commands")
        async with asyncio.timeout(5):
            topic, *_ = await device.inbox.get()
        assert topic == b"devices/sensor-001/commands"
        assert device.inbox.empty()
        await device.publish("devices/sensor-001/telemetry")
        async with asyncio.timeout(5):
            topic, *_ = await telling.inbox.get()
        assert topic == b"devices/sensor-001/telemetry"


async def test_a_client_id_of_the_platform_is_not_the_platforms_session(broker: SecureBroker) -> None:
    platform = broker.address("sensorium", broker.platform_port)
    async with (
        client(platform, "sensorium-ingest-0", "devices/+/telemetry") as ours,
        client(broker.address("sensor-001"), "sensorium-ingest-0") as device,
    ):
        await device.publish("devices/sensor-001/telemetry")
        async with asyncio.timeout(5):
            await ours.inbox.get()
        assert ours.mqtt.statistics()["connects"] == 1


async def test_a_device_dies_in_its_own_name_only(broker: SecureBroker) -> None:
    platform = broker.address("sensorium", broker.platform_port)
    async with client(platform, "sensorium-b", "devices/+/status") as ours:
        for name in ("sensor-002", "sensor-001"):
            will = Will(topic=f"devices/{name}/status", payload=b"offline", retain=False)
            async with client(broker.address("sensor-001"), "x", will=will) as device:
                connection = device.mqtt._connection
                assert connection is not None
                device.mqtt._supervisor.cancel()  # type: ignore[union-attr]
                connection.abort("lost its power")
        async with asyncio.timeout(5):
            topic, *_ = await ours.inbox.get()
        assert topic == b"devices/sensor-001/status"
        assert ours.inbox.empty()


async def test_whoever_has_no_certificate_stays_outside(broker: SecureBroker) -> None:
    address = broker_address(f"mqtts://127.0.0.1:{broker.port}", broker.files("sensor-001")[0])
    async with MqttClient(address, "nobody", options=QUICK) as nobody, asyncio.timeout(10):
        while not nobody.statistics()["failures"]:
            await asyncio.sleep(0.01)
        assert not nobody.is_connected


@pytest.mark.ray
def test_a_platform_with_a_certificate_of_its_own(broker: SecureBroker, tmp_path: Path) -> None:
    ca, cert, key = broker.files("sensorium")
    environment = {
        "MQTT_BROKER_URL": f"mqtts://127.0.0.1:{broker.platform_port}",
        "MQTT_CA_FILE": ca,
        "MQTT_CERT_FILE": cert,
        "MQTT_KEY_FILE": key,
    }
    data_dir = Path(os.environ.get("TMPDIR", "/tmp"), f"sens-tls-{os.getpid()}")
    running = PlatformProcess(data_dir, free_port(), free_port(), environment=environment)
    try:
        running.start()
        url = running.state.http_url
        device = {"device_id": "sensor-001", "device_type": "climate"}
        assert httpx.post(f"{url}/api/devices", json=device).status_code == 201
        (publish,) = re.findall(r"```sh\n(TLS=.*?)```", PAGE.read_text(), re.DOTALL)
        script = publish.replace("-p 8883", f"-p {broker.port}")
        subprocess.run(["bash", "-ec", script], cwd=broker.directory, check=True)
        latest = f"{url}/api/devices/sensor-001/data/latest"
        wait_until(lambda: "23.5" in httpx.get(latest).text, 15, "the reading")
        assert running.stop() == 0, running.errors
    finally:
        running.close()
        shutil.rmtree(data_dir, ignore_errors=True)
