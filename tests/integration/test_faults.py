"""Faults under load. Each test compares what the broker acknowledged with what the log holds afterwards:
nothing lost, nothing twice, every device in its order, no gap in any shard's offsets."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from conftest import Eventually
from faults import pids, postmaster, suspended
from field import Load, mqtt_client
from log_audit import LogAudit, audit
from platform_process import PlatformProcess
from real_mosquitto import RealMosquitto

from sensorium.actors.fleet import Fleet
from sensorium.actors.placement import SHARDS
from sensorium.actors.runtime import COORDINATOR
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

DEVICES = 300
MESSAGES_PER_S = 800.0


@pytest.fixture(scope="module")
async def load_client(broker: BrokerAddress) -> AsyncIterator[MqttClient]:
    """The devices' connection."""
    async with mqtt_client(broker, "integration-load") as client:
        yield client


async def registered(api: httpx.AsyncClient, name: str) -> list[str]:
    """That many new devices."""
    ids = [f"{name}-{n:03}" for n in range(DEVICES)]
    room = asyncio.Semaphore(50)

    async def register(device_id: str) -> None:
        async with room:
            response = await api.post("/api/devices", json={"device_id": device_id, "device_type": "faulty"})
            assert response.status_code == 201, response.text

    await asyncio.gather(*(register(device_id) for device_id in ids))
    return ids


def times_replaced(statistics: dict[str, Any], name: str) -> int:
    """How often something whose name starts so has been replaced."""
    return sum(count for who, count in statistics["replaced"].items() if who.startswith(name))


async def replaced(fleet: Fleet, name: str, count: int, eventually: Eventually) -> None:
    """Return once so many of that name have been replaced, and everything is up."""

    async def look() -> dict[str, Any]:
        return await asyncio.to_thread(fleet.statistics)

    await eventually(
        look,
        lambda s: times_replaced(s, name) >= count and not s["down"],
        30.0,
    )


async def ready(
    api: httpx.AsyncClient, eventually: Eventually, code: int = 200, deadline_s: float = 45
) -> None:
    """Return once `/readyz` answers so."""

    async def look() -> int:
        return (await api.get("/readyz")).status_code

    await eventually(look, lambda found: found == code, deadline_s)


async def check(load: Load, log: LogAudit, eventually: Eventually) -> None:
    """What is stored is what was acknowledged: all of it, once, in order, at offsets without gaps."""
    ids = list(load.sent)
    assert load.total == sum(load.sent.values())
    await eventually(lambda: log.count(ids), lambda stored: stored >= load.total, 60.0)
    stored = await log.stored(ids, "sequence")
    wrong = {
        device_id: sequences
        for device_id, sequences in stored.items()
        if sequences != list(range(load.sent[device_id]))
    }
    assert not wrong, f"{len(wrong)} devices, such as {next(iter(wrong.items()))}"
    assert await log.faulty_shards() == []


async def test_hosts_killed_at_random_moments(
    api: httpx.AsyncClient, load_client: MqttClient, fleet: Fleet, log: LogAudit, eventually: Eventually
) -> None:
    seed = time.time_ns() % 100_000
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with Load(load_client, await registered(api, "host-kill"), MESSAGES_PER_S) as load:
        await load.more(300)
        for kill in range(4):
            before = times_replaced(fleet.statistics(), "host-")
            await load.more(rng.randrange(50, 600))
            victim = rng.choice(sorted(pids("host-").items()))
            await asyncio.sleep(rng.random() * 0.1)  # the moment itself is what is random
            os.kill(victim[1], signal.SIGKILL)
            killed_s = time.monotonic()
            await replaced(fleet, "host-", before + 1, eventually)
            print(f"kill {kill}: {victim[0]} replaced after {time.monotonic() - killed_s:.2f} s")
        await load.more(300)
    await check(load, log, eventually)
    await ready(api, eventually)


async def test_the_ingestor_killed(
    api: httpx.AsyncClient, load_client: MqttClient, fleet: Fleet, log: LogAudit, eventually: Eventually
) -> None:
    before = fleet.statistics()["replaced"].get("mqtt-0", 0)
    async with Load(load_client, await registered(api, "ingestor-kill"), MESSAGES_PER_S) as load:
        for kill in (1, 2):
            await load.more(400)
            (victim,) = pids("mqtt-").values()
            os.kill(victim, signal.SIGKILL)
            await replaced(fleet, "mqtt-", before + kill, eventually)
        await load.more(300)
    await check(load, log, eventually)


