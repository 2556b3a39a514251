"""One host's figures for `runtime.py`: activations, memory a device and snapshots, among many registrations.

The host runs in this process, with the collector as in production, over a real log; without Ray and network,
so that what is measured is the host and the database. `python bench/runtime_host.py REGISTERED ACTIVE`
prints one JSON object.
"""

import asyncio
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import psutil

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Batch, BatchReply, Reading
from sensorium.actors.placement import SHARDS, device_key
from sensorium.actors.ports import Filter
from sensorium.actors.runtime import spare_the_collector
from sensorium.storage import EmbeddedPostgres, PgHostPorts, PgMembershipFactory, migrate, open_pool
from sensorium.storage.registry import PgRegistry

NAMES = ("temperature", "humidity", "pressure")
BATCH = 250
READINGS = 5
"""Of each device, a minute apart: so many panes of its window are filled."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(BatchReply).decode


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
    }


async def register(dsn: str, devices: list[str]) -> float:
    """Register them by one COPY, as an import does; seconds."""
    began_s = time.perf_counter()
    now = datetime.now(UTC)
    rows = ((device_key(i), i, "bench", "active", None, "{}", now, now) for i in devices)
    connection = await asyncpg.connect(dsn)
    await connection.copy_records_to_table("devices", records=rows)
    await connection.execute("ANALYZE devices")
    await connection.close()
    return time.perf_counter() - began_s


async def send(host: DeviceHost, devices: list[str], number: int) -> list[float]:
    """The reading `number` of each device, `BATCH` at a time; how long each batch took to be committed."""
    now_ms = time.time_ns() // 1_000_000
    took = []
    for start in range(0, len(devices), BATCH):
        messages: list[Any] = [
            Reading(
                i, now_ms + (number - READINGS) * 60_000, now_ms, number, 0, [20.0 + number, 50.0, 1013.0]
            )
            for i in devices[start : start + BATCH]
        ]
        data = _encode(Batch("bench", number, [NAMES], messages))
        began_s = time.perf_counter()
        reply = _decode(await host.deliver(data))
        took.append(time.perf_counter() - began_s)
        if reply.outcomes:
            raise SystemExit(f"bench: not accepted: {next(iter(reply.outcomes.values()))}")
    return took


async def started(dsn: str, active: int) -> DeviceHost:
    members = await PgMembershipFactory(dsn)()
    incarnation = await members.join("bench")
    await members.close()
    settings = HostSettings(activation=ActivationSettings(max_active=active, idle_after_s=3600.0))
    host = DeviceHost("bench", incarnation, range(SHARDS), PgHostPorts(dsn), settings)
    await host.start()
    return host


async def activations(dsn: str, devices: list[str]) -> dict[str, Any]:
    """First activations by readings, then memory, then snapshots, then activations from these."""
    host = await started(dsn, len(devices))
    empty_bytes = resident_bytes()
    began_s = time.perf_counter()
    first = await send(host, devices, 1)
    first_s = time.perf_counter() - began_s
    for number in range(2, READINGS + 1):
        await send(host, devices, number)
    told = host.statistics()
    memory = {
        "devices": told["devices_active"],
        "resident_bytes_a_device": (resident_bytes() - empty_bytes) // len(devices),
        "estimated_bytes_a_device": host._compartments[0].activations.estimated_bytes // len(devices),
    }
    began_s = time.perf_counter()
    await host.stop()
    stop_s = time.perf_counter() - began_s
    connection = await asyncpg.connect(dsn)
    snapshots = await connection.fetchrow(
        "SELECT avg(octet_length(state))::int AS state_bytes, avg(pg_column_size(s.*))::int AS row_bytes,"
        " (pg_total_relation_size('snapshots') / count(*))::int AS table_bytes, count(*) AS n"
        " FROM snapshots s"
    )
    assert snapshots is not None
    await connection.close()
    host = await started(dsn, len(devices))
    ensure_s = []
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for start in range(0, len(devices), BATCH):
        one_s = time.perf_counter()
        await host._compartments[0].activations.ensure(devices[start : start + BATCH], host._around)
        ensure_s.append(time.perf_counter() - one_s)
    again_s, again_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    await host.stop()
    return {
        "first": {"a_second": round(len(devices) / first_s), **quantiles_ms(first)},
        "memory": memory,
        "save_all_s": round(stop_s, 2),
        "snapshot": {k: snapshots[k] for k in ("state_bytes", "row_bytes", "table_bytes")},
        "from_snapshot": {
            "a_second": round(len(devices) / again_s),
            **quantiles_ms(ensure_s),
            "host_cpu_us": round(again_cpu_s / len(devices) * 1e6, 1),
        },
    }


async def turnover(dsn: str, devices: list[str]) -> dict[str, Any]:
    """Readings of twice as many devices as fit: each activates one, and one is saved and goes."""
    host = await started(dsn, len(devices) // 2)
    began_s = time.perf_counter()
    took = await send(host, devices, READINGS + 1)
    seconds = time.perf_counter() - began_s
    told = host.statistics()
    await host.stop()
    return {
        "a_second": round(len(devices) / seconds),
        **quantiles_ms(took),
        "evicted": told["evictions"]["count"],
        "most_allowed": len(devices) // 2,
        "active": told["devices_active"],
    }


async def questions(dsn: str) -> dict[str, float]:
    """How long lists over all registrations take."""
    pool = await open_pool(dsn, 1)
    registry = PgRegistry(pool)
    asked = {
        "first_page_ms": lambda: registry.page(Filter(), None, 100),
        "middle_page_ms": lambda: registry.page(Filter("bench"), "device-0500000", 100),
        "rare_metadata_ms": lambda: registry.page(Filter(metadata={"site": "nowhere"}), None, 100),
        "counts_ms": registry.counts,
        "select_all_ms": lambda: registry.select(Filter()),
    }
    found = {}
    for name, ask in asked.items():
        took = []
        for _ in range(3):
            began_s = time.perf_counter()
            await ask()
            took.append(time.perf_counter() - began_s)
        found[name] = round(min(took) * 1000, 1)
    await pool.close()
    return found


async def run(registered: int, active: int) -> dict[str, Any]:
    devices = [f"device-{n:07d}" for n in range(registered)]
    # Spread over all that are registered, as those that send are.
    sending = devices[:: max(1, registered // active)][:active]
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory,
        EmbeddedPostgres(f"{directory}/postgres") as server,
    ):
        await migrate(server.dsn)
        register_s = await register(server.dsn, devices)
        spare_the_collector()
        return {
            "registered": registered,
            "active": len(sending),
            "register_s": round(register_s, 1),
            **await activations(server.dsn, sending),
            "turnover": await turnover(server.dsn, sending),
            "lists": await questions(server.dsn),
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(int(sys.argv[1]), int(sys.argv[2])))))
