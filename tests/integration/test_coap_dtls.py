"""CoAP over DTLS with pre-shared keys, asked by libcoap's clients over OpenSSL and over GnuTLS."""

import asyncio
import json
import os
import random
import re
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coap_world import CoapWorld, coap_world

from sensorium.actors.messages import SendCommand
from sensorium.actors.placement import device_key
from sensorium.ingest import dtls
from sensorium.ingest.broker import free_port

pytest.importorskip("mbedtls", reason="the extra `dtls` is not installed")
CLIENTS = [name for name in ("coap-client-openssl", "coap-client-gnutls") if shutil.which(name)]
pytestmark = pytest.mark.skipif(len(CLIENTS) < 2, reason="libcoap's clients with DTLS are not installed")

KEY, OTHER = b"0123456789abcdef", b"fedcba9876543210"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CoapWorld]:
    keys = tmp_path / "keys"
    keys.write_text(f"# of the test\nd1:{KEY.hex()}\nd2:{OTHER.hex()}\n")
    async with coap_world(dtls_keys=str(keys), dtls_port=free_port()) as world:
        await world.registered("d1", "d2", "open")
        yield world


async def ask(
    world: CoapWorld, client: str, path: str, *options: str | Path, device: str = "d1", key: bytes = KEY
) -> str:
    process = await asyncio.create_subprocess_exec(
        *(client, "-B", "5", "-u", device, "-k", key.decode(), *map(str, options)),
        f"coaps://127.0.0.1:{world.settings.dtls_port}{path}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    return out.decode()


def statistics(world: CoapWorld) -> dict[str, int]:
    return world.server.statistics()["dtls"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_device_posts_and_reads(world: CoapWorld, client: str) -> None:
    assert await ask(world, client, "/sensors/d1", "-m", "post", "-t", "50", "-e", '{"t": 21.5}') == ""
    [reading] = world.store.readings
    assert (reading.device, list(reading.values)) == (device_key("d1"), [21.5])
    latest = json.loads(await ask(world, client, "/devices/d1/latest"))
    assert latest["metrics"]["t"]["value"] == 21.5
    assert statistics(world)["established"] == 2


@pytest.mark.parametrize("client", CLIENTS)
async def test_blocks_go_both_ways(world: CoapWorld, client: str, tmp_path: Path) -> None:
    metrics = {f"metric_{i:03}": float(i) for i in range(200)}
    file = tmp_path / "content"
    file.write_text(json.dumps(metrics))
    assert await ask(world, client, "/sensors/d1", "-m", "post", "-t", "50", "-f", file, "-b", "256") == ""
    latest = json.loads(await ask(world, client, "/devices/d1/latest", "-b", "128"))
    assert {name: v["value"] for name, v in latest["metrics"].items()} == metrics


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_device_observes_its_commands(world: CoapWorld, client: str) -> None:
    watching = asyncio.create_task(ask(world, client, "/devices/d1/commands", "-s", "3", "-w"))
    async with asyncio.timeout(10):
        while not world.server.statistics()["observers"]:
            await asyncio.sleep(0.02)
    now_ms = 1_704_110_460_000
    await world.router.ask(SendCommand("d1", "c1", "open", {}, 30_000, now_ms + 60_000, 0, None))
    world.ready.put_nowait(("d1", "c1", 1))
    said = await watching
    assert '"command":"open"' in said
    reply = ("-m", "post", "-t", "50", "-e", '{"status": "succeeded"}')
    assert await ask(world, client, "/devices/d1/commands/c1/response", *reply) == ""
    # Who goes takes the observation along.
    async with asyncio.timeout(10):
        while world.server.statistics()["observers"]:
            await asyncio.sleep(0.02)
    assert statistics(world)["sessions"] == 0


async def test_a_device_speaks_for_itself_only(world: CoapWorld) -> None:
    post = ("-m", "post", "-t", "50", "-e", '{"t": 1}')
    assert "4.03" in await ask(world, CLIENTS[0], "/sensors/d2", *post)
    assert "4.03" in await ask(world, CLIENTS[0], "/devices/d2/commands")
    # Who has a key must use it; who has none need not.
    plain = await world.post("d1", b'{"t": 1}')
    assert (plain.code.dotted, b"DTLS" in plain.payload) == ("4.01", True)
    assert (await world.post("open", b'{"t": 1}')).code.dotted == "2.04"
    assert [r.device for r in world.store.readings] == [device_key("open")]


@pytest.mark.parametrize("client", CLIENTS)
async def test_who_has_not_the_key_says_nothing(world: CoapWorld, client: str) -> None:
    post = ("-m", "post", "-t", "50", "-e", '{"t": 1}', "-B", "2")
    for device, key in (("d1", OTHER), ("nobody", KEY), ("x" * 200, KEY)):
        await ask(world, client, "/sensors/d1", *post, device=device, key=key)
    assert not world.store.readings
    counts = statistics(world)
    assert counts["handshakes_failed"] >= 2
    assert (counts["sessions"], counts.get("established", 0)) == (0, 0)
    assert await ask(world, client, "/sensors/d1", *post) == ""


async def test_garbage_ends_nothing(world: CoapWorld) -> None:
    """Datagrams of all kinds, also from the address of a session, while its device goes on."""
    seed = int(os.environ.get("SENSORIUM_SEED", "7"))
    chance = random.Random(seed)
    watching = asyncio.create_task(ask(world, CLIENTS[0], "/devices/d1/latest", "-s", "3"))
    async with asyncio.timeout(10):
        while not statistics(world)["sessions"]:
            await asyncio.sleep(0.02)
    server = world.server._dtls
    assert server is not None
    [address] = server._sessions
    hello = bytes.fromhex("16fefd0000000000000000002a010000") + chance.randbytes(40)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for n in range(600):
            kind = chance.choice((0x14, 0x15, 0x16, 0x17, 0x40))
            head = bytes([kind]) + b"\xfe\xfd" + chance.choice((b"\0\0", b"\0\1")) + chance.randbytes(6)
            data = chance.choice((head + chance.randbytes(chance.randrange(200)), hello[: n % 60], b""))
            stranger.sendto(data, ("127.0.0.1", world.settings.dtls_port))
            server.datagram_received(data, address)
            if n % 50 == 0:
                await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await ask(world, CLIENTS[1], "/sensors/d1", "-m", "post", "-t", "50", "-e", '{"t": 4.5}') == ""
    assert "4.5" in await watching, f"seed {seed}"
    assert statistics(world)["handshakes"] == 0


async def test_who_shows_no_cookie_leaves_nothing_behind(world: CoapWorld) -> None:
    """A ClientHello from an address that is not its sender's."""
    server = world.server._dtls
    assert server is not None
    seen: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        process = await asyncio.create_subprocess_exec(
            *(CLIENTS[0], "-B", "1", "-u", "d1", "-k", KEY.decode()),
            f"coaps://127.0.0.1:{listener.getsockname()[1]}/devices/d1/latest",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        listener.settimeout(10)
        hello = await asyncio.to_thread(listener.recv, 2_048)
        process.kill()
        await process.wait()
        for port in range(1_000):
            server.datagram_received(hello, ("127.0.0.1", 20_000 + port))
    assert not seen
    assert (statistics(world)["handshakes"], statistics(world)["sessions"]) == (0, 0)


async def test_a_key_that_is_taken_away_ends_the_session(
    world: CoapWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = asyncio.create_task(ask(world, CLIENTS[0], "/devices/d1/latest", "-s", "4"))
    async with asyncio.timeout(10):
        while not statistics(world)["sessions"]:
            await asyncio.sleep(0.02)
        keys = Path(str(world.settings.dtls_keys))
        keys.write_text(f"d2:{OTHER.hex()}\nd3:{KEY.hex()}\n")
        while statistics(world).get("key_changed", 0) == 0:
            await asyncio.sleep(0.05)
    assert statistics(world)["sessions"] == 0
    await watching
    await ask(world, CLIENTS[0], "/devices/d1/latest", "-B", "2")
    assert statistics(world)["established"] == 1
    keys.write_text("d3:no key\n")  # what cannot be read changes nothing
    await asyncio.sleep(2 * dtls.LOOK_EVERY_S)
    await world.registered("d3")
    post = ("-m", "post", "-t", "50", "-e", '{"t": 1}')
    assert await ask(world, CLIENTS[0], "/sensors/d3", *post, device="d3") == ""


async def test_sessions_have_a_bound_and_an_end(world: CoapWorld) -> None:
    server = world.server._dtls
    assert server is not None
    server._max_sessions = 1
    first = asyncio.create_task(ask(world, CLIENTS[0], "/devices/d1/latest", "-s", "6"))
    async with asyncio.timeout(20):
        while not statistics(world)["sessions"]:
            await asyncio.sleep(0.02)
        second = asyncio.create_task(
            ask(world, CLIENTS[1], "/devices/d2/latest", "-s", "6", device="d2", key=OTHER)
        )
        while not statistics(world).get("displaced"):
            await asyncio.sleep(0.02)
        assert statistics(world)["sessions"] == 1
        server._idle_s = 0.5
        while not statistics(world).get("idle"):
            await asyncio.sleep(0.05)
    assert statistics(world)["sessions"] == 0
    await asyncio.gather(first, second)


async def test_the_page_of_the_documentation_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    (script,) = re.findall(r"```sh\n(# with a line.*?)```", page, re.DOTALL)
    keys = tmp_path / "keys"
    keys.write_text(f"sensor-003:{b'a key of 16 byte'.hex()}\n")
    async with coap_world(dtls_keys=str(keys), dtls_port=free_port()) as world:
        await world.registered("sensor-003")
        script = script.replace("coaps://127.0.0.1/", f"coaps://127.0.0.1:{world.settings.dtls_port}/")
        process = await asyncio.create_subprocess_exec("bash", "-ec", script, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            out, _ = await process.communicate()
        assert process.returncode == 0
        assert json.loads(out)["metrics"]["temperature"]["value"] == 23.5
