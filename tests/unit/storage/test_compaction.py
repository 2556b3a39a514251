"""Days of readings in chunks: every reader finds what it found before, whatever comes in between."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import asyncpg
import pytest
from conftest import copied
from storage_rows import registration

from sensorium.actors.messages import Quality, ReadingFlag
from sensorium.actors.metrics import EMPTY, MetricSet, metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, Identity
from sensorium.storage import PgLog, PgMembership, compaction
from sensorium.storage import _history_sql as sql
from sensorium.storage._readings_sql import chunked, pack, readings
from sensorium.storage.backup import back_up
from sensorium.storage.batched import Batched
from sensorium.storage.compacted_days import CompactedDays
from sensorium.storage.compaction import CompactionSettings, NotNow, compact, drop_emptied, due
from sensorium.storage.database import Pool, acquired, close_pool, open_pool
from sensorium.storage.embedded import EmbeddedPostgres
from sensorium.storage.erasures import carry_on
from sensorium.storage.fleet_figures import FleetFigures
from sensorium.storage.history import History
from sensorium.storage.partitions import create
from sensorium.storage.projection_reader import LogReader, beginning, since
from sensorium.storage.restore import restore
from sensorium.storage.retention import RetentionKeeper, RetentionSettings, apply
from sensorium.storage.retention_classes import Days
from sensorium.storage.stored_past import PgStoredPastFactory

pytestmark = [pytest.mark.database, pytest.mark.slow]

DAY = date(2024, 1, 1)
DAY_MS = 1_704_067_200_000
LATER = datetime(2024, 2, 1, tzinfo=UTC)
COLUMNS = "shard, log_offset, device, time, key, flags, metric_set, numbers, texts, committed_at"
NUMBERS = metric_set(("temperature", "humidity"), "nn")
MIXED = metric_set(("temperature", "on", "state"), "nbt")
TEXT = metric_set(("state",), "t")
DEVICES = ("often", "mixed", "once", "late")


def value(rng: random.Random, kind: str) -> Any:
    if rng.random() < 0.1:
        return None
    return rng.choice(("a", "", "ü" * 30)) if kind == "t" else float(rng.randrange(100))


def rows_of(rng: random.Random) -> list[tuple[Any, ...]]:
    """Three days of readings: many, few, late, at one time, of several metric sets and flags."""
    heads: dict[int, int] = {}
    rows = []
    for day in range(3):
        heads = {shard: head + 5 for shard, head in heads.items()}
        wanted = [("often", NUMBERS)] * 1500 + [("mixed", MIXED), ("mixed", TEXT), ("mixed", NUMBERS)] * 60
        wanted += [("once", NUMBERS)] + [("late", NUMBERS)] * 20
        rng.shuffle(wanted)
        for n, (name, metrics) in enumerate(wanted):
            shard = shard_of(name)
            heads[shard] = heads.get(shard, 0) + rng.choice((1, 1, 2))
            committed_us = (DAY_MS + day * 86_400_000) * 1000 + n * 40_000_000 + rng.randrange(1000)
            time_ms = committed_us // 1000 - (86_400_000 if name == "late" else rng.choice((5, 5, 9_000)))
            row = ((heads[shard]), name, time_ms - time_ms % 1000, rng.randrange(-(2**63), 2**63))
            rows.append((shard, *row, rng.choice((0, 0, 0, 2, 4)), metrics, committed_us))
    return rows


def stored(rng: random.Random, row: tuple[Any, ...]) -> tuple[Any, ...]:
    shard, offset, name, time_ms, key, flags, metrics, committed_us = row
    values = [value(rng, kind) for kind in metrics.kinds]
    numbers = [v for v, kind in zip(values, metrics.kinds, strict=True) if kind != "t"]
    texts = [v for v, kind in zip(values, metrics.kinds, strict=True) if kind == "t"]
    at = datetime.fromtimestamp(0, UTC)
    return (
        *(shard, offset, device_key(name), at + timedelta(milliseconds=time_ms), key, flags, metrics.id),
        *(numbers or None, texts or None, at + timedelta(microseconds=committed_us)),
    )


async def know(connection: Any, *sets: MetricSet) -> None:
    await connection.executemany(
        "INSERT INTO metric_sets VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        [(m.id, list(m.names), m.kinds) for m in sets],
    )


@pytest.fixture
async def plain(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection that has times to the microsecond."""
    connection = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    yield connection
    await connection.close()


