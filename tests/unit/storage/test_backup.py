"""Backups: the same rows come back, from one moment, through interruptions; what is damaged is refused."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from conftest import copied
from storage_rows import alarm, event, reading, registration, snapshot

from sensorium.actors.placement import ALL_SHARDS, shard_of
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership, close_pool, drop_partitions, migrate, open_pool
from sensorium.storage.backup import back_up
from sensorium.storage.backup_files import MANIFEST, BadBackup, Manifest, read_manifest
from sensorium.storage.checkup import UnsuitableDatabase, check_server
from sensorium.storage.claim import Claim, DatabaseClaimed, Role
from sensorium.storage.database import connect
from sensorium.storage.embedded import EmbeddedPostgres
from sensorium.storage.migrate import migrations
from sensorium.storage.partitions import create
from sensorium.storage.restore import restore, verify

pytestmark = [pytest.mark.database, pytest.mark.slow]

OWN = {"schema_migrations", "platform_claims"}
LONG_AGO = datetime.now(UTC).date() - timedelta(days=3)


@pytest.fixture
async def empty(server: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database with nothing in it, not migrated either."""
    async with copied(server, "template0", "of_a_restore") as address:
        yield address


@pytest.fixture
async def filled(dsn: str) -> str:
    """A database with something in most tables, and a partition of three days ago."""
    pool = await open_pool(dsn)
    incarnation = await PgMembership(pool).join("host-0")
    log = PgLog(dsn, incarnation)
    await log.open([shard_of("d"), shard_of("e")])
    await log.commit(
        Commit(
            registrations=[registration("d", site="north"), registration("e")],
            readings=[reading("d", n, key=n, temperature=float(n), text="ü\x01") for n in range(1, 51)],
            events=[event("d", 51), event("e", 1, retention_class=3)],
            alarms=[alarm("a-1", "d")],
        )
    )
    await log.save([snapshot("d", 51, state=bytes(range(256)))], {shard_of("d"): 51})
    await log.close()
    async with pool.acquire() as connection:
        await create(connection, "readings", LONG_AGO)
        await connection.execute(
            "INSERT INTO readings SELECT shard, log_offset + 100, device, time, key + 100, flags, metric_set,"
            " numbers, texts, $1 FROM readings",
            int(datetime(LONG_AGO.year, LONG_AGO.month, LONG_AGO.day, 12, tzinfo=UTC).timestamp() * 1000),
        )
    await close_pool(pool)
    return dsn


def unheard(*_: object) -> None:
    """Tells nobody."""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


def until(table: str) -> Callable[[str, int, int], None]:
    """Interrupts when it comes to a table."""

    def told(now: str, *_: int) -> None:
        if now == table:
            raise Interrupted

    return told


async def contents(dsn: str) -> dict[str, list[str]]:
    """Every row of every table and partition, and what the sequences will give out next."""
    connection = await asyncpg.connect(dsn)
    found = {}
    for row in await connection.fetch(
        "SELECT relname::text AS name FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    ):
        if row["name"] not in OWN:
            rows = await connection.fetch(f'SELECT t::text AS row FROM "{row["name"]}" t')
            found[row["name"]] = sorted(r["row"] for r in rows)
    sequences = await connection.fetch(
        "SELECT sequencename::text AS name, last_value FROM pg_sequences WHERE schemaname = 'public'"
    )
    found["sequences"] = sorted(f"{r['name']} {r['last_value']}" for r in sequences)
    await connection.close()
    return found


async def test_the_same_comes_back(filled: str, empty: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = await back_up([filled], tmp_path / "b", "9.9", lambda _, done, of_all: told.append((done, of_all)))
    assert (made.databases[0].rows("readings"), made.databases[0].rows("devices")) == (100, 2)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "b").rglob("*.gz"))
    assert await verify(tmp_path / "b", unheard) == made
    assert await restore(tmp_path / "b", [empty], unheard) == made
    before = await contents(filled)
    assert len(before["readings_" + format(LONG_AGO, "%Y%m%d")]) == 50
    assert await contents(empty) == before
    assert await check_server(empty, 1) == [
        "the database of_a_restore has fsync off: a crash of its machine can destroy it"
    ]


async def test_it_is_of_one_moment_while_the_platform_commits(
    filled: str, empty: str, tmp_path: Path
) -> None:
    pool = await open_pool(filled)
    log = PgLog(filled, await PgMembership(pool).join("host-0"))
    heads = await log.open([shard_of("d"), shard_of("e")])
    committed = 0

    async def write() -> None:
        nonlocal committed
        while True:
            # One transaction, in two tables: a reading of one device, an event of the other.
            heads[shard_of("d")] += 1
            heads[shard_of("e")] += 1
            await log.commit(
                Commit(
                    readings=[reading("d", heads[shard_of("d")], key=1_000 + committed)],
                    events=[event("e", heads[shard_of("e")], kind="pair")],
                )
            )
            committed += 1

    writer = asyncio.create_task(write())
    while committed < 5:
        await asyncio.sleep(0)
    await back_up([filled], tmp_path / "b", "9.9", unheard)
    at_the_end = committed
    while committed < at_the_end + 5:
        await asyncio.sleep(0)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await log.close()
    await close_pool(pool)
    await restore(tmp_path / "b", [empty], unheard)
    connection = await asyncpg.connect(empty)
    readings = await connection.fetchval("SELECT count(*) FROM readings WHERE key >= 1000")
    pairs = await connection.fetchval("SELECT count(*) FROM events WHERE kind = 'pair'")
    await connection.close()
    assert 5 <= readings == pairs <= at_the_end + 1


