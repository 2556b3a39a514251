"""The models at work, in a real database: what hosts load, and that they are told of changes."""

import asyncio

import msgspec
import pytest

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.info import ModelInfo
from sensorium.storage.database import Pool
from sensorium.storage.models.active import MAX_A_TYPE, PgActiveModels

pytestmark = [pytest.mark.database, pytest.mark.slow]

INFO = ModelInfo("pumps", 1, "outliers", "pump", ("a",), ("mean(a)",), 3, 1, 2, 1, 400, scores={"x": 0.5})


async def test_what_is_at_work(pool: Pool) -> None:
    active = PgActiveModels(pool)
    assert await active.load() == []
    await active.put(INFO, b"\x00numbers")
    (one,) = await active.load()
    assert (one.info, one.numbers) == (INFO, b"\x00numbers")
    assert one.activated_ms > 1_700_000_000_000
    second = msgspec.structs.replace(INFO, version=2)
    await active.put(second, b"more")
    assert [o.info for o in await active.infos()] == [second]
    assert [o.numbers for o in await active.infos()] == [b""]
    assert await active.remove("pumps")
    assert not await active.remove("pumps")


async def test_a_type_has_a_few_at_most(pool: Pool) -> None:
    active = PgActiveModels(pool)
    for i in range(MAX_A_TYPE):
        await active.put(msgspec.structs.replace(INFO, name=f"m{i}"), b"")
    with pytest.raises(InvalidMessage, match="4 models of pump and 4 in all are at work"):
        await active.put(INFO, b"")
    await active.put(msgspec.structs.replace(INFO, name="m0", version=2), b"")
    await active.put(msgspec.structs.replace(INFO, device_type="fan"), b"")


async def test_hosts_are_told(pool: Pool, dsn: str) -> None:
    active = PgActiveModels(pool, dsn)
    changes = active.changes()
    async with asyncio.timeout(20):
        await anext(changes)
        await active.put(INFO, b"")
        await anext(changes)
        await active.remove("pumps")
        await anext(changes)
    await changes.aclose()