@pytest.fixture
async def filled(dsn: str, pool: Pool, plain: Any) -> None:
    """The three days, two of them over by `LATER`; devices that are registered."""
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await log.commit(Commit(registrations=[registration(name) for name in DEVICES]))
    await log.close()
    rng = random.Random(7)
    async with acquired(pool) as connection:
        for n in range(3):
            await create(connection, "readings", DAY + timedelta(days=n))
            await create(connection, "events", DAY + timedelta(days=n))
    await know(plain, NUMBERS, MIXED, TEXT)
    await plain.copy_records_to_table(
        "readings", records=[stored(rng, row) for row in rows_of(rng)], columns=COLUMNS.split(", ")
    )
    await plain.execute(
        "INSERT INTO events SELECT shard, max(log_offset) + 1, 1, now(), 'x', '{}', $1::date + interval '20h'"
        " FROM readings WHERE committed_at < $1::date + 1 GROUP BY shard",
        DAY,
    )
    await plain.execute("ANALYZE")


async def at_once(_: float) -> None:
    pass


class Killed(Exception):
    pass


async def dies(*_: Any) -> Any:
    raise Killed


async def all_compacted(connection: Any, wait_for: tuple[str, ...] = ()) -> list[date]:
    days = await due(connection, CompactionSettings(), wait_for, LATER)
    for day in days:
        await compact(connection, day, wait_for, at_once)
    await drop_emptied(connection)
    return days


SELECTED = ", ".join(f"r.{name}" for name in COLUMNS.split(", "))


async def everything(plain: Any) -> list[Any]:
    """All readings, from wherever they are."""
    rows = await plain.fetch(f"SELECT {COLUMNS} FROM readings")
    rows += await plain.fetch(chunked(SELECTED, "true", "true"))
    return sorted((tuple(row) for row in rows), key=lambda row: (row[0], row[1]))


async def entries(connection: Any, to_ms: int = 0, page: int = 700) -> list[Any]:
    """What a projection is given from then on, in each shard in its order."""
    place = await beginning(connection)
    if to_ms:
        ends = dict(await connection.fetch("SELECT shard, max(log_offset) FROM readings GROUP BY shard"))
        ends |= dict(await connection.fetch("SELECT shard, max(last_offset) FROM reading_chunks GROUP BY 1"))
        cursors = [ends.get(shard, 0) for shard in range(len(place.cursors))]
        place = await since(
            connection, place._replace(read_from_ms=to_ms + 86_400_000, cursors=cursors), to_ms
        )
    reader = LogReader(place, page)
    found: dict[int, list[Any]] = {}
    while reader.place.read_from_ms < DAY_MS + 4 * 86_400_000:
        for entry in await reader.page(connection):
            found.setdefault(entry.shard, []).append(entry)
    return sorted(found.items())


