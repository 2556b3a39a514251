"""The MQTT client and the ingestor against a real Mosquitto, and the embedded broker against both."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.recording_router import RecordingRouter

from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt import MqttIngestor, MqttSettings
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions, Will
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import DUP, Packet

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
QUICK = MqttOptions(retry_min_s=0.02, retry_max_s=0.1, refused_retry_s=0.1, connect_timeout_s=2)


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


class Mosquitto:
    def __init__(self, directory: Path, lines: str = "allow_anonymous true\n") -> None:
        self.address = BrokerAddress(host="127.0.0.1", port=free_port())
        self._conf = directory / "mosquitto.conf"
        self._conf.write_text(
            f"listener {self.address.port} 127.0.0.1\nmax_inflight_messages 0\nmax_queued_messages 0\n"
            f"persistence true\npersistence_location {directory}/\nuser root\nlog_type error\n{lines}"
        )
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = await asyncio.create_subprocess_exec(
            MOSQUITTO, "-c", str(self._conf), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection(self.address.host, self.address.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            async with asyncio.timeout(5):
                await process.wait()


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    await broker.start()
    yield broker
    await broker.stop()


class Inbox:
    """Keeps what comes; acknowledges when told."""

    def __init__(self, acknowledge: bool = True) -> None:
        self.acknowledge = acknowledge
        self.packets: list[tuple[Connection, Packet]] = []

    def take(self, connection: Connection, packets: list[Packet]) -> None:
        self.packets += [(connection, packet) for packet in packets]
        if self.acknowledge:
            connection.acknowledge([packet[2] for packet in packets if packet[2]])

    @property
    def payloads(self) -> list[bytes]:
        return [packet[1] for _, packet in self.packets]


@asynccontextmanager
async def client(address: BrokerAddress, client_id: str, **arguments: Any) -> AsyncIterator[MqttClient]:
    arguments.setdefault("options", QUICK)
    async with MqttClient(address, client_id, **arguments) as connecting:
        async with asyncio.timeout(5):
            await connecting.connected()
        yield connecting


@needs_mosquitto
async def test_every_qos_arrives_once_and_in_order(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    async with (
        client(mosquitto.address, "in", subscriptions=(("a/+", 2),), on_packets=inbox.take),
        client(mosquitto.address, "out") as publisher,
    ):
        for n in range(300):
            await publisher.publish("a/b", b"%d" % n, qos=n % 3)
        await until(lambda: len(inbox.packets) >= 300)
    assert inbox.payloads == [b"%d" % n for n in range(300)]


@needs_mosquitto
async def test_properties_travel_both_ways(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    async with (
        client(mosquitto.address, "in", subscriptions=(("a", 1),), on_packets=inbox.take),
        client(mosquitto.address, "out") as publisher,
    ):
        await publisher.publish(
            "a", b"x", response_topic="r", correlation_data=b"c", user_property=[("k", "v"), ("k", "w")]
        )
        await until(lambda: inbox.packets)
    assert inbox.packets[0][1][4] == {
        "response_topic": ["r"],
        "correlation_data": [b"c"],
        "user_property": [("k", "v"), ("k", "w")],
    }


@needs_mosquitto
async def test_a_thousand_publications_at_once_respect_the_window(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    async with (
        client(mosquitto.address, "in", subscriptions=(("a", 2),), on_packets=inbox.take),
        client(mosquitto.address, "out") as publisher,
    ):
        async with asyncio.timeout(10):
            await asyncio.gather(*(publisher.publish("a", b"%d" % n, qos=1 + n % 2) for n in range(1000)))
        await until(lambda: len(inbox.packets) >= 1000)
        assert publisher.statistics()["publishing"] == 0
    assert sorted(inbox.payloads) == sorted(b"%d" % n for n in range(1000))


@needs_mosquitto
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_not_acknowledged_comes_again(mosquitto: Mosquitto, qos: int) -> None:
    inbox = Inbox(acknowledge=False)
    arguments: dict[str, Any] = {"subscriptions": (("a", 2),), "on_packets": inbox.take}
    async with client(mosquitto.address, "out") as publisher:
        async with client(mosquitto.address, "in", **arguments):
            for n in range(4):
                await publisher.publish("a", b"%d" % n, qos=qos)
            await until(lambda: len(inbox.packets) == 4)
            connection = inbox.packets[0][0]
            # The third is done before the second: only the first may be acknowledged.
            assert connection.acknowledge([inbox.packets[i][1][2] for i in (0, 2)]) == 1
        async with client(mosquitto.address, "in", **arguments):
            await until(lambda: len(inbox.packets) == 7)
            again = inbox.packets[4:]
            assert [packet[1] for _, packet in again] == [b"1", b"2", b"3"]
            assert all(packet[3] & DUP for _, packet in again)
            assert again[0][0] is not connection
            assert connection.acknowledge([again[0][1][2]]) == 0, "acks belong to their connection"


@needs_mosquitto
async def test_a_paused_client_reads_nothing_and_loses_nothing(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    count = 20_000
    payload = b"x" * 1000
    async with (
        client(mosquitto.address, "in", subscriptions=(("a", 1),), on_packets=inbox.take) as reader,
        client(mosquitto.address, "out") as publisher,
    ):
        reader.pause()
        async with asyncio.timeout(20):
            await asyncio.gather(*(publisher.publish("a", payload, qos=1) for _ in range(count)))
        assert len(inbox.packets) < count // 2
        reader.resume()
        await until(lambda: len(inbox.packets) >= count, 20)
    assert len(inbox.packets) == count


@needs_mosquitto
async def test_it_survives_a_restart_of_the_broker(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    async with (
        client(mosquitto.address, "in", subscriptions=(("a", 1),), on_packets=inbox.take) as reader,
        client(
            mosquitto.address, "out", options=msgspec.structs.replace(QUICK, session_expiry_s=0)
        ) as publisher,
    ):
        await publisher.publish("a", b"1")
        await mosquitto.stop()
        await until(lambda: not (reader.is_connected or publisher.is_connected))
        assert reader.state in ("waiting", "connecting")
        with pytest.raises(Disconnected):
            await publisher.publish("a", b"lost", qos=0)
        waiting = asyncio.create_task(publisher.publish("a", b"2"))
        await mosquitto.start()
        async with asyncio.timeout(10):
            await waiting
        await until(lambda: set(inbox.payloads) >= {b"1", b"2"})
        await until(lambda: reader.statistics()["connects"] == 2)


@needs_mosquitto
async def test_subscriptions_are_made_again_when_the_broker_forgot_them(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    forgetful = msgspec.structs.replace(QUICK, session_expiry_s=0)
    async with client(
        mosquitto.address, "in", subscriptions=(("a", 1),), on_packets=inbox.take, options=forgetful
    ) as reader:
        await mosquitto.stop()
        await until(lambda: not reader.is_connected)
        await mosquitto.start()
        await until(lambda: reader.is_connected)
        async with client(mosquitto.address, "out") as publisher:
            await publisher.publish("a", b"1")
            await until(lambda: inbox.payloads == [b"1"])


@needs_mosquitto
async def test_shared_subscriptions_are_made_again_in_a_session_that_is_kept(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    shared = (("$share/s/a", 1),)
    async with client(mosquitto.address, "in", subscriptions=shared, on_packets=inbox.take) as reader:
        await mosquitto.stop()
        await until(lambda: not reader.is_connected)
        await mosquitto.start()
        await until(lambda: reader.is_connected)
        async with client(mosquitto.address, "out") as publisher:
            await publisher.publish("a", b"1")
            await until(lambda: inbox.payloads == [b"1"])


@needs_mosquitto
async def test_what_is_retained_is_not_sent_again_at_a_reconnect(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    async with client(mosquitto.address, "out", will=Will(topic="a", payload=b"kept")) as publisher:
        publisher._connection.abort("to have the will published")  # type: ignore[union-attr]
        async with client(mosquitto.address, "look", subscriptions=(("a", 1),), on_packets=inbox.take):
            await until(lambda: inbox.payloads == [b"kept"])
    inbox.payloads.clear()
    async with client(
        mosquitto.address, "in", subscriptions=(("a", 0), ("b", 0)), on_packets=inbox.take
    ) as reader:
        await until(lambda: inbox.payloads == [b"kept"])
        reader._connection.abort("to have it reconnect")  # type: ignore[union-attr]
        await until(lambda: reader.statistics()["connects"] == 2)
        async with client(mosquitto.address, "again") as publisher:
            await publisher.publish("b", b"marker")
        await until(lambda: b"marker" in inbox.payloads)
    assert inbox.payloads == [b"kept", b"marker"]


@needs_mosquitto
async def test_refusals_are_seen(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write allowed\n")
    acl.chmod(0o600)
    broker = Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}\n")
    await broker.start()
    try:
        async with client(broker.address, "out") as publisher:
            await publisher.publish("allowed", b"x", qos=1)
            for qos in (1, 2):
                with pytest.raises(BrokerRefused) as refused:
                    await publisher.publish("forbidden", b"x", qos=qos)
                assert refused.value.reason_code == 0x87
    finally:
        await broker.stop()


@needs_mosquitto
async def test_bad_credentials_are_retried_slowly_and_reported(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwd = await asyncio.create_subprocess_exec("mosquitto_passwd", "-b", passwords, "me", "p@ss/word")
    assert await passwd.wait() == 0
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}\n")
    await broker.start()
    try:
        where = f"127.0.0.1:{broker.address.port}"
        async with MqttClient(broker_address(f"mqtt://me:wrong@{where}"), "c", options=QUICK) as refused:
            await until(lambda: refused.statistics()["refusals"] >= 2)
            assert "0x87" in refused.statistics()["last_error"]
            assert not refused.is_connected
        async with client(broker_address(f"mqtt://me:p%40ss%2Fword@{where}"), "c") as welcome:
            assert welcome.state == "connected"
    finally:
        await broker.stop()


@needs_mosquitto
async def test_the_will_is_published_only_for_a_lost_client(mosquitto: Mosquitto) -> None:
    inbox = Inbox()
    will = Will(topic="status", payload=b"offline", retain=False)
    async with client(mosquitto.address, "in", subscriptions=(("#", 1),), on_packets=inbox.take):
        async with client(mosquitto.address, "polite", will=will):
            pass
        async with (
            client(mosquitto.address, "victim", will=will) as victim,
            client(mosquitto.address, "out") as publisher,
        ):
            await publisher.publish("mark", b"before")
            assert victim._connection is not None
            victim._connection.abort("test")
            await until(lambda: b"offline" in inbox.payloads)
    assert inbox.payloads == [b"before", b"offline"]


async def test_a_broker_that_never_answers_is_given_up() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    options = MqttOptions(connect_timeout_s=0.1, retry_min_s=0.01, retry_max_s=0.01)
    async with MqttClient(BrokerAddress(host="127.0.0.1", port=port), "c", options=options) as hopeful:
        await until(lambda: hopeful.statistics()["failures"] >= 2)
        assert "no answer" in hopeful.statistics()["last_error"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await hopeful.publish("a", b"x")
        waiting = asyncio.create_task(hopeful.publish("a", b"x"))
        await asyncio.sleep(0)
    with pytest.raises(Disconnected):
        await waiting
    silent.close()
    await silent.wait_closed()


def settings(broker: Mosquitto, **changes: Any) -> MqttSettings:
    return MqttSettings(**{"address": broker.address, "options": QUICK, "drain_timeout_s": 0.2, **changes})


@needs_mosquitto
async def test_the_ingestor_acknowledges_after_the_commit(mosquitto: Mosquitto) -> None:
    slow = RecordingRouter()
    ingestor = MqttIngestor(settings(mosquitto), slow)
    await ingestor.start()
    await ingestor.connected()
    async with client(mosquitto.address, "out") as publisher:
        for n in range(10):
            await publisher.publish(f"devices/d{n}/telemetry", b'{"a":%d}' % n, qos=n % 3)
        await publisher.publish("devices/d/telemetry", b"{", qos=1)
        await publisher.publish("devices/d/telemetry", b"[" + b'{"a":1},' * 100_000 + b"{}]", qos=1)
        await until(lambda: slow.pending == 12)
        assert ingestor.statistics()["acked"] == 0
        # Stopped without a commit: the broker still has all but the QoS 0 ones.
        await ingestor.stop()
        assert ingestor.statistics()["acked"] == 0

        quick = RecordingRouter(commits=True)
        second = MqttIngestor(settings(mosquitto), quick)
        await second.start()
        await until(lambda: second.statistics()["acked"] == 8)
        assert sorted(routed.values for routed in quick.readings) == [[float(n)] for n in (1, 2, 4, 5, 7, 8)]
        assert sorted(letter.reason for letter in quick.letters) == ["malformed_json", "too_large"]
        assert second.statistics()["redelivered"] == 8
        await second.stop()
        second.check()
        assert second.statistics()["pending"] == 0


@needs_mosquitto
async def test_the_ingestor_stops_reading_when_too_much_is_pending(mosquitto: Mosquitto) -> None:
    router = RecordingRouter()
    ingestor = MqttIngestor(settings(mosquitto, max_pending=100), router)
    await ingestor.start()
    await ingestor.connected()
    count = 30_000
    payload = b'{"a":1,"text":"' + b"x" * 500 + b'"}'
    async with client(mosquitto.address, "out") as publisher:
        await publisher.publish("devices/d/telemetry", payload, qos=1)
        for _ in range(count - 1):
            await publisher.publish("devices/d/telemetry", payload, qos=0)
        await until(lambda: ingestor.statistics()["paused"])
        assert len(router.readings) < count
        router.commits = True
        router.commit()
        await until(lambda: len(router.readings) >= count, 20)
        assert ingestor.statistics()["pauses"] >= 1
    await ingestor.stop()
    assert ingestor.statistics()["pending"] == 0


@needs_mosquitto
async def test_the_embedded_broker_keeps_a_backlog_and_serves_both_versions(tmp_path: Path) -> None:
    inbox = Inbox()
    lines = {
        version: [b"%s %d" % (version, n) for n in range(25_000)] for version in (b"mqttv311", b"mqttv5")
    }
    async with (
        EmbeddedBroker(free_port(), tmp_path) as broker,
        client(
            broker.direct, "in", subscriptions=(("devices/+/telemetry", 1),), on_packets=inbox.take
        ) as reader,
    ):
        reader.pause()
        for version, messages in lines.items():
            arguments = ["-V", version, "-p", str(broker.address.port), "-q", "1", "-l"]
            process = await asyncio.create_subprocess_exec(
                "mosquitto_pub", *arguments, "-t", "devices/d/telemetry", stdin=asyncio.subprocess.PIPE
            )
            await process.communicate(b"\n".join(messages))
            assert process.returncode == 0
        assert not inbox.packets
        reader.resume()
        await until(lambda: len(inbox.packets) >= 50_000, 20)
        assert inbox.payloads == lines[b"mqttv311"] + lines[b"mqttv5"]
        async with client(broker.address, "out") as publisher:
            for qos in range(3):
                await publisher.publish("devices/d/telemetry", b"%d" % qos * 1_500_000, qos=qos)
        await until(lambda: len(inbox.packets) == 50_003)
        assert {len(payload) for payload in inbox.payloads[-3:]} == {1_500_000}
    assert not broker.is_running


async def test_the_front_door_drops_what_is_not_mqtt(tmp_path: Path) -> None:
    async with EmbeddedBroker(free_port(), tmp_path) as broker:
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\x10" + b"\xff" * 20, b"\x10\x0c\x00\x04MQTT\x09"):
            reader, writer = await asyncio.open_connection(broker.address.host, broker.address.port)
            writer.write(greeting)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        async with client(broker.address, "c") as welcome:
            assert welcome.is_connected


async def test_the_embedded_broker_ends_with_its_parent(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import asyncio, pathlib, sys\n"
        "from sensorium.ingest.broker import EmbeddedBroker\n"
        "async def main():\n"
        f"    async with EmbeddedBroker({port}, pathlib.Path({str(tmp_path)!r})):\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    async def gone() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return True
        writer.close()
        return False

    async with asyncio.timeout(5):
        while not await gone():
            await asyncio.sleep(0.01)
