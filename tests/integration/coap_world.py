"""A CoAP server over a real router, a real host and real devices, on the in-memory store. No Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiocoap

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Register
from sensorium.actors.placement import SHARDS
from sensorium.actors.router import Router, Table
from sensorium.actors.testing import MemoryStore
from sensorium.ingest.broker import free_port
from sensorium.ingest.coap import CoapServer, CoapSettings

NOW_MS = 1_704_110_460_000


class OneHost:
    """A transport to a single host in this loop."""

    def __init__(self, host: DeviceHost) -> None:
        self.host = host

    async def table(self, newer_than: int | None = None) -> Table:
        return Table(0, ["host-0"] * SHARDS, {"host-0": self.host})

    async def close(self) -> None:
        """Nothing is held."""

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """Nobody waits here."""
        return None

    async def deliver(self, address: Any, data: bytes) -> bytes:
        return await self.host.deliver(data)


class Queued:
    """Commands that are ready, as the test says."""

    def __init__(self) -> None:
        self.ready: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[list[tuple[str, str, int]]]:
        while True:
            yield [await self.ready.get()]


@dataclass
class CoapWorld:
    """A server with a client, and what lies behind."""

    store: MemoryStore
    router: Router
    server: CoapServer
    settings: CoapSettings
    client: Any
    port: int
    ready: asyncio.Queue[tuple[str, str, int]]
    """Commands that the server is told of."""

    def uri(self, path: str) -> str:
        return f"coap://127.0.0.1:{self.port}{path}"

    async def request(self, code: Any, path: str, **options: Any) -> Any:
        message = aiocoap.Message(code=code, uri=self.uri(path), **options)
        return await self.client.request(message).response

    async def post(self, device_id: str, payload: bytes, content_format: int | None = 50) -> Any:
        return await self.request(
            aiocoap.POST, f"/sensors/{device_id}", payload=payload, content_format=content_format
        )

    async def registered(self, *device_ids: str) -> None:
        for device_id in device_ids:
            await self.router.ask(Register(device_id, "temperature"))


@asynccontextmanager
async def coap_world(host_settings: HostSettings | None = None, **settings: Any) -> AsyncIterator[CoapWorld]:
    store = MemoryStore(lambda: NOW_MS)
    host = DeviceHost(
        "host-0", 1, range(SHARDS), store.ports, host_settings or HostSettings(), lambda: NOW_MS
    )
    await store.join("host-0")
    await host.start()
    port = free_port()
    chosen = CoapSettings(port=port, **{"drain_timeout_s": 0.5, **settings})
    try:
        async with Router("coap-test", OneHost(host)) as router:
            queued = Queued()
            server = CoapServer(chosen, router, lambda: NOW_MS, sources=[queued])
            await server.start()
            client = await aiocoap.Context.create_client_context(transports=["oscore", "udp6"])
            world = CoapWorld(store, router, server, chosen, client, port, queued.ready)
            try:
                yield world
            finally:
                await client.shutdown()
                await world.server.stop()
    finally:
        store.down = False
        await host.stop()
