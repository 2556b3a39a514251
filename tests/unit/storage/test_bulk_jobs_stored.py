"""Bulk jobs in PostgreSQL: kept with their devices, noted, counted, cancelled and forgotten."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from storage_rows import NOON_MS

from sensorium.actors.errors import InvalidMessage
from sensorium.storage.bulk_jobs import BulkItem, BulkJob, BulkJobs
from sensorium.storage.database import Pool, acquired
from sensorium.storage.retention import RetentionSettings, apply
from sensorium.storage.retention_classes import Days

pytestmark = pytest.mark.database


def job(job_id: str, n: int = 0, kind: str = "command") -> BulkJob:
    return BulkJob(job_id, kind, "RUNNING", NOON_MS + n, 5, 2.5, {"parameters": {"a": [1, 1e300, "ü"]}})


async def test_the_way_of_a_job(pool: Pool) -> None:
    jobs = BulkJobs(pool)
    ids = [f"d{n}" for n in range(5)]
    one = job("a")
    assert await jobs.create(one, ids) == one
    assert await jobs.create(msgspec.structs.replace(one, per_second=9.0), ["other"]) == one
    assert await jobs.get("a") == one
    assert await jobs.get("b") is None
    assert await jobs.pending("a", 3) == ids[:3]
    await jobs.mark("a", [BulkItem("d0", "given"), BulkItem("d1", "refused", "why")])
    await jobs.mark("a", [BulkItem("d1", "given")])  # what is noted stays
    assert await jobs.counts("a") == {"given": 1, "refused": 1, "pending": 3}
    first = await jobs.items("a", limit=2)
    assert first.items == [BulkItem("d0", "given"), BulkItem("d1", "refused", "why")]
    assert [i.device_id for i in (await jobs.items("a", "pending", first.next)).items] == ids[2:]
    assert await jobs.open(10) == [one]
    await jobs.finish("a", "CANCELLING", "CANCELLED")  # which it is not
    await jobs.finish("a", "RUNNING", "DONE")
    assert await jobs.open(10) == []
    await jobs.cancel("a")
    [open_] = await jobs.open(10)
    assert open_.state == "CANCELLING"
    await jobs.create(job("0", -1), ids)
    assert [o.job_id for o in await jobs.open(10)] == ["a", "0"], "who is to be cancelled does not wait"
    await jobs.drop_pending("a")
    assert (await jobs.counts("a"))["cancelled"] == 3
    with pytest.raises(InvalidMessage):
        await jobs.items("a", after=[5])


async def test_pages_and_retention(pool: Pool) -> None:
    jobs = BulkJobs(pool)
    for n in range(4):
        await jobs.create(job(f"j{n}", n), [f"d{n}"])
    await jobs.create(job("t", kind="twin"), ["d"])
    first = await jobs.page("command", limit=3)
    rest = await jobs.page("command", after=first.next, limit=3)
    assert [j.job_id for j in (*first.items, *rest.items)] == ["j3", "j2", "j1", "j0"]
    await jobs.finish("j0", "RUNNING", "DONE")
    now = datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(minutes=30, days=3)
    async with acquired(pool) as connection:
        await apply(connection, RetentionSettings(Days(3)), now)
    assert await jobs.get("j0") is None
    assert await jobs.counts("j0") == {}
    assert len((await jobs.page("command")).items) == 3, "what is open stays"
