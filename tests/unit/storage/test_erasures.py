"""Deletion of a device's data: nothing of it is left anywhere, others keep theirs, nothing brings it back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from faulty_influx import FaultyInflux
from spread_log import SpreadLog
from storage_rows import NOON_MS, alarm, event, reading, registration, snapshot

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import DeadLetter, EraseData
from sensorium.actors.origin import Origin
from sensorium.actors.placement import SHARDS, device_key, shard_of
from sensorium.actors.ports import Rehoming
from sensorium.actors.records import Commit, Registration, TimerRow
from sensorium.actors.turns import Work, run
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.audit_chain import AuditLog
from sensorium.storage.database import Pool, acquired
from sensorium.storage.erasures import Erasures, carry_on
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.influx_sink import SETTINGS as INFLUX
from sensorium.storage.influx_sink import InfluxSink
from sensorium.storage.projection import ProjectionSettings
from sensorium.storage.projection_control import Projections
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rollup import LEVELS
from sensorium.storage.rollup_sink import RollupSink
from sensorium.storage.spread import database_of_device
from sensorium.storage.spread_members import SpreadMembership

pytestmark = pytest.mark.database

GONE = "gone-1"
SHARD = shard_of(GONE)
STAYS = next(name for n in range(100_000) if shard_of(name := f"stays-{n}") == SHARD)
ADA = Origin("ada", "192.0.2.7", "rest", "r-1")
MINUTE_MS = 60_000
READINGS = "SELECT * FROM readings WHERE device = $1 ORDER BY log_offset"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.storage.projection_runner.LOCK_RETRY_S", 0.05)


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def erasing(
    known: Registration, head: int, job_id: str = "j", whole: bool = False, shard: int | None = None
) -> Commit:
    """The commit of the turn that has the device forget, at its shard's offset `head` + 1."""
    number = shard_of(known.device_id) if shard is None else shard
    device = Device(known.device_id, Shard(number, head))
    device.registration = known
    message = EraseData(known.device_id, job_id, whole, ADA)
    return run([Work([message])], {device.id: device}, Surroundings(), 2**42, set()).commit


async def filled(log: PgLog) -> None:
    """Both devices in turn: their offsets alternate, so that each one's readings are gaps of the other's."""
    devices = (GONE, STAYS)
    await log.commit(
        Commit(
            registrations=[registration(d) for d in devices],
            readings=[
                reading(devices[n % 2], n, NOON_MS + n * MINUTE_MS, key=n, t=float(n)) for n in range(1, 21)
            ],
            events=[event(devices[n % 2], n, "updated", b'{"who": "gone-1"}') for n in (21, 22)],
            alarms=[alarm(f"a-{d}", d) for d in devices],
            timers=[TimerRow(SHARD, d, "t", 1, 1) for d in devices],
            dead_letters=[DeadLetter(d, "mqtt", "t", "empty", "", b"", 0, NOON_MS) for d in devices],
        )
    )


async def done(pool: Pool) -> None:
    async with acquired(pool) as connection:
        while await carry_on(connection):
            pass


async def traces(pool: Pool) -> dict[str, int]:
    """Rows that name the device, by the table that they are in."""
    found = {}
    for table in await pool.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200"):
        name = table["relname"]
        sql = f'SELECT count(*) FROM "{name}" t WHERE t::text LIKE $1 OR t::text LIKE $2'
        if count := await pool.fetchval(sql, f"%{GONE}%", f"%{device_key(GONE)}%"):
            found[name.partition("_2")[0]] = count
    return found


async def rollups(pool: Pool, device_id: str) -> list[tuple[Any, ...]]:
    rows = []
    for level in LEVELS:
        sql = f"SELECT bucket, n, total, first, last FROM {level.table} WHERE device = $1 ORDER BY bucket"
        rows += [(level.name, *row) for row in await pool.fetch(sql, device_key(device_id))]
    return rows