async def answers(dsn: str, pool: Pool) -> dict[str, Any]:
    """What each public read function says."""
    history, end_ms = History(pool), DAY_MS + 3 * 86_400_000
    found: dict[str, Any] = {}
    for name in DEVICES:
        for order in ("asc", "desc"):
            for metrics in (None, ["state"], ["temperature", "on"]):
                for quality in (None, Quality.GOOD, Quality.SUSPECT):
                    after, points = None, []
                    while True:
                        page = await history.readings(name, None, None, metrics, 217, order, after, quality)
                        points += page.items
                        if (after := page.next) is None:
                            break
                    found[f"readings of {name} {order} {metrics} {quality}"] = points
        for hours in ((0, 1), (20, 30), (0, 72)):
            start, end = (DAY_MS + h * 3_600_000 + 1_234_567 for h in hours)
            found[f"page of {name} at {hours}"] = await history.readings(name, start, end, None, 50, "desc")
            found[f"kinds of {name} at {hours}"] = await history.kinds([name], start, end)
            for aggregation in ("mean", "count", "first", "last", "p95"):
                found[f"{aggregation} of {name} at {hours}"] = await history.aggregate(
                    name, start, end, None, aggregation, 3_600.0
                )
            past = await PgStoredPastFactory(dsn)()
            taken: list[Any] = []
            await past.readings(name, start, end, taken.extend)
            found[f"past of {name} at {hours}"] = taken
            found[f"any of {name} at {hours}"] = await past.has_readings([name], start, end)
            await past.close()
        found[f"arrivals of {name}"] = await FleetFigures([pool]).arrivals(name, DAY_MS, end_ms)
        found[f"newest kinds of {name}"] = await history.newest_kinds([name])
    for limit in (1, 30, 1000):
        found[f"newest {limit}"] = await Batched([pool]).readings(DEVICES, None, None, limit)
        found[f"newest {limit} before"] = await Batched([pool]).readings(
            DEVICES, DAY_MS, DAY_MS + 86_400_000, limit
        )
    found["of a type"] = await history.aggregate_type("pump", "temperature", DAY_MS, end_ms, "mean", 7_200.0)
    return found


