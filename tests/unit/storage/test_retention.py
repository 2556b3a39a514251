"""Retention: whole partitions go, nothing that a projection has yet to read, and rollups outlive readings."""

from collections import namedtuple
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import copied
from rolled_up import rolled_up
from storage_rows import NOON_MS, alarm, event, reading, registration

from sensorium.actors.placement import device_key
from sensorium.actors.records import Commit
from sensorium.storage import History, PgLog, PgMembership, close_pool, migrate, open_pool, retention
from sensorium.storage.backup import back_up
from sensorium.storage.database import Pool, acquired
from sensorium.storage.disk import DiskSpace, disk_space
from sensorium.storage.embedded import EmbeddedPostgres
from sensorium.storage.partitions import attached, create, ensure_partitions, leaves
from sensorium.storage.restore import restore
from sensorium.storage.retention import (
    AlarmRetention,
    RetentionKeeper,
    RetentionSettings,
    apply,
    forget_alarms,
    sizes,
)
from sensorium.storage.retention_classes import KEPT_FROM, Days, floors, others_until, settle
from sensorium.storage.rollup import LEVELS
from sensorium.storage.rollup_sink import partition_start

pytestmark = pytest.mark.database


async def test_old_partitions_go_when_they_were_read(dsn: str, pool: Pool) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await log.commit(Commit(readings=[reading("d", 1), reading("d", 2, NOON_MS + 86_400_000 * 400)]))
    await log.close()
    now = datetime.now(UTC)
    later = now + timedelta(days=30)
    settings = RetentionSettings(Days(7, 7, 90), wait_for=("rollups",))
    await rolled_up(dsn, 2)
    async with acquired(pool) as connection:
        await ensure_partitions(connection, now)
        waiting = replace(settings, wait_for=("rollups", "never-run"))
        await connection.execute("UPDATE projections SET read_from = $1", int(later.timestamp() * 1000))
        # A projection that has yet to run has read nothing.
        assert f"readings_{now:%Y%m%d}" not in await apply(connection, waiting, later)
        await connection.execute("UPDATE projections SET read_from = $1", int(now.timestamp() * 1000))
        dropped = await apply(connection, settings, later)
        # The projection stands at today's readings: only days that it has read may go.
        assert f"readings_{now:%Y%m%d}" not in dropped
        await connection.execute("UPDATE projections SET read_from = $1", int(later.timestamp() * 1000))
        dropped += await apply(connection, settings, later)
        assert f"readings_{now:%Y%m%d}" in dropped
        assert f"events_{now:%Y%m%d}_c0" in dropped
        # Both buckets are older than 90 days, and their partitions with them.
        assert await connection.fetchval("SELECT count(*) FROM rollups_1m") == 0
        assert await connection.fetchval("SELECT sum(n) FROM rollups_1h") == 2
        kept = dict(await connection.fetch("SELECT kind, kept_from FROM retention"))
        assert set(kept) == {"log", "events/0", "rollups_1m/0"}
        assert await connection.fetchval("SELECT count(*) FROM readings") == 0
        assert await apply(connection, settings, later) == []
        assert (await sizes(connection))["rollups_1h"][0] > 0


async def test_alarms_go_by_type_once_they_have_ended(dsn: str, pool: Pool) -> None:
    now = datetime.now(UTC)
    ended_ms = int((now - timedelta(days=20)).timestamp() * 1000)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    alarms = [
        alarm(f"{device_type}-{state}", f"d-{device_type}", state, device_type=device_type, **end)
        for device_type in ("pump", "valve", "lamp")
        for state, end in (("CLEARED", {"end_ms": ended_ms, "start_ms": ended_ms - 1}), ("ACTIVE", {}))
    ]
    await log.commit(Commit(alarms=alarms))
    await log.close()
    keep = AlarmRetention(365, (("pump", 7), ("valve", 30)))
    async with acquired(pool) as connection:
        assert await forget_alarms(connection, AlarmRetention(), now) == 0
        assert await forget_alarms(connection, keep, now) == 1
        left = {row["alarm_id"] for row in await connection.fetch("SELECT alarm_id FROM alarms")}
        assert left == {a.alarm_id for a in alarms} - {"pump-CLEARED"}
        assert await forget_alarms(connection, replace(keep, days=7), now) == 1
        assert await connection.fetchval("SELECT count(*) FROM alarms WHERE alarm_id = 'lamp-CLEARED'") == 0