async def test_nothing_of_it_is_left_and_the_rest_is_as_it_was(log: PgLog, pool: Pool) -> None:
    await filled(log)
    before = await pool.fetch(
        "SELECT * FROM readings WHERE device = $1 ORDER BY log_offset", device_key(STAYS)
    )
    await log.commit(erasing(registration(GONE), 22, whole=True))
    [stored] = await log.load([GONE])
    assert (stored.registration, stored.tail, stored.alarms, stored.timers) == (None, [], [], {})
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert (job.state, job.counts["alarms"], job.counts["registrations"]) == ("ERASING", 1, 1)
    await done(pool)
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert (job.state, job.counts["readings"], job.counts["events"], job.counts["dead_letters"]) == (
        *("DONE", 10),
        *(1, 1),
    )
    # That it was deleted, and who asked for it, is known; and the event of another device, which names it.
    assert await traces(pool) == {"erasures": 1, "audit_outbox": 2, "events": 2}
    after = await pool.fetch(
        "SELECT * FROM readings WHERE device = $1 ORDER BY log_offset", device_key(STAYS)
    )
    assert after == before
    assert (await log.open([SHARD]))[SHARD] == 23
    told = [entry.what for entry in (await AuditLog([pool]).page(thing=GONE)).items]
    assert told == ["device.erased", "device.erase"]


async def test_what_an_isolated_device_has_in_another_shard_goes_as_well(log: PgLog, pool: Pool) -> None:
    """Its offsets there say nothing: all from before goes, however high, and what comes later stays."""
    await log.claim([SHARD])
    await filled(log)
    there = Rehoming(
        *(GONE, SHARD, SHARDS, {SHARD: 1, SHARDS: 0}, {SHARD: 22, SHARDS: 1}),
        event(GONE, 1, "isolation")._replace(shard=SHARDS),
        snapshot(GONE, 1)._replace(shard=SHARDS),
    )
    await log.rehome(there)
    own = reading(GONE, 2, NOON_MS, key=30)._replace(shard=SHARDS)
    await log.commit(Commit(readings=[own], epochs={SHARDS: 1}))
    gone = erasing(registration(GONE), 2, shard=SHARDS)
    gone.epochs = {SHARDS: 1}
    await log.commit(gone)
    back = Rehoming(
        *(GONE, SHARDS, SHARD, {SHARDS: 1, SHARD: 2}, {SHARDS: 3, SHARD: 23}),
        event(GONE, 23, "isolation"),
        gone.erasures[0].snapshot._replace(shard=SHARD, offset=23),
    )
    await log.rehome(back)
    later = reading(GONE, 24, NOON_MS, key=31)
    await log.commit(Commit(readings=[later], epochs={SHARD: 3}))
    await done(pool)
    kept = await pool.fetch(READINGS, device_key(GONE))
    assert [(row["shard"], row["log_offset"]) for row in kept] == [(SHARD, 24)]
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert job.counts["readings"] == 11
    [found] = await log.load([GONE])
    assert [row.key for row in found.tail] == [31]