async def test_every_reader_finds_the_same(
    dsn: str, pool: Pool, plain: Any, filled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rows = await answers(dsn, pool), await everything(plain)
    async with acquired(pool) as connection:
        log_before = await entries(connection)
        since_before = await entries(connection, DAY_MS + 30 * 3_600_000)
        assert await all_compacted(connection) == [DAY + timedelta(days=n) for n in range(3)]
        assert await connection.fetchval("SELECT count(*) FROM readings") == 0
        assert await entries(connection) == log_before
        assert await entries(connection, DAY_MS + 30 * 3_600_000) == since_before
        assert await entries(connection, page=10_000) == log_before
    assert await everything(plain) == rows
    assert await plain.fetchval("SELECT to_regclass('readings_20240101') IS NULL")
    monkeypatch.setattr("sensorium.storage.compacted_days.FIRST_DAYS", 1)
    monkeypatch.setattr("sensorium.storage.compacted_days.GROWTH", 1)
    after = await answers(dsn, pool)
    for question, answer in before.items():
        assert after[question] == answer, question


async def test_planning_leaves_out_days_without_events_of_the_range(
    pool: Pool, plain: Any, filled: None
) -> None:
    async with acquired(pool) as connection:
        await all_compacted(connection)
        days = CompactedDays()
        await days.refresh(connection)
    known = await plain.fetch("SELECT (day - $1::date), (event_day - $1::date) FROM compacted_days", DAY)
    assert sorted(map(tuple, known)) == [(0, -1), (0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]
    end_ms = DAY_MS + 3 * 86_400_000
    for start_ms, planned in ((DAY_MS, [0, 1, 2]), (DAY_MS + 86_400_000, [1, 2]), (end_ms - 1, [2])):
        statement = sql.readings("asc", False, False, None, days.committed(start_ms, end_ms))
        at = datetime.fromtimestamp(start_ms / 1000, UTC)
        plan = await plain.fetch(
            f"EXPLAIN {statement}", device_key("often"), at, at + timedelta(days=1), None, None, 10, 10
        )
        found = {int(n) for (line,) in plan for n in re.findall(r"on reading_chunks_202401(\d\d)", line)}
        assert sorted(found) == [n + 1 for n in planned]


async def test_hosts_recognise_and_load_what_is_in_chunks(
    dsn: str, pool: Pool, plain: Any, filled: None
) -> None:
    async def known() -> Any:
        log = PgLog(dsn, await PgMembership(pool).join("b"))
        shards = [shard_of(name) for name in DEVICES]
        heads = await log.open(shards)
        loaded = await log.load(DEVICES)
        seen = await log.seen(
            [Identity(*(device, at, key + n)) for device, at, key in stored for n in (0, 1)]
        )
        await log.close()
        return heads, loaded, seen

    stored = [
        (row["device"], int(row["time"].timestamp() * 1000), row["key"])
        for row in await plain.fetch("SELECT device, time, key FROM readings WHERE key < 1::bigint << 62")
    ]
    await plain.execute("UPDATE shards SET head = 0, saved_at = '2024-01-01'")
    before = await known()
    assert before[2] == {Identity(*one) for one in stored}
    async with acquired(pool) as connection:
        await all_compacted(connection)
    await plain.execute("UPDATE shards SET head = 0, saved_at = '2024-01-01'")
    assert await known() == before


async def test_a_device_is_loaded_without_the_days_that_have_none_of_it(
    dsn: str, pool: Pool, plain: Any, filled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = asyncpg.Connection.fetch
    planned: dict[str, set[int]] = {}

    async def explained(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if "reading_chunks c" in query:
            plan = await fetch(self, f"EXPLAIN {query}", *arguments)
            found = {int(n) for (line,) in plan for n in re.findall(r"on reading_chunks_202401(\d\d)", line)}
            planned[asked] = planned.get(asked, set()) | found
        return await fetch(self, query, *arguments, **options)

    # Of "mixed" the first day alone is left, of "late" the last; "once" has a snapshot of the second.
    await plain.execute(
        "DELETE FROM readings WHERE device = $1 AND committed_at >= $3"
        " OR device = $2 AND committed_at < $3 + interval '1 day'",
        *(device_key("mixed"), device_key("late"), datetime.fromtimestamp(DAY_MS / 1000 + 86_400, UTC)),
    )
    await plain.execute(
        "INSERT INTO snapshots (device, shard, log_offset, replay_from, state, saved_at)"
        " SELECT device, shard, log_offset, '-infinity', '', committed_at FROM readings"
        " WHERE device = $1 AND committed_at >= '2024-01-02 00:00+00' ORDER BY committed_at LIMIT 1",
        device_key("once"),
    )
    devices = [*DEVICES, "never"]
    log = PgLog(dsn, await PgMembership(pool).join("b"))
    before = [await log.load([name]) for name in devices]
    async with acquired(pool) as connection:
        await all_compacted(connection)
    await log.close()
    log = PgLog(dsn, await PgMembership(pool).join("c"))
    monkeypatch.setattr(asyncpg.Connection, "fetch", explained)
    for asked, stored in zip(devices, before, strict=True):
        assert await log.load([asked]) == stored
    assert [len(stored.tail) for (stored,) in before] == [4500, 180, 1, 20, 0]
    assert planned == {"often": {1, 2, 3}, "mixed": {1}, "once": {2, 3}, "late": {3}, "never": set()}
    asked = "all"
    assert await log.load(devices) == [stored for (stored,) in before]
    await log.close()


@pytest.mark.parametrize("step", ["begun", "copied", "attached"])
async def test_what_was_cut_off_is_gone_on_with(
    dsn: str, pool: Pool, plain: Any, filled: None, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = await everything(plain)
    monkeypatch.setattr(compaction, "ROW_BYTES", 1)
    monkeypatch.setattr(compaction, "STEP_READINGS", 50_000)

    other = await open_pool(dsn)
    async with acquired(other) as killed:
        with monkeypatch.context() as patch:
            if step == "begun":
                patch.setattr(compaction, "_copy", dies)
            elif step == "attached":
                attach = compaction._attach

                async def attached_only(*arguments: Any) -> Any:
                    await attach(*arguments)
                    raise Killed

                patch.setattr(compaction, "_attach", attached_only)
            with pytest.raises(Killed):
                await compact(killed, DAY, (), dies if step == "copied" else at_once)
    await close_pool(other)
    assert await everything(plain) == rows
    begun = await plain.fetchval("SELECT shard FROM compaction")
    assert (begun > 0) == (step != "begun")
    async with acquired(pool) as fresh:
        assert len(await all_compacted(fresh)) == 3
    assert await everything(plain) == rows
    assert await plain.fetchval("SELECT count(*) FROM compaction") == 0


async def test_a_reader_with_an_older_view_keeps_the_rows(
    dsn: str, pool: Pool, plain: Any, filled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "LOOK_EVERY_S", 1.0)
    async with acquired(pool) as connection, plain.transaction(isolation="repeatable_read"):
        rows = await plain.fetchval("SELECT count(*) FROM devices")
        with pytest.raises(NotNow, match="open for long"):
            await compact(connection, DAY, (), at_once)
        assert rows == len(DEVICES)
        assert await plain.fetchval("SELECT count(*) FROM readings_20240101") > 0
    async with acquired(pool) as connection:
        await compact(connection, DAY, (), at_once)


async def test_whoever_reads_meanwhile_finds_each_reading_once(
    dsn: str, pool: Pool, plain: Any, filled: None
) -> None:
    """Statements of their own, and two of one older view with the swap in between."""
    all_of_them = f"SELECT count(*), sum(key % 1000) FROM ({readings('r.key', 'true')}) AS found"
    expected = tuple(await plain.fetchrow(all_of_them))
    done, looks = asyncio.Event(), 0

    async def look(at_one_moment: bool) -> None:
        nonlocal looks
        other = await asyncpg.connect(dsn)
        while not done.is_set():
            if at_one_moment:
                async with other.transaction(isolation="repeatable_read", readonly=True):
                    assert tuple(await other.fetchrow(all_of_them)) == expected
                    await asyncio.sleep(0.01)
                    assert tuple(await other.fetchrow(all_of_them)) == expected
            else:
                assert tuple(await other.fetchrow(all_of_them)) == expected
            looks += 1
            # Lets the swap have its locks.
            await asyncio.sleep(0.02)
        await other.close()

    async with asyncio.TaskGroup() as group:
        for at_one_moment in (False, True):
            group.create_task(look(at_one_moment))
        async with acquired(pool) as connection:
            for n in range(3):
                while True:
                    with suppress(NotNow):
                        await compact(connection, DAY + timedelta(days=n), (), at_once)
                        break
        done.set()
    assert looks > 3
    assert await plain.fetchval("SELECT count(*) FROM readings") == 0


async def test_it_waits_for_projections_backups_and_deletions(
    dsn: str, pool: Pool, plain: Any, filled: None
) -> None:
    settings = CompactionSettings()
    await plain.execute(
        "INSERT INTO projections (name, read_from, cursors) VALUES ('rollups', '2024-01-02 12:00+00', '{}')"
    )
    async with acquired(pool) as connection:
        assert await due(connection, settings, ("rollups",), LATER) == [DAY]
        assert await due(connection, settings, ("rollups", "never-run"), LATER) == []
        assert await due(connection, CompactionSettings(after_days=31), (), LATER) == []
        assert await due(connection, CompactionSettings(after_days=29), (), LATER) == [DAY]
        assert await due(connection, CompactionSettings(enabled=False), (), LATER) == []
        evening = datetime(2024, 1, 2, 1, 59, tzinfo=UTC)
        assert await due(connection, settings, (), evening) == []
        assert await due(connection, settings, (), evening + timedelta(minutes=1)) == [DAY]
        await plain.execute("SELECT pg_advisory_lock_shared($1)", compaction.BACKUP_KEY)
        with pytest.raises(NotNow, match="backup"):
            await compact(connection, DAY, (), at_once)
        await plain.execute("SELECT pg_advisory_unlock_shared($1)", compaction.BACKUP_KEY)
        await plain.execute("UPDATE projections SET rewind_to = 'epoch'")
        with pytest.raises(NotNow, match="rewound"):
            await compact(connection, DAY, ("rollups",), at_once)
        await _begin_erasure(plain, "often", 3)
        with pytest.raises(NotNow, match="deleted"):
            await compact(connection, DAY, (), at_once)
        while await carry_on(connection):
            pass
        await compact(connection, DAY, (), at_once)


async def _begin_erasure(plain: Any, name: str, offset: int, at: str = "2024-01-01") -> None:
    await plain.execute(
        "INSERT INTO erasures (job_id, device, device_id, shard, log_offset, registration, requested_at,"
        " counts, committed_at) VALUES ('job', $1, $2, $3, $4, false, now(), '{}', $5::text::timestamptz)",
        *(device_key(name), name, shard_of(name), offset, at),
    )


@pytest.mark.parametrize("moved", [False, True], ids=["in its shard", "moved"])
async def test_a_device_is_deleted_from_chunks_as_from_rows(
    dsn: str, pool: Pool, plain: Any, filled: None, moved: bool
) -> None:
    """Half of the device's readings go, by offset, or by time where it was in another shard then."""
    name = "mixed"
    middle = await plain.fetchval(
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY log_offset) FROM readings WHERE device = $1",
        device_key(name),
    )
    expected = []
    for row in await everything(plain):
        earlier = row[9] < datetime(2024, 1, 2, 3, tzinfo=UTC) if moved else row[1] < middle
        if row[2] == device_key(name) and earlier:
            epoch = datetime.fromtimestamp(0, UTC)
            row = (*row[:2], 0, epoch, 0, int(ReadingFlag.ERASED), EMPTY.id, None, None, row[9])
        expected.append(row)
    async with acquired(pool) as connection:
        await all_compacted(connection)
        await _begin_erasure(plain, name, middle, "2024-01-02 03:00+00")
        if moved:
            await plain.execute("UPDATE erasures SET shard = shard + 1, log_offset = 0")
        while await carry_on(connection):
            pass
        assert await connection.fetchval("SELECT state FROM erasures") == "DONE"
        counts = await connection.fetchval("SELECT counts FROM erasures")
    assert counts["readings"] == sum(row[2] == 0 for row in expected) > 100
    assert await everything(plain) == expected


async def test_a_class_goes_with_its_partitions(dsn: str, pool: Pool, plain: Any, filled: None) -> None:
    log = PgLog(dsn, await PgMembership(pool).join("b"))
    await log.commit(Commit(registrations=[registration("often", "meter")]))
    await log.close()
    await plain.execute("INSERT INTO retention_classes (class, raw_days) VALUES (3, 30)")
    await plain.execute("INSERT INTO retention_class_types (device_type, class) VALUES ('meter', 3)")
    async with acquired(pool) as connection:
        await all_compacted(connection)
        of = "SELECT count(DISTINCT device), count(DISTINCT class) FROM reading_chunks"
        assert tuple(await connection.fetchrow(of)) == (4, 2)
        settings = RetentionSettings(days=Days(raw=365))
        dropped = await apply(connection, settings, LATER)
        assert [name for name in dropped if name.startswith("reading")] == ["reading_chunks_20240101_c3"]
        left = await connection.fetchval(
            "SELECT sum(count) FROM reading_chunks WHERE device = $1", device_key("often")
        )
        assert left == 3000
        kept = dict(await connection.fetch("SELECT kind, kept_from FROM retention"))
        assert kept == {"reading_chunks/3": DAY_MS + 86_400_000}
        # The gaps are known to be lost, and nothing else is.
        assert sum(len(found) for _, found in await entries(connection)) > 3000
        dropped = await apply(connection, RetentionSettings(days=Days(raw=30)), LATER + timedelta(days=400))
        assert "reading_chunks_20240103" in dropped


@pytest.mark.parametrize(
    ("devices", "a_day", "at_most"),
    [(1, 86_400, 0.33), (3_000, 24, 0.5), (20_000, 2, 0.97), (40_000, 1, 1.08)],
    ids=["each second", "each hour", "twice", "once"],
)
async def test_chunks_take_less_than_rows(
    pool: Pool, plain: Any, devices: int, a_day: int, at_most: float
) -> None:
    """Of three metrics, as random as they get."""
    async with acquired(pool) as connection:
        await create(connection, "readings", DAY)
    await plain.execute(
        "INSERT INTO readings SELECT d % 1024, n * 9 + d, d, t + n * $3::interval, random() * 9e18, 0, 7,"
        " ARRAY[random(), random(), random()], NULL, t + n * $3::interval + random() * interval '1 s'"
        " FROM generate_series(1, $1::int) d, generate_series(0, $2::int - 1) n, LATERAL"
        " (SELECT $4::timestamptz + d * interval '1 ms' AS t) begins ORDER BY 10",
        *(devices, a_day, timedelta(days=1) / a_day, datetime(2024, 1, 1, tzinfo=UTC)),
    )
    size = "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree($1)"
    rows = await plain.fetchval(size, "readings_20240101")
    async with acquired(pool) as connection:
        await all_compacted(connection)
    chunks = await plain.fetchval(size, "reading_chunks_20240101")
    readings_there = devices * a_day
    print(f"{rows / readings_there:.0f} bytes a reading in rows, {chunks / readings_there:.0f} in chunks")
    assert chunks < rows * at_most
    # One of each: attaching found those that were there.
    assert await plain.fetchval(
        "SELECT count(*) FROM pg_index WHERE indrelid = 'reading_chunks_20240101_c0'::regclass"
    ) == len(("device", "shard"))


async def test_a_backup_has_the_chunks(
    dsn: str, pool: Pool, plain: Any, filled: None, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Compacted days come back as such; what is being compacted comes back as rows."""
    async with acquired(pool) as connection:
        await compact(connection, DAY, (), at_once)
        with pytest.raises(Killed):
            await compact(connection, DAY + timedelta(days=1), (), dies)
    await back_up([dsn], tmp_path / "b", "9.9", lambda *_: None)
    async with copied(server, "template0", "of_a_restore") as other:
        await restore(tmp_path / "b", [other], lambda *_: None)
        restored = await asyncpg.connect(other, server_settings={"timezone": "UTC"})
        assert await everything(restored) == await everything(plain)
        same = "SELECT tableoid::regclass::text, count(*) FROM reading_chunks GROUP BY 1"
        assert await restored.fetch(same) == await plain.fetch(same) != []
        await restored.close()
        fresh = await open_pool(other)
        async with acquired(fresh) as connection:
            assert len(await all_compacted(connection)) == 2
        await close_pool(fresh)


@pytest.mark.parametrize("kinds", ["n", "t", "nbt", ""])
async def test_what_is_packed_is_unpacked(plain: Any, kinds: str) -> None:
    """For any rows of one day: every column of every reading."""
    await plain.execute("CREATE TEMPORARY TABLE plain (LIKE readings)")
    await plain.execute("CREATE TEMPORARY TABLE packed (LIKE reading_chunks)")
    rng = random.Random(kinds)

    def number() -> float | None:
        return rng.choice((None, 0.0, -0.0, 5e-324, float("inf"), rng.uniform(-1e300, 1e300)))

    def text() -> str | None:
        return rng.choice((None, "", "NULL", '"\\{}', "\U0001f321" * rng.randrange(200)))

    def at() -> datetime:
        return datetime(1900, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(2**52))

    for rows_wanted in (1, 2, 3, *(rng.randrange(3000) for _ in range(12))):
        devices, times, flags = (rng.choice((1, 2, 50)) for _ in range(3))
        some_times = [at() for _ in range(times)]
        rows = [
            (
                *(rng.randrange(3), rng.randrange(2**62), rng.randrange(devices)),
                rng.choice(some_times) if rng.random() < 0.9 else at(),
                *(rng.randrange(-(2**63), 2**63), rng.randrange(flags), rng.choice((7, -7))),
                [number() for kind in kinds if kind != "t"] or None,
                [text() for kind in kinds if kind == "t"] or None,
                at(),
            )
            for _ in range(rows_wanted)
        ]
        await plain.execute("TRUNCATE plain, packed")
        await plain.copy_records_to_table("plain", records=rows)
        await plain.execute(pack("packed", "SELECT r.*, 5::smallint AS class FROM plain r"))
        found = await plain.fetch(chunked(SELECTED, "true", "true", source="packed"))
        assert sorted(map(repr, map(tuple, found))) == sorted(map(repr, rows))
        assert await plain.fetchval("SELECT sum(count) FROM packed") == rows_wanted


async def test_the_keeper_compacts_and_stops_at_once(dsn: str, pool: Pool, plain: Any, filled: None) -> None:
    keeper = RetentionKeeper(dsn, RetentionSettings())
    await keeper.start()
    async with asyncio.timeout(30):
        while keeper.statistics()["compaction"]["days"] < 3:
            await keeper.ping()
            await asyncio.sleep(0.05)
    await keeper.stop()
    assert keeper.statistics()["compaction"] == {"days": 3, "day": ANY, "trouble": ""}
    assert await plain.fetchval("SELECT count(*) FROM readings") == 0
