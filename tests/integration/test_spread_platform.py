"""A platform whose log is spread over two servers of its own: a server that dies costs nothing."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Eventually
from field import Load, mqtt_client
from log_audit import audit
from platform_process import PlatformProcess

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage import EmbeddedPostgres
from sensorium.storage.spread import database_of_device

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

DEVICES = [f"spread-{n:02}" for n in range(40)]


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
        for server in reversed(servers):
            server.kill9()
            await eventually(ready, lambda code: code == 503)
            await asyncio.to_thread(server.start)
            await load.more(500, deadline_s=60)
    for position, server in enumerate(servers):
        mine = [d for d in DEVICES if database_of_device(d, 2) == position]
        async with audit(server.dsn) as log:
            total = sum(load.sent[d] for d in mine)
            await eventually(lambda: log.count(mine), lambda stored: stored >= total, 60.0)  # noqa: B023
            stored = await log.stored(DEVICES, "sequence")
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