@pytest.mark.parametrize("flushed", [True, False], ids=["rollups were there", "rollups were under way"])
async def test_rollups_are_those_of_what_came_after(log: PgLog, dsn: str, pool: Pool, flushed: bool) -> None:
    await filled(log)
    every_s = 0.0 if flushed else 3_600.0
    running = ProjectionRunner(dsn, ProjectionSettings("rollups", 7, every_s, poll_s=0.02), RollupSink())
    await running.start()
    await until(lambda: running.statistics()["entries"] >= 22)
    others = await rollups(pool, STAYS)
    await log.commit(erasing(registration(GONE), 22))
    await log.commit(Commit(readings=[reading(GONE, 24, NOON_MS + MINUTE_MS, key=99, t=5.0)]))
    await until(lambda: running.statistics()["entries"] >= 24)
    await running.stop()
    await done(pool)
    new = [(level.name, NOON_MS // level.width_ms * level.width_ms, 1, 5.0, 5.0, 5.0) for level in LEVELS]
    new[0] = ("1m", NOON_MS + MINUTE_MS, *new[0][2:])
    assert await rollups(pool, GONE) == new
    if flushed:
        assert await rollups(pool, STAYS) == others
    others = await rollups(pool, STAYS)
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert job.state == "DONE"
    # From the beginning again: what was emptied is passed over, without loss of the rest.
    assert await Projections(pool).rewind("rollups", 0)
    again = ProjectionRunner(dsn, ProjectionSettings("rollups", 7, poll_s=0.02), RollupSink())
    await again.start()
    await until(lambda: again.statistics()["lag_entries"] == 0 and again.statistics()["entries"] >= 13)
    await again.stop()
    assert (await rollups(pool, GONE), await rollups(pool, STAYS)) == (new, others)
    assert again.statistics()["lost"] == 0


async def test_it_waits_for_projections_and_goes_on_after_any_end(log: PgLog, dsn: str, pool: Pool) -> None:
    await filled(log)
    running = ProjectionRunner(dsn, ProjectionSettings("rollups", 7, poll_s=0.02), RollupSink())
    await running.start()
    await until(lambda: running.statistics()["entries"] >= 22)
    await running.stop()
    await log.commit(erasing(registration(GONE), 22))
    await done(pool)
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert (job.state, job.waiting_for) == ("PROJECTING", ["rollups"])
    await log.commit(erasing(registration(GONE), 23, "j2"))
    await done(pool)
    page = await Erasures([pool]).page(GONE, limit=1)
    assert len(page.items) == 1
    assert [e.job_id for e in (await Erasures([pool]).page(GONE, page.next)).items] != [page.items[0].job_id]


async def test_points_in_influxdb_go_and_later_ones_stay(log: PgLog, dsn: str, pool: Pool) -> None:
    await filled(log)
    async with FaultyInflux() as influx:
        settings = InfluxSettings(url=influx.url, token="t")
        running = ProjectionRunner(dsn, INFLUX, InfluxSink(settings))
        await running.start()
        await until(lambda: len(influx.points) == 20)
        await log.commit(erasing(registration(GONE), 22))
        await log.commit(Commit(readings=[reading(GONE, 24, NOON_MS, key=99, t=5.0)]))
        await until(
            lambda: influx.deleted and any(b"t=5.0 1704110400000" in point for point in influx.points)
        )
        await running.stop()
        assert influx.deleted == [f'_measurement="sensor_data" AND device_id="{GONE}"']
        assert len(influx.points) == 11
    await done(pool)
    job = await Erasures([pool]).get("j")
    assert job is not None
    assert job.state == "DONE"


async def test_each_database_deletes_its_own(two_dsns: list[str], two_pools: list[Pool]) -> None:
    incarnation = await SpreadMembership([PgMembership(pool) for pool in two_pools]).join("a")
    log = SpreadLog([PgLog(dsn, incarnation) for dsn in two_dsns])
    ids = [next(name for n in range(99) if database_of_device(name := f"d-{n}", 2) == at) for at in (0, 1)]
    for device_id in ids:
        await log.commit(
            Commit(
                registrations=[registration(device_id)],
                readings=[reading(device_id, 1), reading(device_id, 2)],
            )
        )
        await log.commit(erasing(registration(device_id), 2, f"j-{device_id}"))
    await log.close()
    for pool in two_pools:
        await done(pool)
    erasures = Erasures(two_pools)
    assert [job.counts["readings"] for job in (await erasures.page()).items] == [2, 2]
    assert {entry.thing for entry in (await AuditLog(two_pools).page(what="device.erased")).items} == set(ids)
    verdict = await AuditLog(two_pools).verify()
    assert (verdict.checked, verdict.faults) == (4, ())
