"""To which addresses webhooks may be sent: the name is resolved, the answer checked, and that connected to.

So a name that resolves to something else a moment later gains nothing. Public addresses may always be asked,
others only where the configuration lists their networks: no rule shall reach metadata of a cloud.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import httpcore
import httpx

from sensorium.actors.errors import SensoriumError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
WORDS: Final = {"loopback": LOOPBACK, "private": PRIVATE}
"""What may be written instead of networks."""

DEFAULT_NETWORKS: Final = ("loopback",)
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressRefused(SensoriumError):
    """The name leads to addresses that webhooks may not be sent to."""


class Reach:
    """Which addresses may be asked: public ones, and those of these networks or words."""

    def __init__(self, networks: Iterable[str] = DEFAULT_NETWORKS) -> None:
        self._networks: list[Network] = [
            ip_network(text) for name in networks for text in WORDS.get(name, (name,))
        ]

    def allows(self, address: str) -> bool:
        """Whether an address may be asked; an IPv4 address within an IPv6 one counts as itself."""
        try:
            found: Address = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        inner = _within(found)
        return self._allows(found) if inner is None else self._allows(inner)

    def refuses_host(self, host: str) -> bool:
        """Whether the host is an address that may not be asked. A name is told only when it is resolved."""
        try:
            ip_address(host.strip("[]").partition("%")[0])
        except ValueError:
            return False
        return not self.allows(host.strip("[]"))

    def _allows(self, address: Address) -> bool:
        if any(address in network for network in self._networks if network.version == address.version):
            return True
        return address.is_global and not address.is_multicast


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects by TCP to what a name resolves to, if that may be asked."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As httpcore says. Raises `AddressRefused` when there is no address that may be asked."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the name cannot be resolved") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        return await self._first(self._checked(addresses), port, timeout, local_address, socket_options)

    def _checked(self, addresses: Sequence[str]) -> list[str]:
        allowed = [address for address in addresses if self._reach.allows(address)]
        if not allowed:
            raise AddressRefused(
                "the webhook leads to an address that is not public; actions.webhook_networks can allow it"
            )
        return allowed

    async def _first(self, addresses: Sequence[str], *how: Any) -> httpcore.AsyncNetworkStream:
        """To the first that answers."""
        port, *more = how
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, *more)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, *more)

    async def sleep(self, seconds: float) -> None:
        """As httpcore says."""
        await asyncio.sleep(seconds)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Who is trusted. Reading them takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


class CheckedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over `CheckedBackend`; TLS still goes by the name."""

    def __init__(self, reach: Reach, limits: httpx.Limits) -> None:
        context = _tls()
        super().__init__(verify=context, trust_env=False, limits=limits)
        # httpx has no argument for httpcore's network backend, so its pool is replaced by one that has.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=CheckedBackend(reach),
        )


def _within(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, 6to4, Teredo or NAT64."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
