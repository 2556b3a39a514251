"""The CoAP server, asked by aiocoap's client and by raw datagrams."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiocoap
import cbor2
import pytest
from coap_world import NOW_MS, CoapWorld, coap_world

from sensorium.actors.host import HostSettings
from sensorium.actors.profile import Profile, Profiles, RateLimit
from sensorium.actors.schema import MetricSpec, Outside, Schema
from sensorium.ingest import coap_resources
from sensorium.ingest.coap import check_port
from sensorium.ingest.coap_security import OscoreContexts
from sensorium.ingest.decode import Bounds
from sensorium.ingest.errors import InvalidContext
from sensorium.ingest.pipeline import Pipeline

AT_MS = 1_704_110_400_000


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> AsyncIterator[CoapWorld]:
    async with coap_world() as world:
        await world.registered("d1")
        yield world


def values(world: CoapWorld) -> list[tuple[int, dict[str, Any]]]:
    return [(r.time_ms, dict(zip(r.metric_set.names, r.values, strict=True))) for r in world.store.readings]


@pytest.mark.parametrize(
    ("content_format", "payload"),
    [
        (50, json.dumps({"t": 21.5, "timestamp": AT_MS}).encode()),
        (None, json.dumps({"t": 21.5, "timestamp": AT_MS}).encode()),
        (60, cbor2.dumps({"t": 21.5, "timestamp": AT_MS})),
        (110, json.dumps([{"bn": "d1", "bt": AT_MS / 1000, "n": "t", "v": 21.5}]).encode()),
        (112, cbor2.dumps([{-2: "d1", -3: AT_MS / 1000, 0: "t", 2: 21.5}])),
    ],
)
async def test_four_formats_are_committed_before_the_answer(
    world: CoapWorld, content_format: int | None, payload: bytes
) -> None:
    answer = await world.post("d1", payload, content_format)
    assert (str(answer.code), answer.payload) == ("2.04 Changed", b"")
    assert values(world) == [(AT_MS, {"t": 21.5})]


@pytest.mark.parametrize(
    ("device_id", "payload", "content_format", "code", "diagnostic"),
    [
        ("d1", b"{", 50, "4.00", "malformed_json: "),
        ("d1", b"\xff", 60, "4.00", "malformed_cbor: "),
        ("nobody", b'{"a":1}', 50, "4.04", "unregistered: "),
        ("d1", b"x" * 1000, 50, "4.13", "too_large: 1000 bytes; at most 500 are taken"),
        ("d1", b"x" * 5000, 50, "4.13", "at most 500 bytes are taken"),
        ("d1", b"a=1", 0, "4.15", "known content formats: 50, 60, 110, 112"),
        ("d1/x", b'{"a":1}', 50, "4.04", "post to /sensors/{device id}"),
    ],
)
async def test_refusals_say_why(
    device_id: str, payload: bytes, content_format: int, code: str, diagnostic: str
) -> None:
    async with coap_world(bounds=Bounds(max_payload_bytes=500)) as world:
        await world.registered("d1")
        answer = await world.post(device_id, payload, content_format)
        assert answer.code.dotted == code
        assert answer.payload.decode().startswith(diagnostic)
        assert world.store.readings == []


async def test_other_methods_are_not_allowed(world: CoapWorld) -> None:
    assert (await world.request(aiocoap.PUT, "/sensors/d1")).code.dotted == "4.05"
    assert (await world.request(aiocoap.GET, "/nothing")).code.dotted == "4.04"
    assert (await world.request(aiocoap.GET, "/devices/d1/first")).code.dotted == "4.04"


async def test_while_the_log_is_down_clients_are_told_when_to_come_back(world: CoapWorld) -> None:
    world.store.down = True
    waiting = asyncio.create_task(world.post("d1", b'{"a":1}'))
    await until(lambda: world.router.failing("d1"))
    answer = await world.post("d1", b'{"a":2}')
    assert (answer.code.dotted, answer.opt.max_age) == ("5.03", 5)
    assert (await world.request(aiocoap.GET, "/devices/d1/latest")).code.dotted == "5.03"
    assert not waiting.done()
    world.store.down = False
    assert (await waiting).code.dotted == "2.04"
    assert values(world) == [(NOW_MS, {"a": 1.0})]


async def test_too_much_pending_is_refused() -> None:
    async with coap_world(max_pending=0) as world:
        answer = await world.post("d1", b'{"a":1}')
        assert (answer.code.dotted, answer.opt.max_age) == ("5.03", 1)


async def test_who_sends_too_much_is_told_when_to_come_back() -> None:
    async with coap_world(limit=RateLimit(rate_per_s=0.25, burst=2)) as world:
        await world.registered("d1", "d2")
        answers = [await world.post("d1", b'{"a":1}') for _ in range(3)]
        assert [answer.code.dotted for answer in answers] == ["2.04", "2.04", "4.29"]
        assert answers[2].opt.max_age == 4
        assert (await world.post("d2", b'{"a":1}')).code.dotted == "2.04"
        assert world.store.dead_letters == []


def datagram(mid: int, payload: bytes, token: bytes = b"\x01") -> bytes:
    """A confirmable POST to /sensors/d1, JSON."""
    options = b"\xb7sensors" + b"\x02d1" + b"\x11\x32"
    return bytes([0x40 | len(token), 0x02]) + mid.to_bytes(2, "big") + token + options + b"\xff" + payload


def exchanged(port: int, message: bytes, through: socket.socket) -> bytes:
    through.sendto(message, ("127.0.0.1", port))
    return through.recv(1500)


async def test_a_retransmission_is_answered_again_and_stored_once(world: CoapWorld) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.settimeout(5)
        first = await asyncio.to_thread(exchanged, world.port, datagram(7, b'{"a":1}'), device)
        again = await asyncio.to_thread(exchanged, world.port, datagram(7, b'{"a":1}'), device)
        assert first == again
        assert first[1] == 0x44  # 2.04
        assert len(world.store.readings) == 1
        await asyncio.to_thread(exchanged, world.port, datagram(8, b'{"a":1}'), device)
        assert len(world.store.readings) == 2


async def test_a_retransmission_to_a_restarted_server_is_recognised(world: CoapWorld) -> None:
    from sensorium.ingest.coap import CoapServer

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.settimeout(5)
        await asyncio.to_thread(exchanged, world.port, datagram(7, b'{"a":1}'), device)
        await world.server.stop()
        world.server = CoapServer(world.settings, world.router, lambda: NOW_MS + 2000)
        await world.server.start()
        again = await asyncio.to_thread(exchanged, world.port, datagram(7, b'{"a":1}'), device)
        assert again[1] == 0x44
        assert len(world.store.readings) == 1


async def test_latest_as_json_and_cbor(world: CoapWorld) -> None:
    await world.post("d1", json.dumps({"t": 21.5, "on": True, "timestamp": AT_MS}).encode())
    as_json = await world.request(aiocoap.GET, "/devices/d1/latest")
    assert as_json.opt.content_format == 50
    as_cbor = await world.request(aiocoap.GET, "/devices/d1/latest", accept=60)
    assert as_cbor.opt.content_format == 60
    assert json.loads(as_json.payload) == cbor2.loads(as_cbor.payload)
    assert json.loads(as_json.payload)["metrics"]["t"] == {"value": 21.5, "time_ms": AT_MS, "quality": "good"}
    assert (await world.request(aiocoap.GET, "/devices/d1/latest", accept=40)).code.dotted == "4.06"
    assert (await world.request(aiocoap.GET, "/devices/nobody/latest")).code.dotted == "4.04"


async def test_blocks_both_ways(world: CoapWorld) -> None:
    metrics = {f"metric_{i:03}": i + 0.5 for i in range(200)}
    assert (await world.post("d1", json.dumps(metrics).encode())).code.dotted == "2.04"
    assert values(world) == [(NOW_MS, metrics)]
    latest = await world.request(aiocoap.GET, "/devices/d1/latest")
    assert len(latest.payload) > 4096
    assert {name: v["value"] for name, v in json.loads(latest.payload)["metrics"].items()} == metrics


async def test_observers_hear_of_commits(world: CoapWorld) -> None:
    await world.post("d1", json.dumps({"t": 1, "timestamp": AT_MS}).encode())
    message = aiocoap.Message(code=aiocoap.GET, uri=world.uri("/devices/d1/latest"), observe=0)
    request = world.client.request(message, handle_blockwise=False)
    seen = [json.loads((await request.response).payload)["metrics"]["t"]["value"]]

    async def listen() -> None:
        async for notification in request.observation:
            seen.append(json.loads(notification.payload)["metrics"]["t"]["value"])

    listening = asyncio.create_task(listen())
    await until(lambda: world.server.statistics()["observers"] == 1)
    for value in (2, 3, 4):
        await world.post("d1", json.dumps({"t": value, "timestamp": AT_MS + value}).encode())
    # The first is told at once, the others together, a second later.
    await until(lambda: seen[-1] == 4.0)
    assert seen in ([1.0, 2.0, 4.0], [1.0, 3.0, 4.0], [1.0, 4.0])
    listening.cancel()


async def test_observers_hear_of_what_came_by_other_ways(
    world: CoapWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coap_resources, "LOOK_EVERY_S", 0.05)
    await world.post("d1", json.dumps({"t": 1, "timestamp": AT_MS}).encode())
    message = aiocoap.Message(code=aiocoap.GET, uri=world.uri("/devices/d1/latest"), observe=0)
    request = world.client.request(message, handle_blockwise=False)
    seen = [json.loads((await request.response).payload)["metrics"]["t"]["value"]]

    async def listen() -> None:
        async for notification in request.observation:
            seen.append(json.loads(notification.payload)["metrics"]["t"]["value"])

    listening = asyncio.create_task(listen())
    committed = asyncio.Event()
    payload = json.dumps({"t": 2, "timestamp": AT_MS + 1}).encode()
    by_mqtt = Pipeline(world.router)
    by_mqtt.telemetry("x", "d1", payload, AT_MS + 2, None, lambda _, __: committed.set(), None)
    await committed.wait()
    await until(lambda: seen[-1] == 2.0)
    told = world.server.statistics()["notifications"]
    await asyncio.sleep(0.3)
    assert world.server.statistics()["notifications"] == told == 1, "what is as it was is not told again"
    listening.cancel()


async def test_an_observer_that_resets_is_forgotten(world: CoapWorld) -> None:
    await world.post("d1", b'{"t":1}')
    observe = b"\x41\x01\x00\x09\x05\x60\x57devices\x02d1\x06latest"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as observer:
        observer.settimeout(5)
        first = await asyncio.to_thread(exchanged, world.port, observe, observer)
        assert first[:5] == b"\x61\x45\x00\x09\x05"
        assert world.server.statistics()["observers"] == 1
        await world.post("d1", b'{"t":2}')
        notification = await asyncio.to_thread(observer.recv, 1500)
        assert notification[:2] == b"\x41\x45"
        observer.sendto(b"\x70\x00" + notification[2:4], ("127.0.0.1", world.port))
        await until(lambda: world.server.statistics()["observers"] == 0)


async def test_the_resources_are_listed(world: CoapWorld) -> None:
    links = (await world.request(aiocoap.GET, "/.well-known/core")).payload.decode()
    assert '</sensors/>;ct="50 60 110 112";rt="sensorium.sensor"' in links
    assert '</devices/>;ct="50 60";rt="sensorium.latest";obs' in links


async def test_a_taken_port_is_refused(world: CoapWorld) -> None:
    with pytest.raises(OSError, match="CoAP cannot listen at"):
        check_port("127.0.0.1", world.port)


def context(directory: Path, sender: str, recipient: str, secret: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "settings.json").write_text(
        json.dumps({"sender-id_hex": sender, "recipient-id_hex": recipient, "secret_hex": secret})
    )
    return directory


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    context(tmp_path / "server" / "d1", "00", "01", "aa" * 16)
    context(tmp_path / "d1", "01", "00", "aa" * 16)
    return tmp_path


def with_context(world: CoapWorld, path: Path) -> None:
    world.client.client_credentials.load_from_dict({world.uri("/*"): {"oscore": {"basedir": str(path)}}})


@pytest.mark.parametrize("required", [True, False])
async def test_a_device_with_a_context_is_only_itself(contexts: Path, required: bool) -> None:
    async with coap_world(contexts_dir=str(contexts / "server"), require_oscore=required) as world:
        await world.registered("d1", "d2")
        answer = await world.post("d1", b'{"a":1}')
        assert answer.code.dotted == "4.01"
        open_answer = await world.post("d2", b'{"a":1}')
        assert open_answer.code.dotted == ("4.01" if required else "2.04")
        latest = await world.request(aiocoap.GET, "/devices/d2/latest")
        assert latest.code.dotted == ("4.01" if required else "2.05")
        with_context(world, contexts / "d1")
        assert (await world.post("d1", b'{"a":1}')).code.dotted == "2.04"
        assert (await world.post("d2", b'{"a":1}')).code.dotted == "4.03"
        assert (await world.request(aiocoap.GET, "/devices/d1/latest")).code.dotted == "2.05"
        assert len(world.store.readings) == (1 if required else 2)


async def test_a_context_outlives_a_restart(contexts: Path) -> None:
    for expected in (1, 1):
        async with coap_world(contexts_dir=str(contexts / "server")) as world:
            await world.registered("d1")
            with_context(world, contexts / "d1")
            assert (await world.post("d1", b'{"a":1}')).code.dotted == "2.04"
            assert len(world.store.readings) == expected
            for loaded in world.client.client_credentials.values():
                loaded._destroy()


def test_bad_contexts_are_named(tmp_path: Path) -> None:
    context(tmp_path / "twice" / "a", "00", "01", "aa" * 16)
    context(tmp_path / "twice" / "b", "00", "01", "bb" * 16)
    with pytest.raises(InvalidContext, match="same recipient id"):
        OscoreContexts(tmp_path / "twice")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(InvalidContext, match="missing"):
        OscoreContexts(tmp_path / "empty")
    context(tmp_path / "hex" / "a", "0", "01", "aa" * 16)
    with pytest.raises(InvalidContext, match="hex/a"):
        OscoreContexts(tmp_path / "hex")
    context(tmp_path / "used" / "a", "00", "01", "aa" * 16)
    first = OscoreContexts(tmp_path / "used")
    with pytest.raises(InvalidContext, match="in use"):
        OscoreContexts(tmp_path / "used")
    first.close()
    OscoreContexts(tmp_path / "used").close()


async def test_units_of_senml_are_converted_and_what_the_profile_rejects_is_told() -> None:
    spec = MetricSpec(unit="degF", maximum=100.0, outside=Outside.REJECT)
    profiles = Profiles(Profile(schema=Schema({"t": spec})))
    async with coap_world(HostSettings(profiles=profiles)) as world:
        await world.registered("d1")

        async def sent(value: float, unit: str) -> tuple[str, bytes]:
            pack = [{"n": "t", "u": unit, "v": value, "bt": AT_MS / 1000}]
            answer = await world.post("d1", json.dumps(pack).encode(), 110)
            return answer.code.dotted, answer.payload

        assert await sent(25.0, "Cel") == ("2.04", b"")
        assert values(world) == [(AT_MS, {"t": 77.0})]
        code, said = await sent(40.0, "Cel")
        assert (code, said) == ("4.00", b"out_of_range: t is 104 degF, above 100")
        code, said = await sent(1.0, "Pa")
        assert code == "4.00"
        assert said.startswith(b"wrong_unit: metric t was sent in 'Pa'; the profile has it in degF")
        assert [letter.content for letter in world.store.dead_letters] == ["senml+json"] * 2
        assert json.loads(world.store.dead_letters[0].payload)[0]["u"] == "Cel"
