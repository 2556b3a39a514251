"""The CoAP server, asked by libcoap's client: the same commands as on the documentation's page."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import cbor2
import pytest
from coap_world import NOW_MS, CoapWorld, coap_world

from sensorium.actors.host import HostSettings
from sensorium.actors.messages import SendCommand
from sensorium.actors.profile import Profile, Profiles

COAP_CLIENT = next(
    (
        found
        for name in ("coap-client-notls", "coap-client-openssl", "coap-client")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(COAP_CLIENT is None, reason="libcoap's coap-client is not installed")


@pytest.fixture
async def world() -> AsyncIterator[CoapWorld]:
    async with coap_world() as world:
        await world.registered("d1")
        yield world


async def coap_client(world: CoapWorld, path: str, *options: str | Path) -> tuple[str, str]:
    assert COAP_CLIENT is not None
    process = await asyncio.create_subprocess_exec(
        COAP_CLIENT,
        *map(str, options),
        world.uri(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, errors = await process.communicate()
    return out.decode(), errors.decode()


@pytest.mark.parametrize(
    ("content_format", "content"),
    [
        ("application/json", b'{"t": 21.5}'),
        ("application/cbor", cbor2.dumps({"t": 21.5})),
        ("application/senml+json", b'[{"bn": "d1:", "n": "t", "v": 21.5}]'),
        ("application/senml+cbor", cbor2.dumps([{0: "t", 2: 21.5}])),
    ],
)
async def test_libcoap_posts_every_format(
    world: CoapWorld, tmp_path: Path, content_format: str, content: bytes
) -> None:
    file = tmp_path / "content"
    file.write_bytes(content)
    number = {"json": "50", "cbor": "60", "senml+json": "110", "senml+cbor": "112"}
    options = ("-m", "post", "-t", number[content_format.split("/")[1]], "-f", file, "-B", "5")
    assert await coap_client(world, "/sensors/d1", *options) == ("", "")
    [reading] = world.store.readings
    assert (reading.metric_set.names, list(reading.values)) == (("t",), [21.5])


async def test_libcoap_sees_why_it_is_refused(world: CoapWorld) -> None:
    out, errors = await coap_client(world, "/sensors/nobody", "-m", "post", "-e", '{"t":1}', "-B", "5")
    assert "4.04" in out + errors
    assert "unregistered" in out + errors


async def test_libcoap_transfers_blocks_both_ways(world: CoapWorld, tmp_path: Path) -> None:
    metrics = {f"metric_{i:03}": float(i) for i in range(200)}
    file = tmp_path / "content"
    file.write_text(json.dumps(metrics))
    options = ("-m", "post", "-t", "50", "-f", file, "-b", "256", "-B", "10")
    assert await coap_client(world, "/sensors/d1", *options) == ("", "")
    out, _ = await coap_client(world, "/devices/d1/latest", "-b", "128", "-B", "10")
    assert {name: v["value"] for name, v in json.loads(out)["metrics"].items()} == metrics


async def test_libcoap_observes(world: CoapWorld) -> None:
    await world.post("d1", b'{"t": 1}')
    watching = asyncio.create_task(coap_client(world, "/devices/d1/latest", "-s", "3", "-B", "3"))
    async with asyncio.timeout(10):
        while not world.server.statistics()["observers"]:
            await asyncio.sleep(0.01)
    await world.post("d1", b'{"u": 2}')
    out, _ = await watching
    assert '"u"' in out
    assert out.count('"device_id"') >= 2


async def test_libcoap_discovers(world: CoapWorld) -> None:
    out, _ = await coap_client(world, "/.well-known/core", "-B", "5")
    assert 'rt="sensorium.sensor"' in out


async def test_libcoap_observes_its_commands_and_has_them_with_a_reading() -> None:
    profiles = Profiles(Profile(downlink="coap"))
    async with coap_world(host_settings=HostSettings(profiles=profiles)) as world:
        await world.registered("d1")
        watching = asyncio.create_task(coap_client(world, "/devices/d1/commands", "-s", "3", "-B", "3"))
        async with asyncio.timeout(10):
            while not world.server.statistics()["observers"]:
                await asyncio.sleep(0.01)
        await world.router.ask(SendCommand("d1", "c1", "open", {}, 60_000, NOW_MS + 3_600_000))
        world.ready.put_nowait(("d1", "c1", 1))
        out, _ = await watching
        assert out.startswith("[]")
        assert '"command_id":"c1"' in out
        options = ("-m", "post", "-t", "50", "-e", '{"flow": 3.5}', "-B", "5")
        out, _ = await coap_client(world, "/sensors/d1?commands", *options)
        assert json.loads(out)[0]["attempt"] == 1


async def test_the_page_of_the_documentation_works(world: CoapWorld) -> None:
    await world.registered("sensor-001")
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    (commands,) = re.findall(r"```sh\n(coap-client-notls.*?)```", page, re.DOTALL)
    script = commands.replace("coap://127.0.0.1/", world.uri("/")).replace("-s 60", "-s 1")
    script = script.replace("coap-client-notls", str(COAP_CLIENT))
    process = await asyncio.create_subprocess_exec("bash", "-ec", script, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert [list(reading.values) for reading in world.store.readings] == [[23.5], [23.5]]
    assert out.count(b'"temperature"') >= 2
    assert b'rt="sensorium.sensor"' in out