async def test_settled_partitions_are_not_copied_again(filled: str, empty: str, tmp_path: Path) -> None:
    old = "readings_" + format(LONG_AGO, "%Y%m%d")
    first = files(await back_up([filled], tmp_path / "b", "9.9", unheard))
    connection = await asyncpg.connect(filled)
    await connection.execute("DELETE FROM devices WHERE device_id = 'e'")
    second = files(await back_up([filled], tmp_path / "b", "9.9", unheard))
    assert second[old] == first[old]
    assert second["devices"] != first["devices"]
    assert {str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").glob("0/*")} == set(second.values())
    # Unless it is not what it was: damaged, or other rows.
    (tmp_path / "b" / second[old]).write_bytes(b"\x1f\x8b damaged")
    third = files(await back_up([filled], tmp_path / "b", "9.9", unheard))
    assert third[old] != second[old]
    await connection.execute(f"DELETE FROM {old} WHERE log_offset = 101")
    await connection.close()
    fourth = files(await back_up([filled], tmp_path / "b", "9.9", unheard))
    assert fourth[old] != third[old]
    await restore(tmp_path / "b", [empty], unheard)
    assert await contents(empty) == await contents(filled)


async def test_a_backup_that_is_cut_off_goes_on(filled: str, empty: str, tmp_path: Path) -> None:
    old = "readings_" + format(LONG_AGO, "%Y%m%d")
    with pytest.raises(Interrupted):
        await back_up([filled], tmp_path / "b", "9.9", until("rules"))
    with pytest.raises(BadBackup, match="was not finished: run it again"):
        await restore(tmp_path / "b", [empty], unheard)
    (copied_already,) = (tmp_path / "b/0").glob(f"{old}*")
    written = copied_already.stat().st_mtime_ns
    made = await back_up([filled], tmp_path / "b", "9.9", unheard)
    assert files(made)[old] == f"0/{copied_already.name}"
    assert copied_already.stat().st_mtime_ns == written
    await restore(tmp_path / "b", [empty], unheard)
    assert await contents(empty) == await contents(filled)


async def test_a_backup_that_fails_leaves_the_one_before(filled: str, empty: str, tmp_path: Path) -> None:
    await back_up([filled], tmp_path / "b", "9.9", unheard)
    before = await contents(filled)
    connection = await asyncpg.connect(filled)
    await connection.execute("DELETE FROM devices")
    await connection.close()
    with pytest.raises(Interrupted):
        await back_up([filled], tmp_path / "b", "9.9", until("rules"))
    await restore(tmp_path / "b", [empty], unheard)
    assert await contents(empty) == before


async def test_a_restore_that_is_cut_off_goes_on(filled: str, empty: str, tmp_path: Path) -> None:
    await back_up([filled], tmp_path / "b", "9.9", unheard)
    with pytest.raises(Interrupted):
        await restore(tmp_path / "b", [empty], until("rules"))
    with pytest.raises(UnsuitableDatabase, match="half restored"):
        await check_server(empty, 1)
    seen: list[str] = []
    await restore(tmp_path / "b", [empty], lambda table, *_: seen.append(table))
    assert await contents(empty) == await contents(filled)
    # Another backup is not mixed into it.
    with pytest.raises(BadBackup, match="holds 2 devices"):
        await restore(tmp_path / "b", [empty], unheard)


async def test_half_of_one_backup_is_not_mixed_with_another(filled: str, empty: str, tmp_path: Path) -> None:
    await back_up([filled], tmp_path / "b", "9.9", unheard)
    with pytest.raises(Interrupted):
        await restore(tmp_path / "b", [empty], until("rules"))
    await back_up([filled], tmp_path / "c", "9.9", unheard)
    with pytest.raises(BadBackup, match=r"another backup than .*c was being restored"):
        await restore(tmp_path / "c", [empty], unheard)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "other rows", "longer"])
async def test_what_is_damaged_is_named_and_nothing_of_it_counts(
    damage: str, filled: str, empty: str, tmp_path: Path
) -> None:
    made = await back_up([filled], tmp_path, "9.9", unheard)
    path = tmp_path / files(made)["devices"]
    was = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = was[:-9] + bytes([was[-9] ^ 1]) + was[-8:]
        other = (tmp_path / files(made)["rules"]).read_bytes()
        path.write_bytes({"short": was[:-20], "flipped": flipped, "other rows": other}.get(damage, was * 2))
    for attempt in (verify(tmp_path, unheard), restore(tmp_path, [empty], unheard)):
        with pytest.raises(BadBackup, match=f"{path.name} is (missing|damaged)"):
            await attempt
    path.write_bytes(was)
    await restore(tmp_path, [empty], unheard)
    assert await contents(empty) == await contents(filled)


async def test_only_what_is_empty_and_nobodys_is_filled(filled: str, empty: str, tmp_path: Path) -> None:
    made = await back_up([filled], tmp_path, "9.9", unheard)
    with pytest.raises(BadBackup, match="holds 2 devices and 0 rules already"):
        await restore(tmp_path, [filled], unheard)
    with pytest.raises(BadBackup, match="of 1 databases, and 2 are named"):
        await restore(tmp_path, [empty, filled], unheard)
    platform = Claim(empty, Role.PLATFORM)
    await platform.hold()
    with pytest.raises(DatabaseClaimed):
        await restore(tmp_path, [empty], unheard)
    await platform.close()
    newer = msgspec.structs.replace(made.databases[0], schema=len(migrations()) + 1)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(made, databases=(newer,))))
    with pytest.raises(BadBackup, match=r"written by Sensorium 9\.9, which is newer"):
        await restore(tmp_path, [empty], unheard)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(made, format=2)))
    with pytest.raises(BadBackup, match="has format 2"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"{}")
    with pytest.raises(BadBackup, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("of", ["devices; DROP TABLE rules", "schema_migrations", "pg_authid"])
async def test_a_manifest_names_no_other_tables(of: str, filled: str, empty: str, tmp_path: Path) -> None:
    made = await back_up([filled], tmp_path, "9.9", unheard)
    first, *others = made.databases[0].tables
    tables = (msgspec.structs.replace(first, table=of), *others)
    changed = msgspec.structs.replace(made.databases[0], tables=tables)
    (tmp_path / MANIFEST).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(made, databases=(changed,)))
    )
    with pytest.raises(BadBackup, match="does not fit"):
        await restore(tmp_path, [empty], unheard)


async def test_a_folder_with_something_else_is_left_alone(filled: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(BadBackup, match="holds photos"):
        await back_up([filled], tmp_path, "9.9", unheard)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    with pytest.raises(BadBackup, match="holds no backup"):
        await verify(tmp_path, unheard)


async def test_no_partition_is_dropped_while_a_backup_is_made(filled: str, tmp_path: Path) -> None:
    connection = await connect(filled)

    async def drop() -> list[str]:
        return await drop_partitions(connection, LONG_AGO + timedelta(days=1), ["readings"])

    tries: list[asyncio.Task[list[str]]] = []

    def told(*_: Any) -> None:
        if not tries:
            tries.append(asyncio.create_task(drop()))

    await back_up([filled], tmp_path, "9.9", told)
    assert await tries[0] == []
    assert len(await drop()) == 1
    await connection.close()


async def test_a_backup_of_an_older_schema_is_brought_up_to_date(
    server: EmbeddedPostgres, empty: str, tmp_path: Path
) -> None:
    async with copied(server, "template0", "of_an_older_version") as old:
        await migrate(old, 8)
        connection = await asyncpg.connect(old)
        await connection.execute(
            "INSERT INTO devices VALUES (1, 'd', 'pump', 'active', NULL, '{}', now(), now())"
        )
        await connection.close()
        made = await back_up([old], tmp_path, "0.0", unheard)
        assert made.databases[0].schema == 8
    await restore(tmp_path, [empty], unheard)
    assert await migrate(empty) == 0
    found = await contents(empty)
    assert len(found["devices"]) == 1
    assert len(found["assignments"]) == ALL_SHARDS


async def test_several_databases_of_one_log(
    two_dsns: list[str], server: EmbeddedPostgres, empty: str, tmp_path: Path
) -> None:
    for number, dsn in enumerate(two_dsns):
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "INSERT INTO devices VALUES ($1, $2, 'pump', 'active', NULL, '{}', now(), now())",
            number,
            f"d{number}",
        )
        await connection.close()
    made = await back_up(two_dsns, tmp_path, "9.9", unheard)
    assert len(made.databases) == 2
    with pytest.raises(BadBackup, match="of 2 databases, and this is one of 1"):
        await back_up(two_dsns[:1], tmp_path, "9.9", unheard)
    async with copied(server, "template0", "of_a_restore_too") as other:
        await restore(tmp_path, [empty, other], unheard)
        for old, new in zip(two_dsns, (empty, other), strict=True):
            assert await contents(new) == await contents(old)


def files(manifest: Manifest) -> dict[str, str]:
    return {table.table: table.file for table in manifest.databases[0].tables}
