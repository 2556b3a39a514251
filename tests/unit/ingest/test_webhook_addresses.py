"""Where webhooks may be sent: by what their names resolve to, at the moment of connecting."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from sensorium.actors.errors import InvalidMessage
from sensorium.ingest.actions.addresses import AddressRefused, CheckedTransport, Reach
from sensorium.ingest.actions.webhook import check_url

REFUSED = (
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "ff02::1",
    "::",
    "::ffff:169.254.169.254",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "nonsense",
)


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_not_public_is_refused(address):
    assert not Reach().allows(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f::1", "127.0.0.1", "::1", "::ffff:127.0.0.1"]
)
def test_public_addresses_and_loopback_may_be_asked(address):
    assert Reach().allows(address)


def test_the_configuration_says_what_else_may_be_asked_or_not():
    assert not Reach(()).allows("127.0.0.1")
    assert Reach(("private",)).allows("192.168.1.1")
    assert not Reach(("private",)).allows("169.254.169.254")
    assert Reach(("10.1.0.0/16",)).allows("10.1.2.3")
    assert not Reach(("10.1.0.0/16",)).allows("10.2.2.3")


def test_an_address_is_refused_when_it_is_set_a_name_only_when_it_is_resolved():
    for url in ("http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:10.0.0.1]:80/"):
        with pytest.raises(InvalidMessage, match="not public"):
            check_url(url, reach=Reach())
    assert check_url("http://metadata.internal/", reach=Reach())


class Listener:
    """Counts who connects, and answers."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> "Listener":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


async def asked(reach: Reach, port: int, monkeypatch: pytest.MonkeyPatch, *answers: str) -> int:
    """Ask a name that resolves to the next of these addresses at each time."""
    left = list(answers)

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "hook.example.org"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (left.pop(0), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with httpx.AsyncClient(transport=CheckedTransport(reach, httpx.Limits())) as client:
        status = 0
        for _ in answers:
            status = (await client.get(f"http://hook.example.org:{port}/")).status_code
        return status


async def test_what_a_name_resolves_to_is_checked_and_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Listener() as listener:
        assert await asked(Reach(), listener.port, monkeypatch, "127.0.0.1") == 204
        assert listener.connections == 1
        with pytest.raises(AddressRefused):
            await asked(Reach(()), listener.port, monkeypatch, "127.0.0.1")
        assert listener.connections == 1


async def test_a_name_that_resolves_to_something_else_the_next_time_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Listener() as listener:
        with pytest.raises(AddressRefused):
            await asked(Reach(), listener.port, monkeypatch, "127.0.0.1", "169.254.169.254")
        assert listener.connections == 1
