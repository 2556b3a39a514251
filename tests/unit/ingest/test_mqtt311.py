"""The small client of MQTT 3.1.1: what it makes of peers that answer oddly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sensorium.ingest.mqtt311 import Mqtt311Client, Mqtt311Options
from sensorium.ingest.mqtt_address import BrokerAddress

CONNACK = b"\x20\x02\x00\x00"
SUBACK = b"\x90\x03\x00\x01\x00"
QUICK = Mqtt311Options(
    retry_min_s=0.01, retry_max_s=0.02, refused_retry_s=0.02, connect_timeout_s=5, max_packet_bytes=64
)


@asynccontextmanager
async def against(*answers: bytes) -> AsyncIterator[tuple[Mqtt311Client, list[tuple[str, bytes]]]]:
    """A client of a peer that says `answers`, each after it has heard something, at every connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for said in answers:
            await reader.read(1024)
            writer.write(said)
        await reader.read()
        writer.close()

    taken: list[tuple[str, bytes]] = []

    async def take(topic: str, payload: bytes) -> None:
        taken.append((topic, payload))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Mqtt311Client(BrokerAddress(host="127.0.0.1", port=port), "c", ("a",), take, QUICK)
    running = asyncio.create_task(client.run())
    try:
        yield client, taken
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_messages_are_handed_on_in_order() -> None:
    publications = b"\x30\x05\x00\x01ahi" + b"\x30\x03\x00\x01b"
    async with against(CONNACK, SUBACK + publications) as (client, taken):
        await until(lambda: len(taken) == 2)
        assert taken == [("a", b"hi"), ("b", b"")]
        await client.publish("x", b"y")
        assert client.statistics()["connects"] == 1


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((b"\x20\x02\x00\x05",), "not authorized"),
        ((b"\x20\x02\x00\x04",), "bad user name"),
        ((b"\x30\x02\x00\x00",), "does not speak MQTT 3.1.1"),
        ((CONNACK, b"\x90\x03\x00\x01\x80"), "the subscription 'a'"),
        ((CONNACK, b"\x90\x02\x00\x01"), "did not answer the subscription"),
        ((CONNACK, SUBACK + b"\x30\x41" + bytes(65)), "65 bytes"),
        ((CONNACK, SUBACK + b"\x30\xff\xff\xff\xff"), "more than four bytes"),
        ((CONNACK, SUBACK + b"\x30\x02\x00\x09"), "cannot be"),
        ((CONNACK, SUBACK + b"\x32\x04\x00\x01a\x00"), "cannot be"),
    ],
)
async def test_what_is_wrong_is_said_and_tried_again(answers: tuple[bytes, ...], says: str) -> None:
    async with against(*answers) as (client, taken):
        await until(lambda: says in client.statistics()["last_error"])
        assert taken == []
