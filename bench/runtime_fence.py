"""What the check of ownership costs: the same batches with it and with an empty function instead.

Two hosts run in this process over two databases of one server, and get the same batches turn by turn, so that
whatever the machine does meets both. Timed is a batch's whole way through a host: decoding, turns, commit.
"""

import statistics
import time
from typing import Any

import asyncpg
import msgspec

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Batch, BatchReply, Reading
from sensorium.actors.placement import SHARDS
from sensorium.storage import EmbeddedPostgres, PgHostPorts, PgMembershipFactory, migrate

NAMES = ("temperature", "humidity", "pressure")
ROUNDS = 300
WARM_UP_ROUNDS = 20
SIZES = (100, 1_000)
"""Readings a batch, each of another device, as a host gets them under little and under much load."""
UNCHECKED = """
CREATE OR REPLACE FUNCTION sensorium_check_losses(of_incarnation bigint, known bigint) RETURNS void
LANGUAGE plpgsql AS $$ BEGIN END $$
"""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(BatchReply).decode


async def started(server: EmbeddedPostgres, name: str, *, checks: bool) -> DeviceHost:
    """A host of all shards over a database of its own."""
    admin = await asyncpg.connect(server.dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    dsn = server.dsn.replace("/postgres?", f"/{name}?")
    await migrate(dsn)
    if not checks:
        connection = await asyncpg.connect(dsn)
        await connection.execute(UNCHECKED)
        await connection.close()
    members = await PgMembershipFactory(dsn)()
    incarnation = await members.join("bench")
    await members.close()
    settings = HostSettings(auto_register_as="bench")
    host = DeviceHost("bench", incarnation, range(SHARDS), PgHostPorts(dsn), settings)
    await host.start()
    return host


def batch(size: int, number: int) -> bytes:
    """The reading `number` of each of so many devices."""
    now_ms = time.time_ns() // 1_000_000
    values: list[Any] = [20.0 + number % 10, 50.0, 1013.0]
    messages: list[Any] = [
        Reading(f"bench-{size}-{n}", now_ms, now_ms, number, 0, values) for n in range(size)
    ]
    return _encode(Batch(f"bench-{size}", number, [NAMES], messages))


async def cost(server: EmbeddedPostgres) -> dict[str, Any]:
    """Medians of a batch both ways, and their ratio, by readings a batch."""
    hosts = [await started(server, name, checks=name == "checked") for name in ("checked", "unchecked")]
    found: dict[str, Any] = {}
    for size in SIZES:
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(ROUNDS + WARM_UP_ROUNDS):
            data = batch(size, number)
            for which in (0, 1) if number % 2 else (1, 0):
                began_s = time.perf_counter()
                reply = _decode(await hosts[which].deliver(data))
                if number >= WARM_UP_ROUNDS:
                    took[which].append(time.perf_counter() - began_s)
                if reply.outcomes or reply.moved:
                    raise SystemExit("bench: a reading was not accepted")
        checked, unchecked = map(statistics.median, took)
        found[str(size)] = {
            "checked_ms": round(checked * 1000, 3),
            "unchecked_ms": round(unchecked * 1000, 3),
            "ratio": round(checked / unchecked, 3),
        }
    for host in hosts:
        await host.stop()
    return found
