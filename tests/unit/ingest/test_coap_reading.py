"""The CoAP server reads on after clients that are gone, on the loop that Ray gives to its actors."""

import asyncio
import socket

import aiocoap
import uvloop
from aiocoap.resource import Site, WKCResource

from sensorium.ingest.coap import keep_reading

GET_CORE = bytes.fromhex("40010001") + b"\xbb.well-known\x04core"


async def answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(("127.0.0.1", port))
        client.send(GET_CORE)
        try:
            async with asyncio.timeout(5):
                return bool(await asyncio.get_running_loop().sock_recv(client, 2048))
        except TimeoutError:
            return False


async def gone(port: int) -> None:
    """A client that asks and is not there any more when the answer comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(GET_CORE, ("127.0.0.1", port))


async def serve_clients_that_go() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    site = Site()
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader, None))
    context = await aiocoap.Context.create_server_context(site, ("127.0.0.1", port), transports=["udp6"])
    for interface in context.request_interfaces:
        keep_reading(interface.token_interface)
    try:
        assert await answers(port)
        for _ in range(3):
            await gone(port)
            assert await answers(port)
    finally:
        await context.shutdown()


def test_it_answers_after_clients_that_went_away() -> None:
    uvloop.run(serve_clients_that_go())
