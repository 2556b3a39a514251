"""The MQTT client over TLS with a real Mosquitto: password, client certificate, and what is refused."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import issue

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
PASSWD = shutil.which("mosquitto_passwd")

pytestmark = pytest.mark.skipif(
    MOSQUITTO is None or PASSWD is None, reason="needs Mosquitto (Debian: mosquitto)"
)


class Broker(NamedTuple):
    port: int
    client_port: int
    """Where a client certificate is asked for."""
    ca: Path
    other_ca: Path
    client_cert: Path
    client_key: Path


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("tls")
    authority = issue("authority")
    ca, _ = authority.write(directory, "ca")
    other_ca, _ = issue("somebody else").write(directory, "other")
    cert, key = issue("broker", authority).write(directory, "broker")
    client_cert, client_key = issue("ingestor", authority).write(directory, "client")
    passwords = directory / "passwords"
    assert PASSWD is not None
    assert MOSQUITTO is not None
    subprocess.run([PASSWD, "-b", "-c", str(passwords), "ingest", "p@ss/word"], check=True)
    ports = [free_port(), free_port()]
    tls = f"cafile {ca}\ncertfile {cert}\nkeyfile {key}\n"
    (directory / "mosquitto.conf").write_text(
        f"user root\nper_listener_settings true\n"
        f"listener {ports[0]} 127.0.0.1\n{tls}password_file {passwords}\nallow_anonymous false\n"
        f"listener {ports[1]} 127.0.0.1\n{tls}require_certificate true\nuse_identity_as_username true\n"
    )
    process = subprocess.Popen(
        [MOSQUITTO, "-c", str(directory / "mosquitto.conf")], stderr=subprocess.DEVNULL
    )
    try:
        for port in ports:
            _await_port(port)
        yield Broker(*ports, ca, other_ca, client_cert, client_key)
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@asynccontextmanager
async def echo(address: BrokerAddress) -> AsyncIterator[tuple[MqttClient, asyncio.Queue[Packet]]]:
    """A client that receives what it publishes to `devices/a/telemetry`."""
    received: asyncio.Queue[Packet] = asyncio.Queue()

    def take(connection: Connection, packets: list[Packet]) -> None:
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        for packet in packets:
            received.put_nowait(packet)

    options = MqttOptions(retry_max_s=0.5, refused_retry_s=0.5, connect_timeout_s=3.0)
    async with MqttClient(
        address,
        "tls-test",
        subscriptions=(("devices/+/telemetry", 1),),
        on_packets=take,
        options=options,
    ) as client:
        yield client, received


async def _round_trip(address: BrokerAddress) -> None:
    async with asyncio.timeout(15), echo(address) as (client, received):
        await client.connected()
        await client.publish("devices/a/telemetry", b'{"t":1}', qos=1)
        packet = await received.get()
        assert b'{"t":1}' in packet


async def test_user_and_password_over_tls(broker: Broker) -> None:
    url = f"mqtts://ingest:p%40ss%2Fword@127.0.0.1:{broker.port}"
    await _round_trip(broker_address(url, ca_file=str(broker.ca)))


async def test_a_client_certificate(broker: Broker) -> None:
    files = (str(broker.ca), str(broker.client_cert), str(broker.client_key))
    await _round_trip(broker_address(f"mqtts://127.0.0.1:{broker.client_port}", *files))


@pytest.mark.parametrize(
    ("user", "trusted", "says"),
    [("ingest:wrong", True, "not authori"), ("ingest:p%40ss%2Fword", False, "certificate")],
)
async def test_what_is_refused_is_said_and_tried_again(
    broker: Broker, user: str, trusted: bool, says: str
) -> None:
    ca = broker.ca if trusted else broker.other_ca
    address = broker_address(f"mqtts://{user}@127.0.0.1:{broker.port}", ca_file=str(ca))
    async with asyncio.timeout(15), echo(address) as (client, _):
        while says not in str(client.statistics()).lower():
            await asyncio.sleep(0.02)
        assert not client.is_connected
        assert "wrong" not in str(client.statistics())
