"""Commands over CoAP: a device asks, is told the same until it answers, and is heard."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiocoap
import cbor2
import pytest
from coap_world import NOW_MS, CoapWorld, coap_world

from sensorium.actors.host import HostSettings
from sensorium.actors.messages import SendCommand
from sensorium.actors.profile import Profile, Profiles


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
