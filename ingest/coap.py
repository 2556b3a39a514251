"""Telemetry from CoAP (RFC 7252): a server over UDP that answers 2.04 after the commit; OSCORE and DTLS."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiocoap
import msgspec
from aiocoap.oscore_sitewrapper import OscoreSiteWrapper
from aiocoap.resource import Site, WKCResource

from sensorium.actors.profile import RateLimit, RateLimits
from sensorium.ingest.coap_commands import DevicesResource
from sensorium.ingest.coap_exchanges import Exchanges, install
from sensorium.ingest.coap_resources import Access, CoapRouter, SensorResource
from sensorium.ingest.coap_security import OscoreContexts
from sensorium.ingest.decode import Bounds
from sensorium.ingest.dispatch import ReadyCommands
from sensorium.ingest.dtls_keys import DeviceKeys
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.rate_limit import limiter

if TYPE_CHECKING:
    from sensorium.ingest.dtls import DtlsServer

# It logs every refusal and every message that is out of order, which are the peers' affair.
logging.getLogger("coap-server").setLevel(logging.ERROR)


class CoapSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a CoAP server needs to know.

    Attributes:
        host, port: one address to listen at; `::` is all of them, IPv4 too.
        contexts_dir: the OSCORE contexts, a directory for each device id; None: there are none.
        require_oscore: refuse with 4.01 whoever shows neither a context nor a key.
        dtls_keys: a file of pre-shared keys (see `dtls_keys`), with which DTLS is served at `dtls_port`.
        max_pending: readings accepted and not committed, above which 5.03 is answered.
        drain_timeout_s: how long `stop` waits for what was accepted.
        limit: on the messages of each device.
    """

    host: str = "127.0.0.1"
    port: int = 5683
    contexts_dir: str | None = None
    require_oscore: bool = False
    dtls_keys: str | None = None
    dtls_port: int = 5684
    bounds: Bounds = Bounds()
    max_pending: int = 20_000
    drain_timeout_s: float = 10.0
    limit: RateLimit | RateLimits | None = None


class CoapServer:
    """Serves `/sensors/{id}`, `/devices/{id}/latest`, `…/commands`, `…/twin` and `.well-known/core`.

    Start and stop it once.

    Args:
        sources: where it stands which commands are ready for devices that observe theirs.
    """

    def __init__(
        self,
        settings: CoapSettings,
        router: CoapRouter,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock_s: Callable[[], float] = time.monotonic,
        sources: Sequence[ReadyCommands] = (),
    ) -> None:
        self._sources = sources
        self._watching: list[asyncio.Task[None]] = []
        self._settings = settings
        self._router = router
        self._clock_ms = clock_ms
        self._clock_s = clock_s
        self._pipeline = Pipeline(router, settings.bounds, "coap")
        self._exchanges = Exchanges(clock_s)
        self._contexts: OscoreContexts | None = None
        self._context: Any = None
        self._dtls: DtlsServer | None = None

    async def start(self) -> None:
        """Listen. Raises `OSError` when a port is taken, `InvalidContext` over a context or the keys."""
        settings = self._settings
        check_port(settings.host, settings.port)
        if settings.contexts_dir is not None:
            self._contexts = await asyncio.to_thread(OscoreContexts, Path(settings.contexts_dir))
        keys = None
        if settings.dtls_keys is not None:
            check_port(settings.host, settings.dtls_port)
            keys = await asyncio.to_thread(DeviceKeys, Path(settings.dtls_keys))
        contexts = frozenset[str]() if self._contexts is None else self._contexts.device_ids
        access = Access(contexts, settings.require_oscore, keys or ())
        rate = limiter(settings.limit, self._router)
        self._latest = DevicesResource(self._router, access, self._clock_ms, self._clock_s, rate)
        self._sensors = SensorResource(
            self._pipeline,
            self._router,
            access,
            self._exchanges,
            self._latest.changed,
            self._latest.taken,
            bounds=settings.bounds,
            max_pending=settings.max_pending,
            limiter=rate,
            clock_ms=self._clock_ms,
            clock_s=self._clock_s,
        )
        site = Site()
        site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader, None))
        site.add_resource(["sensors"], self._sensors)
        site.add_resource(["devices"], self._latest)
        served = site if self._contexts is None else OscoreSiteWrapper(site, self._contexts.credentials)
        self._context = await aiocoap.Context.create_server_context(
            served, (settings.host, settings.port), transports=_transports()
        )
        if keys is not None:
            from sensorium.ingest.coap_dtls import open_dtls

            self._dtls = await open_dtls(
                self._context, settings.host, settings.dtls_port, keys, self._clock_s
            )
        for interface in self._context.request_interfaces:
            install(self._exchanges, interface.token_interface)
            keep_reading(interface.token_interface)
        self._watching = [
            asyncio.create_task(self._latest.watch(source), name="coap commands") for source in self._sources
        ]
        self._watching.append(asyncio.create_task(self._latest.look(), name="coap observers"))

    def check(self) -> None:
        """Raise what ended the watching of commands, if something but `stop` did."""
        for task in self._watching:
            if task.done() and not task.cancelled():
                task.result()

    async def stop(self) -> None:
        """Answer 5.03 to what is new, wait for what was accepted, then close."""
        if self._context is None:
            return
        self._sensors.stopping = True
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._sensors.idle.wait()
        except TimeoutError:
            pass
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._latest.close()
        context, self._context = self._context, None
        await context.shutdown()
        if self._contexts is not None:
            await asyncio.to_thread(self._contexts.close)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: requests, answers by code, observers; and of the pipeline."""
        counts = dict(self._sensors.counts)
        return {
            "received": counts.pop("requests", 0),
            "pending": self._sensors.in_flight,
            "answers": counts,
            "observers": self._latest.observers,
            "notifications": self._latest.notifications,
            "uploads": len(self._sensors.uploads),
            "exchanges": len(self._exchanges),
            **({} if self._dtls is None else {"dtls": self._dtls.statistics()}),
            **self._pipeline.statistics(),
        }


def check_port(host: str, port: int) -> None:
    """Raise `OSError` when the UDP port is taken: aiocoap would share it with whoever has it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(error.errno, f"CoAP cannot listen at {host}:{port}/udp: {error.strerror}") from None


def keep_reading(messages: Any) -> None:
    """Have a message manager of aiocoap read on after an ICMP error, such as of an observer that is gone.

    libuv polls a socket no more that has an error, and uvloop, on which Ray's actors run, leaves it at that.
    """
    interface: Any = getattr(messages, "message_interface", None)
    transport = getattr(interface, "transport", None)
    if not hasattr(interface, "datagram_errqueue_received") or transport is None:
        return  # one without error queue
    loop = asyncio.get_running_loop()
    number = transport._RecvmsgSelectorDatagramTransport__sock_fileno

    def first(taken: Callable[..., None]) -> Callable[..., None]:
        def take(*args: Any) -> None:
            if transport._loop is not None:  # else it has been closed
                loop.remove_reader(number)
                loop.add_reader(number, transport._read_ready)
            taken(*args)

        return take

    interface.datagram_errqueue_received = first(interface.datagram_errqueue_received)
    interface.error_received = first(interface.error_received)


def _transports() -> list[str]:
    """The full transport, or the simple one (a single address, IPv4) where the machine has no IPv6."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return ["simplesocketserver"]
    return ["udp6"]
