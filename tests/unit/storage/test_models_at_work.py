"""A host over a real database: it hears of a model, judges by it, and commits what it finds."""

import asyncio

import numpy as np
import pytest

from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import Reading
from sensorium.actors.models import plain
from sensorium.actors.models.features import Floats
from sensorium.actors.models.info import ModelInfo
from sensorium.actors.models.outliers import OutlierModel, reference_of
from sensorium.actors.placement import SHARDS
from sensorium.storage.anomalies import Anomalies
from sensorium.storage.database import Pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.models.active import PgActiveModels
from sensorium.storage.ports_factory import PgHostPorts

pytestmark = [pytest.mark.database, pytest.mark.slow]

T0_MS = 1_767_225_600_000
NAMES = ("flow", "power")
FAULT = np.array([0.0, 30.0])
INFO = ModelInfo("pumps", 3, "outliers", "pump", NAMES, (), 0, 0, 0, 1, 400)


async def opened(dsn: str, pool: Pool) -> DeviceHost:
    incarnation = await PgMembership(pool).join("host")
    host = DeviceHost(
        "host", incarnation, range(SHARDS), PgHostPorts(dsn), HostSettings(auto_register_as="pump")
    )
    await host.start()
    return host


async def read(host: DeviceHost, first: int, rows: Floats) -> None:
    for number, row in enumerate(rows, first):
        time_ms = T0_MS + number * 1000
        await host.ask(Reading("p0", time_ms, time_ms, number + 1, 0, row.tolist(), 0), NAMES)


async def test_a_fault_survives_the_host_that_found_it(dsn: str, pool: Pool) -> None:
    rng = np.random.default_rng(1)
    sound = rng.normal([10, 50], [1, 2], size=(600, 2))
    host = await opened(dsn, pool)
    anomalies = Anomalies([pool])
    active = PgActiveModels(pool)
    try:
        await read(host, 0, sound[:20])
        assert "models" not in host.statistics()
        model = OutlierModel(NAMES, {"p0": reference_of(sound[:400])})
        await active.put(INFO, plain.encode(model))
        async with asyncio.timeout(20):
            while "models" not in host.statistics():
                await asyncio.sleep(0.02)
        assert host.statistics()["models"] == ["pumps@3"]
        await read(host, 20, sound[20:60])
        assert (await anomalies.page("p0")).items == []
        await read(host, 60, sound[60:90] + FAULT)
        (found,) = (await anomalies.page("p0", detector="model:pumps@3")).items
        assert found.explanation is not None
        assert (found.metric, found.explanation[0].metric) == ("power", "power")
        assert found.explanation[0].value == found.value
        assert found.end_ms is None
    finally:
        await host.stop()
    await PgMembership(pool).fence(host.incarnation, dead=True)
    again = await opened(dsn, pool)
    try:
        await read(again, 90, sound[90:120] + FAULT)
        (same,) = (await anomalies.page("p0")).items
        assert same.anomaly_id == found.anomaly_id
        await active.remove("pumps")
        async with asyncio.timeout(20):
            while again.statistics()["models"]:
                await asyncio.sleep(0.02)
        await read(again, 120, sound[120:121])
        (ended,) = (await anomalies.page("p0")).items
        assert (ended.end_reason, ended.readings > 50) == ("detector_removed", True)
    finally:
        await again.stop()
