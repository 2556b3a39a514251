"""Commands over CoAP: a device asks, is told the same until it answers, and is heard."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiocoap
import cbor2
import pytest
from coap_world import NOW_MS, CoapWorld, coap_world

from sensorium.actors.host import HostSettings
from sensorium.actors.messages import ChangeTwin, SendCommand
from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.twin import TWIN


@pytest.fixture
async def world() -> AsyncIterator[CoapWorld]:
    profiles = Profiles(Profile(downlink="coap"))
    async with coap_world(host_settings=HostSettings(profiles=profiles)) as running:
        await running.registered("d1")
        yield running


async def commanded(world: CoapWorld, command_id: str, **parameters: Any) -> None:
    await world.router.ask(SendCommand("d1", command_id, "open", parameters, 60_000, NOW_MS + 3_600_000))


async def asked(world: CoapWorld, **options: Any) -> Any:
    answer = await world.request(aiocoap.GET, "/devices/d1/commands", **options)
    assert answer.code.dotted == "2.05"
    return answer.payload


async def test_a_device_asks_and_answers_in_order(world: CoapWorld) -> None:
    assert json.loads(await asked(world)) == []
    await commanded(world, "c1", text="x" * 3_000)  # in several blocks
    await commanded(world, "c2")
    for _ in range(2):
        [told] = json.loads(await asked(world))
        assert (told["command_id"], told["attempt"]) == ("c1", 1)
        assert len(told["parameters"]["text"]) == 3_000
    big = json.dumps({"status": "succeeded", "result": "y" * 3_000}).encode()
    answer = await world.request(
        aiocoap.POST, "/devices/d1/commands/c1/response", payload=big, content_format=50
    )
    assert answer.code.dotted == "2.04"
    assert len(world.store.commands["c1"].result) == 3_000
    [told] = cbor2.loads(await asked(world, accept=60))
    assert told["command_id"] == "c2"
    answer = await world.request(
        aiocoap.POST,
        "/devices/d1/commands/c2/response",
        payload=cbor2.dumps({"status": "failed", "reason": "stuck"}),
        content_format=60,
    )
    assert answer.code.dotted == "2.04"
    assert (world.store.commands["c2"].state, world.store.commands["c2"].reason) == ("FAILED", "stuck")


@pytest.mark.parametrize(
    ("path", "payload", "content_format", "code"),
    [
        ("/devices/d1/commands/c1/response", b"{", 50, "4.00"),
        ("/devices/d1/commands/c1/response", b'{"status": "perhaps"}', 50, "4.00"),
        ("/devices/d1/commands/c1/response", b"\xff", 60, "4.00"),
        ("/devices/d1/commands/c1/response", b"{}", 42, "4.15"),
        ("/devices/d1/commands/c9/response", b'{"status": "succeeded"}', 50, "4.00"),
        ("/devices/d1/commands/c1", b"{}", 50, "4.04"),
        ("/devices/nobody/commands/c1/response", b'{"status": "succeeded"}', 50, "4.04"),
    ],
)
async def test_what_is_wrong_is_said_and_changes_nothing(
    world: CoapWorld, path: str, payload: bytes, content_format: int, code: str
) -> None:
    await commanded(world, "c1")
    await asked(world)
    answer = await world.request(aiocoap.POST, path, payload=payload, content_format=content_format)
    assert answer.code.dotted == code
    assert world.store.commands["c1"].state == "SENT"


async def desired(world: CoapWorld, **values: Any) -> None:
    await world.router.ask(ChangeTwin("d1", desired=values))


async def test_a_device_asks_for_its_twin_and_reports(world: CoapWorld) -> None:
    answer = await world.request(aiocoap.GET, "/devices/d1/twin/desired")
    assert json.loads(answer.payload) == {"version": 0, "delta": {}, "changed_ms": None}
    await desired(world, interval_s=10, text="x" * 3_000)
    assert world.store.twins["d1"].ready
    told = cbor2.loads((await world.request(aiocoap.GET, "/devices/d1/twin/desired", accept=60)).payload)
    assert (told["version"], told["delta"]["interval_s"], len(told["delta"]["text"])) == (1, 10, 3_000)
    assert (world.store.twins["d1"].ready, world.store.twins["d1"].told_version) == (False, 1)
    for payload, content_format in ((b'{"interval_s": 10}', 50), (cbor2.dumps({"text": "x" * 3_000}), 60)):
        answer = await world.request(
            aiocoap.POST, "/devices/d1/twin/reported", payload=payload, content_format=content_format
        )
        assert answer.code.dotted == "2.04"
    twin = world.store.twins["d1"]
    assert twin.reported.values == twin.desired.values
    assert twin.reported.fields["/text"].by == "coap"


@pytest.mark.parametrize(
    ("path", "payload", "code"),
    [
        ("/devices/d1/twin/reported", b"[1]", "4.00"),
        ("/devices/d1/twin/reported", b"{", "4.00"),
        ("/devices/d1/twin/reported", b'{"a":' * 20 + b"1" + b"}" * 20, "4.13"),
        ("/devices/nobody/twin/reported", b"{}", "4.04"),
        ("/devices/d1/twin/desired", b"{}", "4.04"),
    ],
)
async def test_a_bad_report_changes_nothing(world: CoapWorld, path: str, payload: bytes, code: str) -> None:
    answer = await world.request(aiocoap.POST, path, payload=payload, content_format=50)
    assert answer.code.dotted == code
    assert not world.store.twins


async def test_the_answer_to_a_reading_tells_of_the_twin(world: CoapWorld) -> None:
    await desired(world, a=1)
    post = {"payload": b'{"t": 1}', "content_format": 50}
    answer = await world.request(aiocoap.POST, "/sensors/d1?twin", **post)
    assert json.loads(answer.payload)["delta"] == {"a": 1}
    await commanded(world, "c1")
    answer = await world.request(aiocoap.POST, "/sensors/d1?twin&commands", **post)
    both = json.loads(answer.payload)
    assert ([c["command_id"] for c in both["commands"]], both["twin"]["version"]) == (["c1"], 1)


async def test_a_device_that_observes_its_twin_is_told(world: CoapWorld) -> None:
    message = aiocoap.Message(code=aiocoap.GET, uri=world.uri("/devices/d1/twin/desired"), observe=0)
    request = world.client.request(message)
    async with asyncio.timeout(10):
        assert json.loads((await request.response).payload)["version"] == 0
        await desired(world, a=1)
        world.ready.put_nowait(("d1", TWIN, 0))
        async for notification in request.observation:
            assert json.loads(notification.payload)["delta"] == {"a": 1}
            break
    request.observation.cancel()


async def test_a_device_that_observes_is_told(world: CoapWorld) -> None:
    request = world.client.request(
        aiocoap.Message(code=aiocoap.GET, uri=world.uri("/devices/d1/commands"), observe=0)
    )
    told: asyncio.Queue[list[Any]] = asyncio.Queue()

    async def listen() -> None:
        async for notification in request.observation:
            told.put_nowait(json.loads(notification.payload))

    assert json.loads((await request.response).payload) == []
    listening = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(15):
            for number in (1, 2):
                await commanded(world, f"c{number}")
                assert world.store.commands[f"c{number}"].state == "QUEUED"
                world.ready.put_nowait(("d1", f"c{number}", 1))
                [command] = await told.get()
                assert command["command_id"] == f"c{number}"
                assert world.store.commands[f"c{number}"].state == "SENT"
                await world.request(
                    aiocoap.POST,
                    f"/devices/d1/commands/c{number}/response",
                    payload=b'{"status": "succeeded"}',
                    content_format=50,
                )
    finally:
        request.observation.cancel()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_the_answer_to_a_reading_holds_commands(world: CoapWorld) -> None:
    reading = {"payload": b'{"t": 1}', "content_format": 50}
    plain = await world.request(aiocoap.POST, "/sensors/d1", **reading)
    assert (plain.code.dotted, plain.payload) == ("2.04", b"")
    answer = await world.request(aiocoap.POST, "/sensors/d1?commands", **reading)
    assert json.loads(answer.payload) == []
    await commanded(world, "c1", percent=40)
    answer = await world.request(aiocoap.POST, "/sensors/d1?commands", accept=60, **reading)
    [told] = cbor2.loads(answer.payload)
    assert (told["command_id"], told["parameters"]) == ("c1", {"percent": 40})
    assert world.store.commands["c1"].state == "SENT"
    refused = await world.request(aiocoap.POST, "/sensors/d1?commands", accept=42, **reading)
    assert refused.code.dotted == "4.06"


async def test_commands_that_do_not_fit_are_asked_for(world: CoapWorld) -> None:
    await commanded(world, "c1", text="x" * 3_000)
    answer = await world.post("d1?commands", b'{"t": 1}')
    assert (answer.code.dotted, answer.payload) == ("2.04", b"")
    [told] = json.loads(await asked(world))
    assert (told["command_id"], told["attempt"]) == ("c1", 1)
