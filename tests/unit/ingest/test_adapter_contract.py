"""What every way in keeps, whatever its protocol: the same tests over all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_rigs import (
    MAX_PENDING,
    ChirpstackRig,
    CoapRig,
    HttpRig,
    KafkaRig,
    MqttRig,
    Rig,
    SparkplugRig,
    TtsMqttRig,
    WebhookRig,
)

from sensorium.ingest.broker import EmbeddedBroker, free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.replay import content_of
from sensorium.serve import lorawan, telemetry

ON_A_BROKER = {
    "mqtt": MqttRig,
    "chirpstack": ChirpstackRig,
    "the things stack by mqtt": TtsMqttRig,
    "sparkplug": SparkplugRig,
}
ANSWERING = {"coap": CoapRig, "http": HttpRig, "the things stack": WebhookRig}
# Joining a group of Kafka takes seconds.
RIGS = [*ON_A_BROKER, *ANSWERING, pytest.param("kafka", marks=pytest.mark.slow)]


async def until(condition: Callable[[], object], deadline_s: float = 20.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrokerAddress]:
    directory: Path = tmp_path_factory.mktemp("broker")
    async with EmbeddedBroker(free_port(), directory) as running:
        yield running.address


@pytest.fixture(params=RIGS)
async def rig(
    request: pytest.FixtureRequest, broker: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    for module in (telemetry, lorawan):
        monkeypatch.setattr(module, "ASK_PENDING", MAX_PENDING)
    name: Any = request.param
    made: Rig = (
        ON_A_BROKER[name](broker)
        if name in ON_A_BROKER
        else KafkaRig()
        if name == "kafka"
        else ANSWERING[name]()
    )
    async with made as running:
        yield running


async def some_turns() -> None:
    """Of the loop: enough for what waits for nothing else."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_reading_is_acknowledged_after_its_commit_only(rig: Rig) -> None:
    for number in (1, 2):
        await rig.send(rig.good())
        await until(lambda number=number: len(rig.router.readings) == number)
        await some_turns()
        assert len(rig.answers()) == number - 1
        rig.router.commit()
        await until(lambda number=number: rig.answers() == ["accepted"] * number)
    assert rig.router.letters == []


async def test_garbage_is_a_dead_letter_and_the_rest_goes_on(rig: Rig) -> None:
    await rig.send(rig.garbage)
    await until(lambda: rig.router.letters)
    assert rig.answers() == [], "a dead letter is committed before it is acknowledged, too"
    rig.router.commit()
    await until(lambda: rig.answers())
    await rig.send(rig.good())
    await until(lambda: len(rig.router.readings) == 1)
    rig.router.commit()
    await until(lambda: len(rig.answers()) == 2)
    [letter] = rig.router.letters
    assert (letter.source, letter.payload) == (rig.source, rig.garbage)
    assert letter.reason.startswith("malformed_")
    assert content_of(letter) is rig.content, "it can go its way again"
    assert rig.answers() == (["refused", "accepted"] if rig.tells else ["accepted", "accepted"])


async def test_too_much_is_pushed_back_and_comes_later(rig: Rig) -> None:
    sent = 6
    for _ in range(sent):
        await rig.send(rig.good())
    await until(rig.pushed_back)
    rig.router.commits = True
    rig.router.commit()
    await until(lambda: len(rig.answers()) == sent)
    assert set(rig.answers()) <= {"accepted", "later"}
    await rig.send(rig.good())
    await until(lambda: len(rig.answers()) == sent + 1)
    assert rig.answers()[-1] == "accepted"
    assert len(rig.router.readings) == rig.answers().count("accepted"), (
        "nothing is lost, nothing is taken twice"
    )


async def test_stopping_finishes_what_was_taken(rig: Rig) -> None:
    if isinstance(rig, HttpRig):
        pytest.skip("requests end with their answers; the server around them is Ray Serve")
    await rig.send(rig.good())
    await until(lambda: rig.router.readings)
    stopping = asyncio.create_task(rig.stop())
    await some_turns()
    assert not stopping.done()
    assert rig.answers() == []
    rig.router.commit()
    async with asyncio.timeout(10):
        await stopping
    await until(lambda: rig.answers() == ["accepted"])