async def test_the_database_killed(
    api: httpx.AsyncClient,
    load_client: MqttClient,
    platform: PlatformProcess,
    eventually: Eventually,
) -> None:
    async with Load(load_client, await registered(api, "db-kill"), MESSAGES_PER_S) as load:
        for _ in range(2):
            await load.more(400)
            os.kill(postmaster(platform).pid, signal.SIGKILL)
            await load.more(200)
            await ready(api, eventually)
    async with audit(platform.state.database) as again:
        await check(load, again, eventually)


async def test_the_database_hangs(
    api: httpx.AsyncClient,
    load_client: MqttClient,
    platform: PlatformProcess,
    eventually: Eventually,
) -> None:
    """Nothing is acknowledged that is not stored; people are told so, and it resumes by itself."""
    ids = await registered(api, "db-hang")
    during = [{"outage": n, "timestamp": 1_704_110_400_000 + n} for n in range(10)]
    posted, sending = ids[:2], ids[2:]
    async with Load(load_client, sending, MESSAGES_PER_S) as load:
        await load.more(300)
        server = postmaster(platform)
        with suspended(server, *server.children()):
            await ready(api, eventually, 503)
            health = await api.get("/healthz")
            assert health.status_code == 200
            for device_id in posted:
                response = await api.post(f"/api/devices/{device_id}/data", json=during)
                assert response.status_code == 503, response.text
                assert int(response.headers["retry-after"]) >= 1
                assert response.headers["content-type"] == "application/problem+json"
        await ready(api, eventually)
        await load.more(300)
    async with audit(platform.state.database) as again:
        await check(load, again, eventually)
        for device_id in posted:
            assert await again.count([device_id]) in (0, len(during))
        for device_id in posted:
            response = await api.post(f"/api/devices/{device_id}/data", json=during)
            assert response.status_code in (200, 201), response.text
        stored = await again.stored(posted, "outage")
        assert stored == {device_id: list(range(10)) for device_id in posted}


async def test_the_broker_restarted(
    api: httpx.AsyncClient,
    load_client: MqttClient,
    mosquitto: RealMosquitto | None,
    log: LogAudit,
    eventually: Eventually,
) -> None:
    if mosquitto is None:
        pytest.skip("mosquitto is not installed; the embedded broker keeps nothing over a restart")
    async with Load(load_client, await registered(api, "broker-restart"), MESSAGES_PER_S) as load:
        for _ in range(2):
            await load.more(400)
            await asyncio.to_thread(mosquitto.stop)
            await asyncio.to_thread(mosquitto.start)
            await load.more(200)
    await check(load, log, eventually)
    await ready(api, eventually)


async def test_the_coordinator_killed(
    api: httpx.AsyncClient, load_client: MqttClient, fleet: Fleet, log: LogAudit, eventually: Eventually
) -> None:
    """Hosts and services serve on without it. It comes back by itself and goes on with them."""
    async with Load(load_client, await registered(api, "coordinator-kill"), MESSAGES_PER_S) as load:
        await load.more(300)
        before = pids("")
        os.kill(before[COORDINATOR], signal.SIGKILL)
        await load.more(300)

        async def anew() -> bool:
            return (await asyncio.to_thread(pids, "")).get(COORDINATOR) not in (None, before[COORDINATOR])

        await eventually(anew, deadline_s=60.0)
        await ready(api, eventually)
        after = pids("")
        assert before.pop(COORDINATOR) != after.pop(COORDINATOR)
        assert before == after
        # And it does its work: a host that dies now is replaced.
        os.kill(next(iter(pids("host-").values())), signal.SIGKILL)
        await replaced(fleet, "host-", 1, eventually)
        await load.more(300)
    await check(load, log, eventually)


async def test_hosts_join_and_leave(
    api: httpx.AsyncClient, load_client: MqttClient, fleet: Fleet, log: LogAudit, eventually: Eventually
) -> None:
    """From two hosts to three and back to two while messages come: every shard that moves is handed over."""
    hosts = len(fleet.statistics()["hosts"])
    async with Load(load_client, await registered(api, "join-leave"), MESSAGES_PER_S) as load:
        for wanted in (2, 3, 2, hosts):
            before = fleet.statistics()
            await load.more(300)
            await asyncio.to_thread(fleet.scale, wanted)
            after = fleet.statistics()
            assert len(after["hosts"]) == wanted
            assert sum(host["shards_owned"] for host in after["hosts"]) == SHARDS
            assert after["replaced"] == before["replaced"]
            assert after["moves"].get("taken") == before["moves"].get("taken")
        await load.more(300)
    await check(load, log, eventually)