async def test_alarms_go_page_by_page_along_an_index(
    dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    ended_ms = int((now - timedelta(days=20)).timestamp() * 1000)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    alarms = [
        alarm(f"{n}", "d", "CLEARED", device_type="ab"[n % 2], start_ms=ended_ms - n, end_ms=ended_ms)
        for n in range(10)
    ]
    await log.commit(Commit(alarms=alarms))
    await log.close()
    monkeypatch.setattr(retention, "FORGET_PAGE", 2)
    async with acquired(pool) as connection:
        assert await forget_alarms(connection, AlarmRetention(365, (("a", 7),)), now) == 5
        async with connection.transaction():
            # Of few rows the server would rather read all.
            await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
            plan = await connection.fetch(f"EXPLAIN {retention._FORGET_ALARMS}", ended_ms, "a", 2)
    lines = "\n".join(line for (line,) in plan)
    assert "Index Scan Backward using alarms_type" in lines
    assert "Sort Key" not in lines


async def test_readings_go_before_events_where_they_are_elsewhere(pool: Pool) -> None:
    now = datetime.now(UTC)
    async with acquired(pool) as connection:
        await ensure_partitions(connection, now)
        dropped = await apply(
            connection, RetentionSettings(Days(60, 60), hot_days=7), now + timedelta(days=30)
        )
        assert f"readings_{now:%Y%m%d}" in dropped
        assert not any(name.startswith("events") for name in dropped)
        assert await connection.fetchval("SELECT count(*) FROM retention WHERE kind = 'log'") == 1


async def test_without_days_nothing_goes_and_partitions_are_made_ahead(pool: Pool) -> None:
    async with acquired(pool) as connection:
        assert await apply(connection, RetentionSettings(), datetime(2040, 1, 1, tzinfo=UTC)) == []
        found = await connection.fetchval("SELECT to_regclass('readings_20400102')::text")
    assert found == "readings_20400102"


async def test_the_keeper_says_how_much_there_is(dsn: str) -> None:
    keeper = RetentionKeeper(dsn, RetentionSettings())
    await keeper._look(due=True)
    assert keeper.statistics()["storage_bytes"]["readings"] > 0
    assert keeper.statistics()["storage_class_bytes"]["events"].keys() == {"0"}
    assert "readings" not in keeper.statistics()["storage_class_bytes"]
    [only] = keeper.statistics()["retention_classes"]
    assert (only["retention_class"], only["device_types"], only["raw_days"]) == (0, [], None)
    assert keeper.statistics()["partitions_dropped"] == 0


async def test_the_keeper_warns_once_when_the_disk_gets_full(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look(free_gb: int) -> dict[str, Any]:
        monkeypatch.setattr("sensorium.storage.disk.disk_usage", lambda _: usage(100 << 30, 0, free_gb << 30))
        keeper._look_at_disk()
        found: dict[str, Any] = keeper.statistics()["disk"]
        return found

    usage = namedtuple("usage", ("total", "used", "free"))
    keeper = RetentionKeeper(dsn, RetentionSettings(), tmp_path)
    assert keeper.statistics()["disk"] is None
    assert look(11) == {"free_bytes": 11 << 30, "total_bytes": 100 << 30, "low": False}
    assert not caplog.records
    assert look(9)["low"]
    assert look(8)["low"]
    [warning] = caplog.records
    assert "9.7 of 107.4 GB are free" in warning.getMessage()
    assert not look(20)["low"]
    assert look(1)["low"]
    assert len(caplog.records) == 2


def test_a_tenth_of_a_large_disk_is_plenty(tmp_path: Path) -> None:
    assert DiskSpace(20 << 30, 1 << 40).low is False
    assert DiskSpace(9 << 30, 1 << 40).low is True
    assert DiskSpace(1 << 30, 8 << 30).low is False
    found = disk_space(tmp_path)
    assert 0 < found.free_bytes < found.total_bytes


@pytest.mark.slow
async def test_events_of_a_class_go_by_themselves(dsn: str, pool: Pool) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await settle([dsn], Days(7, 7), {"pump": Days(7, 60), "valve": Days(7)})
    events = [event("d", 1), event("p", 1, retention_class=1), event("v", 1, retention_class=2)]
    # The partitions of classes are made when they are needed.
    await log.commit(Commit(registrations=[registration("p"), registration("q", "lamp")], events=events))
    await log.close()
    today = datetime.now(UTC)
    keys = {name: device_key(name) for name in ("p", "q")}
    async with acquired(pool) as connection:
        there = await leaves(connection, "events")
        assert {leaf.retention_class for leaf in there if leaf.day == today.date()} == {0, 1, 2}
        # Days ahead have what was used lately.
        await ensure_partitions(connection, today + timedelta(days=3))
        ahead = [leaf for leaf in await leaves(connection, "events") if leaf.day > today.date()]
        assert {leaf.retention_class for leaf in ahead} == {0, 1, 2}
        later = today + timedelta(days=30)
        dropped = await apply(connection, RetentionSettings(Days(7, 7)), later)
        assert {f"events_{today:%Y%m%d}_c0", f"readings_{today:%Y%m%d}"} <= set(dropped)
        left = await connection.fetch("SELECT class FROM events ORDER BY 1")
        assert [row["class"] for row in left] == [1, 2]
        await connection.execute("UPDATE devices SET registered_at = now()")
        assert await floors(connection, [keys["p"]]) == {}
        assert (await floors(connection, [keys["q"]])).keys() == {"events"}
        assert (await floors(connection, None, "lamp")).keys() == {"events"}
        dropped = await apply(connection, RetentionSettings(Days(7, 7)), later + timedelta(days=60))
        assert f"events_{today:%Y%m%d}_c1" in dropped
        # For ever.
        assert [row["class"] for row in await connection.fetch("SELECT class FROM events")] == [2]
        assert (await floors(connection, [keys["p"]])).keys() == {"events"}
        await connection.execute("UPDATE retention_classes SET event_days = 7 WHERE class = 2")
        await apply(connection, RetentionSettings(Days(7, 7)), later + timedelta(days=60))
        # Days without any class are no more.
        assert all(day >= later.date() for day, _ in await attached(connection, "events"))


async def test_a_day_of_all_classes_is_kept_for_the_longest(pool: Pool) -> None:
    now = datetime.now(UTC)
    old = now.date() - timedelta(days=20)
    async with acquired(pool) as connection:
        await connection.execute("INSERT INTO retention_classes (class, event_days) VALUES (1, 30)")
        name = await create(connection, "events", old)
        assert name not in await apply(connection, RetentionSettings(Days(7, 7)), now)
        assert name in await apply(connection, RetentionSettings(Days(7, 7)), now + timedelta(days=20))


async def test_a_device_of_another_class_than_before_has_lost_what_that_class_has(
    dsn: str, pool: Pool
) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await settle([dsn], Days(), {"pump": Days(7, 60), "valve": Days(7, 30)})
    await log.commit(Commit(registrations=[registration("p", "pump")]))
    await log.commit(Commit(registrations=[registration("p", "valve")]))
    await log.close()
    now_ms, day_ms = int(datetime.now(UTC).timestamp() * 1000), 86_400_000
    async with acquired(pool) as connection:
        await connection.execute(KEPT_FROM, "events/1", now_ms - day_ms)
        assert await floors(connection, [device_key("p")]) == {"events": now_ms - day_ms}
        # What is gone of the former class later on, the device has not written.
        await connection.execute(KEPT_FROM, "events/1", now_ms + 9 * day_ms)
        floor_ms = (await floors(connection, [device_key("p")]))["events"]
        assert abs(floor_ms - now_ms - 25 * 3_600_000) < 60_000
        await connection.execute(KEPT_FROM, "events/2", now_ms + 5 * day_ms)
        assert await floors(connection, [device_key("p")]) == {"events": now_ms + 5 * day_ms}


@pytest.mark.slow
async def test_rollups_of_a_class_go_by_themselves_and_answers_are_whole(dsn: str, pool: Pool) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await settle([dsn], Days(), {"pump": Days(rollups_1m=7, rollups_1h=200), "valve": Days(rollups_1m=30)})
    names = ("p", "v", "l")
    types = ("pump", "valve", "lamp")
    registrations = [registration(name, of_type) for name, of_type in zip(names, types, strict=True)]
    await log.commit(Commit(registrations=registrations, readings=[reading(name, 1) for name in names]))
    await rolled_up(dsn, 3)
    # The device of the first class becomes one of the second, and an hour of it is of both.
    await log.commit(Commit(registrations=[registration("p", "valve")], readings=[reading("p", 2, key=2)]))
    await rolled_up(dsn, 1)
    history = History(pool)

    async def asked(interval_s: float) -> tuple[float, str]:
        found = await history.aggregate("p", NOON_MS, NOON_MS + 3_600_000, None, "count", interval_s)
        return sum(float(bucket.values["temperature"]) for bucket in found), found.source

    async with acquired(pool) as connection:
        minutes = await leaves(connection, "rollups_1m")
        assert [leaf.retention_class for leaf in minutes] == [0, 1, 2]
        rows = await connection.fetch("SELECT class, count(*) FROM rollups_1h GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in rows] == [(0, 1), (1, 1), (2, 2)]
        assert (await asked(60.0), await asked(3_600.0)) == ((2, "1m"), (2, "1h"))
        noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
        dropped = await apply(connection, RetentionSettings(), noon + timedelta(days=15))
        assert [name[-3:] for name in dropped] == ["_c1"]
        # Minutes of the former class are gone, so its readings are counted; hours are there.
        assert (await asked(60.0), await asked(3_600.0)) == ((2, "raw"), (2, "1h"))
        found = await history.aggregate_type("valve", "temperature", None, None, "count", 60.0)
        assert sum(float(bucket.value) for bucket in found) == 3
        # Of lamps nothing is gone.
        found = await history.aggregate_type("lamp", "temperature", None, None, "count", 60.0)
        assert (len(found), found.source) == (1, "1m")
    # What comes late for what is gone is not begun again.
    await log.commit(Commit(registrations=[registration("p", "pump")], readings=[reading("p", 3, key=3)]))
    await rolled_up(dsn, 1)
    await log.close()
    async with acquired(pool) as connection:
        assert [leaf.retention_class for leaf in await leaves(connection, "rollups_1m")] == [0, 2]
        assert await connection.fetchval("SELECT n FROM rollups_1h WHERE class = 1") == 2
    assert (await asked(60.0), await asked(3_600.0)) == ((3, "raw"), (3, "1h"))


@pytest.mark.slow
async def test_rollups_from_before_there_were_classes_stay_where_they_are(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        copied(server, "template0", "of_older_rollups") as old,
        copied(server, "template0", "of_their_backup") as other,
    ):
        await migrate(old, 26)
        pool = await open_pool(old)
        start = partition_start(LEVELS[0], NOON_MS)
        async with acquired(pool) as connection:
            name = await create(connection, "rollups_1m", start.date(), 7)
            await connection.execute("INSERT INTO rollup_metrics (name, kind) VALUES ('temperature', 'n')")
            await connection.execute(
                "INSERT INTO rollups_1m (device, bucket, first_at, last_at, total, squares, least, most,"
                " first, last, metric, n) VALUES ($1, $2, $2, $2, 1, 1, 1, 1, 1, 1, 1, 1)",
                device_key("p"),
                NOON_MS,
            )
        await migrate(old)
        await settle([old], Days(), {"pump": Days(rollups_1m=7)})
        log = PgLog(old, await PgMembership(pool).join("a"))
        await log.commit(Commit(registrations=[registration("p", "pump")], readings=[reading("p", 1)]))
        await log.close()
        await rolled_up(old, 1)
        async with acquired(pool) as connection:
            assert [tuple(leaf)[1:] for leaf in await leaves(connection, "rollups_1m")] == [(name, None)]
            assert [leaf.retention_class for leaf in await leaves(connection, "rollups_1h")] == [1]
            rows = await connection.fetch("SELECT n, class FROM rollups_1m")
            assert [tuple(row) for row in rows] == [(2, 0)]
            # Kept for the longest: for ever.
            assert name not in await apply(connection, RetentionSettings(), start + timedelta(days=90))
        await back_up([old], tmp_path / "b", "9.9", lambda *_: None)
        await restore(tmp_path / "b", [other], lambda *_: None)
        await close_pool(pool)
        pool = await open_pool(other)
        async with acquired(pool) as connection:
            assert [tuple(leaf)[1:] for leaf in await leaves(connection, "rollups_1m")] == [(name, None)]
            assert await connection.fetchval("SELECT n FROM rollups_1m") == 2
            keyed = "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname LIKE 'rollups%pkey'"
            with_key = {row[0] for row in await connection.fetch(keyed)}
            assert len(with_key) == 3
            assert name in with_key
        await close_pool(pool)


@pytest.mark.slow
async def test_devices_of_a_type_are_counted_once_however_their_rows_lie(dsn: str, pool: Pool) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    history, hour_ms = History(pool), 3_600_000
    names = ("a", "b", "c")
    await log.commit(
        Commit(
            registrations=[registration(name, "pump") for name in names],
            readings=[reading(name, n + 1, NOON_MS + n * hour_ms) for n in range(2) for name in names[n:]],
        )
    )
    await rolled_up(dsn, 5)
    # Not counted yet: one more of a device that the hour has, and one of a device that it has not.
    late = [reading(name, 3, NOON_MS + hour_ms, key=3) for name in ("a", "b")]
    await log.commit(Commit(readings=late))

    async def asked(aggregation: str) -> list[tuple[float, int]]:
        until_ms = NOON_MS + 24 * hour_ms
        found = await history.aggregate_type("pump", "temperature", NOON_MS, until_ms, aggregation, 3600)
        return [(float(bucket.value), bucket.devices) for bucket in found]

    hours = [(3.0, 3), (4.0, 3)]
    assert await asked("count") == hours
    assert await asked("sum") == [(61.5, 3), (82.0, 3)]
    # A device of another class than before may have two rows in an hour.
    await settle([dsn], Days(), {"pump": Days(7)})
    assert await asked("count") == hours
    await log.commit(Commit(readings=[reading("a", 4, NOON_MS + hour_ms, key=4)]))
    await rolled_up(dsn, 3)
    assert await asked("count") == [(3.0, 3), (5.0, 3)]
    async with acquired(pool) as connection:
        assert await connection.fetchval("SELECT count(*) FROM rollups_1h WHERE class = 1") > 0
        # As if that had been long ago.
        await connection.execute("UPDATE retention_class_types SET since = 'epoch'")
        assert await others_until(connection, None, "pump") == 25 * hour_ms
    await log.close()
