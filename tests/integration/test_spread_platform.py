"""A platform whose log is spread over two servers: one that dies or hangs stops what is in it only."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Eventually
from field import Load, mqtt_client
from log_audit import LogAudit, audit
from platform_process import PlatformProcess

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage import EmbeddedPostgres
from sensorium.storage.spread import database_of_device

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

HANGS_S = 10.0
IN_TIME_S = 8.0
"""Generous: the machine of a test is busy. A statement to a server that hangs takes 12 s."""

DEVICES = [f"spread-{n:02}" for n in range(40)]


def of_server(position: int) -> list[str]:
    """The devices in that server's database."""
    return [device_id for device_id in DEVICES if database_of_device(device_id, 2) == position]


@contextmanager
def hanging(server: EmbeddedPostgres) -> Iterator[None]:
    """All of its processes are stopped, as a machine that hangs."""
    parent = psutil.Process(server.pid)
    stopped = [parent, *parent.children(recursive=True)]
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def serves_on(api: httpx.AsyncClient, position: int, for_s: float) -> float:
    """The longest time that a device in that database needed to take a reading and to answer, over HTTP.

    Over MQTT all wait: the embedded broker has at most 100 messages unacknowledged, in their order.
    """
    clock_s = asyncio.get_running_loop().time
    device = of_server(position)[0]
    end_s, slowest_s = clock_s() + for_s, 0.0
    while clock_s() < end_s:
        asked_s = clock_s()
        sent = await api.post(f"/api/devices/{device}/data", json={"other": 1})
        assert sent.status_code == 201, sent.text
        answer = await api.get(f"/api/devices/{device}/data/latest")
        assert answer.status_code == 200, answer.text
        slowest_s = max(slowest_s, clock_s() - asked_s)
        await asyncio.sleep(0.05)
    return slowest_s


async def sequences(log: LogAudit) -> dict[str, list[int]]:
    """What is stored of the load, by device, in the order of the log: without what came by HTTP."""
    stored = await log.stored(DEVICES, "sequence")
    return {device: [n for n in numbers if n is not None] for device, numbers in stored.items()}


@pytest.fixture(scope="module")
def servers() -> Iterator[list[EmbeddedPostgres]]:
    """Two servers of nobody's."""
    settings = {"shared_buffers": "64MB"}
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-test-") as directory,
        EmbeddedPostgres(f"{directory}/pg0", settings) as first,
        EmbeddedPostgres(f"{directory}/pg1", settings) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def spread(short_dir: Path, servers: list[EmbeddedPostgres]) -> Iterator[PlatformProcess]:
    """A platform over both."""
    running = PlatformProcess(
        short_dir / "spread",
        free_port(),
        free_port(),
        environment={"LOG_DB_URLS": ",".join(server.dsn for server in servers)},
    )
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
async def spread_api(spread: PlatformProcess) -> AsyncIterator[httpx.AsyncClient]:
    """Its HTTP API."""
    async with httpx.AsyncClient(base_url=spread.state.http_url, timeout=15.0) as client:
        yield client


async def test_it_serves_from_both_and_loses_nothing_when_one_dies(
    spread: PlatformProcess,
    spread_api: httpx.AsyncClient,
    servers: list[EmbeddedPostgres],
    eventually: Eventually,
) -> None:
    for device_id in DEVICES:
        body = {"device_id": device_id, "device_type": "spread"}
        assert (await spread_api.post("/api/devices", json=body)).status_code == 201

    async def ready() -> int:
        return (await spread_api.get("/readyz")).status_code

    async with (
        mqtt_client(BrokerAddress(host="127.0.0.1", port=spread.mqtt_port), "spread-load") as client,
        Load(client, DEVICES, 400.0) as load,
    ):
        await load.more(500)
        with hanging(servers[1]):
            slowest_s = await serves_on(spread_api, 0, HANGS_S)
            assert slowest_s < IN_TIME_S
            assert await ready() == 200
            refused = await spread_api.post(
                f"/api/devices/{of_server(1)[0]}/data", json={"other": 1}, timeout=30.0
            )
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
        await load.more(500, deadline_s=60)
        for position, server in reversed([*enumerate(servers)]):
            server.kill9()
            await eventually(ready, lambda code, main=position == 0: code == (503 if main else 200))
            slowest_s = await serves_on(spread_api, 1 - position, 3.0)
            assert slowest_s < IN_TIME_S
            await asyncio.to_thread(server.start)
            await load.more(500, deadline_s=60)
        await eventually(ready, lambda code: code == 200)
    for position, server in enumerate(servers):
        mine = [d for d in DEVICES if database_of_device(d, 2) == position]
        async with audit(server.dsn) as log:
            total = sum(load.sent[d] for d in mine)
            stored = await eventually(
                lambda: sequences(log),
                lambda found: sum(map(len, found.values())) >= total,  # noqa: B023
                60.0,
            )
            assert stored == {d: list(range(load.sent[d])) for d in mine}
            assert await log.faulty_shards() == []

    listed: list[str] = []
    after = None
    while True:
        which = {"type": "spread", "limit": 7} | ({"cursor": after} if after else {})
        page = (await spread_api.get("/api/devices", params=which)).json()
        listed += [item["device_id"] for item in page["items"]]
        after = page.get("next")
        if after is None:
            break
    assert listed == DEVICES
    aggregated = await spread_api.get(
        "/api/analytics/aggregated",
        params={"device_type": "spread", "metric": "sequence", "aggregation": "count"},
    )
    (bucket,) = aggregated.json()["items"]
    assert (bucket["value"], bucket["devices"]) == (sum(load.sent.values()), len(DEVICES))

    async def projected() -> list[dict[str, object]]:
        found: list[dict[str, object]] = (await spread_api.get("/api/projections")).json()["items"]
        return found

    await eventually(projected, lambda items: [item["name"] for item in items] == ["actions", "rollups"])
    metrics = (await spread_api.get("/metrics")).text
    assert metrics.count("sensorium_projection_lag_seconds{") == 2


def test_another_list_of_databases_is_refused(
    short_dir: Path, spread: PlatformProcess, servers: list[EmbeddedPostgres]
) -> None:
    assert spread.stop() == 0, spread.errors
    one = PlatformProcess(
        short_dir / "spread-one",
        free_port(),
        free_port(),
        environment={"DEVICE_DB_URL": servers[0].dsn},
    )
    try:
        one.spawn()
        assert one.wait() == 1
        assert "the log is spread over 2 databases, and 1 is named" in one.errors
        assert "Traceback" not in one.errors
    finally:
        one.close()
