"""A log over several databases: which shard is where, one answer from all, and a database that dies."""

import asyncio
import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from spread_log import SpreadLog, split
from storage_rows import NOON_MS, alarm, anomaly, event, reading, registration, snapshot

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import DeadLetter, Reading, Register
from sensorium.actors.origin import Origin
from sensorium.actors.placement import SHARDS, database_of, device_key, shard_of
from sensorium.actors.ports import Filter
from sensorium.actors.records import (
    Alarm,
    AlarmNote,
    AuditRow,
    Command,
    CommandState,
    Commit,
    ErasureRow,
    PresenceRow,
    Registration,
    TimerRow,
    TwinState,
)
from sensorium.actors.twin_documents import NOTHING
from sensorium.storage import (
    Alarms,
    DeadLetters,
    EmbeddedPostgres,
    History,
    PgHostPorts,
    PgLog,
    PgMembership,
    PgMembershipFactory,
    PgRegistry,
    migrate,
)
from sensorium.storage._history_sql import AGGREGATIONS
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import Pool, acquired, connect, open_pool
from sensorium.storage.layout import LayoutMismatch, check_layout
from sensorium.storage.spread import database_of_device
from sensorium.storage.spread_history import SpreadHistory
from sensorium.storage.spread_members import SpreadMembership
from sensorium.storage.spread_reads import SpreadAlarms, SpreadCommands, SpreadDeadLetters, SpreadRegistry

HOUR_MS = 3_600_000
DEVICES = [f"d{n:02}" for n in range(24)]


def command(device_id: str, number: int = 1, state: CommandState = CommandState.QUEUED) -> Command:
    at_ms = NOON_MS + number // 3
    return Command(
        f"{device_id}.{number}", device_id, "turn", {}, state, at_ms, at_ms, 1000, at_ms + 9000, number
    )


def test_each_database_has_a_range_of_shards() -> None:
    for databases in (1, 2, 3, 7, 64):
        places = [database_of(shard, databases) for shard in range(SHARDS)]
        assert places == sorted(places)
        counts = Counter(places)
        assert sorted(counts) == list(range(databases))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert all(database_of(shard, 4) // 2 == database_of(shard, 2) for shard in range(SHARDS))


def test_a_commit_is_split_without_loss() -> None:
    letter = DeadLetter(DEVICES[1], "mqtt", "t", "empty", "", b"", 0, NOON_MS)
    commit = Commit(
        readings=[reading(d, 1) for d in DEVICES],
        events=[event(d, 2) for d in DEVICES],
        registrations=[registration(d) for d in DEVICES],
        alarms=[alarm(f"a-{d}", d) for d in DEVICES],
        dead_letters=[letter, DeadLetter("", "mqtt", "t", "bad_device_id", "", b"", 0, NOON_MS)],
        timers=[TimerRow(shard_of(d), d, "t", 1, 1) for d in DEVICES],
        commands=[command(d) for d in DEVICES],
        presences=[PresenceRow(d, True, NOON_MS) for d in DEVICES],
        twins=[TwinState(d, NOTHING, NOTHING) for d in DEVICES],
        anomalies=[anomaly(n, d) for n, d in enumerate(DEVICES)],
        alarm_notes=[AlarmNote(d, f"a-{d}", NOON_MS, "ada", assignee="eve") for d in DEVICES],
        erasures=[
            ErasureRow(f"j-{d}", d, shard_of(d), 3, NOON_MS, False, None, snapshot(d, 3)) for d in DEVICES
        ],
        audits=[AuditRow(d, NOON_MS, Origin("ada"), "device.change", d, None, None) for d in DEVICES],
    )
    kinds = [field.name for field in dataclasses.fields(Commit) if field.name not in ("epochs", "told")]
    assert all(getattr(commit, kind) for kind in kinds), "a kind of rows that is new here"
    parts = split(commit, 3)
    assert sorted(parts) == [0, 1, 2]
    for kind in kinds:
        rows = [(n, row) for n, part in parts.items() for row in getattr(part, kind)]
        assert sorted((row for _, row in rows), key=repr) == sorted(getattr(commit, kind), key=repr)
        for n, row in rows:
            shard = row.shard if hasattr(row, "shard") else shard_of(row.device_id)
            assert database_of(shard, 3) == n
    assert split(Commit(), 3) == {}


# --- one answer from all ------------------------------------------------------------------------------------


def everything(rng: random.Random) -> Commit:
    devices = [registration(d, rng.choice(["pump", "valve"]), n=n) for n, d in enumerate(DEVICES)]
    rows = []
    for device in DEVICES:
        for n in range(1, 30):
            time_ms = NOON_MS + rng.randrange(5 * HOUR_MS)
            rows.append(reading(device, n, time_ms, n, temperature=float(rng.randrange(400)) / 8))
    alarms = [
        alarm(f"a{n}", rng.choice(DEVICES), rng.choice(["ACTIVE", "CLEARED"]), start_ms=NOON_MS + n // 3)
        for n in range(30)
    ]
    letters = [
        DeadLetter(rng.choice(DEVICES), "mqtt", "t", rng.choice("xy"), f"{n}", b"", 0, NOON_MS + n)
        for n in range(30)
    ]
    commands = [
        command(rng.choice(DEVICES), n, rng.choice([CommandState.QUEUED, CommandState.FAILED]))
        for n in range(30)
    ]
    return Commit(rows, [], devices, alarms, letters, commands=commands)


async def pages(ask: Any, limit: int) -> list[Any]:
    """All items by pages of that size."""
    items: list[Any] = []
    after = None
    for _ in range(100):
        page = await ask(after, limit)
        assert len(page.items) <= limit
        items += page.items
        after = page.next
        if after is None:
            return items
    raise AssertionError("no end")


@pytest.mark.slow
@pytest.mark.database
async def test_it_answers_as_one_database_does(
    two_dsns: list[str], two_pools: list[Pool], module_dsn: str, module_pool: Pool
) -> None:
    commit = everything(random.Random(3))
    one = PgLog(module_dsn, await PgMembership(module_pool).join("a"))
    incarnation = await SpreadMembership([PgMembership(pool) for pool in two_pools]).join("a")
    two = SpreadLog([PgLog(dsn, incarnation) for dsn in two_dsns])
    await one.commit(commit)
    await two.commit(commit)

    for which in (Filter(), Filter(device_type="pump"), Filter(metadata={"n": 3}), Filter(device_ids=["d1"])):
        for limit in (1, 5, 100):
            single: list[Registration] = await pages(
                lambda a, n, which=which: PgRegistry(module_pool).page(which, a, n), limit
            )
            assert single == await pages(
                lambda a, n, which=which: SpreadRegistry(two_pools).page(which, a, n), limit
            )
        for shards in (None, [shard_of("d03"), shard_of("d04")], []):
            assert await PgRegistry(module_pool).select(which, shards) == await SpreadRegistry(
                two_pools
            ).select(which, shards)
    assert await SpreadRegistry(two_pools).counts() == await PgRegistry(module_pool).counts()
    assert await SpreadRegistry(two_pools).get("d05") == await PgRegistry(module_pool).get("d05")

    for filters in ({}, {"state": "ACTIVE"}, {"device_id": "d07"}):
        for limit in (1, 7, 100):
            alarms: list[Alarm] = await pages(
                lambda a, n, f=filters: Alarms(module_pool).page(**f, after=a, limit=n), limit
            )
            assert alarms == await pages(
                lambda a, n, f=filters: SpreadAlarms(two_pools).page(**f, after=a, limit=n), limit
            )
    assert await SpreadAlarms(two_pools).counts() == await Alarms(module_pool).counts()
    assert await SpreadAlarms(two_pools).active_devices("r1") == await Alarms(module_pool).active_devices(
        "r1"
    )
    assert await SpreadAlarms(two_pools).get("a7") == await Alarms(module_pool).get("a7")
    assert await SpreadAlarms(two_pools).get("none") is None

    for filters in ({}, {"state": "FAILED"}, {"device_id": "d07"}):
        for limit in (1, 7, 100):
            commands: list[Command] = await pages(
                lambda a, n, f=filters: PgCommands(module_pool).page(**f, after=a, limit=n), limit
            )
            assert commands == await pages(
                lambda a, n, f=filters: SpreadCommands(two_pools).page(**f, after=a, limit=n), limit
            )
    some = commit.commands[11]
    assert await SpreadCommands(two_pools).get(some.command_id) == some
    assert await SpreadCommands(two_pools).get("none") is None

    for reason in (None, "x"):
        for limit in (1, 4, 100):
            letters = await pages(
                lambda a, n, r=reason: DeadLetters(module_pool).page(r, after=a, limit=n), limit
            )
            merged = await pages(
                lambda a, n, r=reason: SpreadDeadLetters(two_pools).page(r, after=a, limit=n), limit
            )
            assert [x._replace(id=0) for x in letters] == [x._replace(id=0) for x in merged]
            assert len({x.id for x in merged}) == len(merged)
    assert await SpreadDeadLetters(two_pools).counts() == await DeadLetters(module_pool).counts()
    for bad in ([1], "x", [1, 2, 3]):
        with pytest.raises(InvalidMessage):
            await SpreadDeadLetters(two_pools).page(after=bad)

    history, spread = History(module_pool), SpreadHistory(two_pools)
    assert await spread.readings("d09", limit=5) == await history.readings("d09", limit=5)
    assert await spread.aggregate("d09", interval_s=3600) == await history.aggregate("d09", interval_s=3600)
    for aggregation in AGGREGATIONS:
        for interval_s in (None, 3600.0, 60.0):
            asked = ("pump", "temperature", None, None, aggregation, interval_s)
            expected, found = await history.aggregate_type(*asked), await spread.aggregate_type(*asked)
            assert (found.source, found.approximate) == (expected.source, expected.approximate)
            assert [(b.start_ms, b.devices) for b in found] == [(b.start_ms, b.devices) for b in expected]
            assert [b.value for b in found] == pytest.approx([b.value for b in expected], rel=1e-12)
    await one.close()
    await two.close()


# --- members ------------------------------------------------------------------------------------------------


@pytest.mark.database
async def test_who_is_fenced_commits_to_none_of_them(two_dsns: list[str], two_pools: list[Pool]) -> None:
    members = SpreadMembership([PgMembership(pool) for pool in two_pools])
    first = await members.join("a")
    log = SpreadLog([PgLog(dsn, first) for dsn in two_dsns])
    await log.commit(Commit(readings=[reading(d, 1) for d in DEVICES]))
    await members.join("a")
    for device in DEVICES[:6]:
        with pytest.raises(Fenced):
            await log.commit(Commit(readings=[reading(device, 2)]))
    with pytest.raises(Fenced):
        await log.save([snapshot(d, 1) for d in DEVICES], {})
    await log.close()


# --- layout -------------------------------------------------------------------------------------------------


@pytest.mark.database
async def test_the_databases_are_noted_and_compared(two_dsns: list[str], module_dsn: str) -> None:
    await check_layout(two_dsns)
    await check_layout(two_dsns)
    one, two = two_dsns
    for wrong, said in (
        ([one], "is spread over 2 databases, and 1 is named"),
        ([one, two, module_dsn], "is spread over 2 databases, and 3 are named"),
        ([one, module_dsn], "is not database 2 of this log"),
        ([two, one], "is database 2 of 2 of a log: name the first one first"),
        ([two], "is database 2 of 2 of a log"),
    ):
        with pytest.raises(LayoutMismatch, match=said) as caught:
            await check_layout(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.database
async def test_a_log_of_one_database_is_not_spread_by_naming_a_second(
    two_dsns: list[str], two_pools: list[Pool]
) -> None:
    one, _ = two_dsns
    log = PgLog(one, await PgMembership(two_pools[0]).join("a"))
    await log.commit(Commit(registrations=[registration("d")]))
    await log.close()
    with pytest.raises(LayoutMismatch, match="holds a log that is not spread over 2 databases"):
        await check_layout(two_dsns)
    await check_layout([one])
    with pytest.raises(LayoutMismatch, match="is spread over 1 database, and 2 are named"):
        await check_layout(two_dsns)


@pytest.mark.database
async def test_a_first_start_that_was_cut_off_is_done_again(
    two_dsns: list[str], two_pools: list[Pool]
) -> None:
    await check_layout(two_dsns)
    async with acquired(two_pools[0]) as connection:
        await connection.execute("DELETE FROM log_layout")
    await check_layout(two_dsns)
    await check_layout(two_dsns)


# --- a database that dies -----------------------------------------------------------------------------------


@pytest.mark.database
@pytest.mark.slow
async def test_one_of_two_is_killed_under_load(open_directory: Path) -> None:
    """What the host answered for is stored, once and in order, in either database."""
    settings = {"shared_buffers": "32MB", "fsync": "off"}
    servers = [EmbeddedPostgres(open_directory / f"pg{n}", settings) for n in range(2)]
    rng = random.Random(5)
    with servers[0], servers[1]:
        dsns = [server.dsn for server in servers]
        for dsn in dsns:
            await migrate(dsn)
        members = await PgMembershipFactory(dsns[0], others=(dsns[1],))()
        incarnation = await members.join("host-0")
        ports = PgHostPorts(dsns[0], (dsns[1],))
        host = DeviceHost("host-0", incarnation, range(SHARDS), ports, HostSettings())
        await host.start()
        sent = dict.fromkeys(DEVICES, 0)
        failed: Counter[str] = Counter()
        ending = asyncio.Event()

        async def settled(device_id: str, message: Any, names: tuple[str, ...] = ()) -> None:
            while True:
                try:
                    await host.ask(message, names)
                except LogUnavailable:
                    failed[device_id] += 1
                    await asyncio.sleep(0.02)
                else:
                    return

        async def device(device_id: str) -> None:
            await settled(device_id, Register(device_id, "pump"))
            while not ending.is_set():
                number = sent[device_id] = sent[device_id] + 1
                at_ms = NOON_MS + number
                await settled(device_id, Reading(device_id, at_ms, at_ms, number, 0, [float(number)]), ("n",))

        async def more(readings: int) -> None:
            goal = sum(sent.values()) + readings
            async with asyncio.timeout(30):
                while sum(sent.values()) < goal:
                    await asyncio.sleep(0.01)

        async def all_answer() -> bool:
            try:
                return not (await members.read()).away
            except LogUnavailable:
                return False

        async with asyncio.TaskGroup() as tasks:
            for device_id in DEVICES:
                tasks.create_task(device(device_id))
            for victim in (servers[1], servers[0]):
                await more(rng.randrange(200, 800))
                victim.kill9()
                async with asyncio.timeout(20):
                    while not failed:
                        await asyncio.sleep(0.01)
                # What is in the other database goes on.
                healthy = [d for d in DEVICES if servers[database_of_device(d, 2)] is not victim]
                goal = sum(sent[d] for d in healthy) + 200
                async with asyncio.timeout(20):
                    while sum(sent[d] for d in healthy) < goal:
                        await asyncio.sleep(0.01)
                assert set(failed).isdisjoint(healthy)
                if victim is servers[0]:
                    with pytest.raises(LogUnavailable):
                        await members.join("host-2")
                else:
                    late = await members.join("host-1")
                    assert (await members.read()).away == [1]
                await asyncio.to_thread(victim.start)
                async with asyncio.timeout(20):
                    while not await all_answer():
                        await asyncio.sleep(0.1)
                await more(200)
                failed.clear()
            await more(300)
            # Who joined while one was away is a member there, too, and who is fenced is so there.
            second = PgMembership(await open_pool(dsns[1], 1))
            assert {m.incarnation for m in (await second.read()).alive} == {incarnation, late}
            await members.fence(late)
            assert {m.incarnation for m in (await second.read()).alive} == {incarnation}
            await second.close()
            ending.set()
        await host.stop()
        await members.close()

        for n, dsn in enumerate(dsns):
            mine = [d for d in DEVICES if database_of_device(d, 2) == n]
            assert mine
            connection = await connect(dsn)
            for device_id in DEVICES:
                rows = await connection.fetch(
                    "SELECT key FROM readings WHERE device = $1 ORDER BY log_offset", device_key(device_id)
                )
                expected = list(range(1, sent[device_id] + 1)) if device_id in mine else []
                assert [row["key"] for row in rows] == expected
            gaps = await connection.fetchval(
                "SELECT count(*) FROM (SELECT FROM (SELECT shard, log_offset FROM readings"
                " UNION ALL SELECT shard, log_offset FROM events) log GROUP BY shard"
                " HAVING count(*) <> max(log_offset) OR count(*) <> count(DISTINCT log_offset)) faulty"
            )
            assert gaps == 0
            await connection.close()


@pytest.mark.database
async def test_a_dead_letter_is_found_by_its_number(two_pools: list[Pool], two_dsns: list[str]) -> None:
    letters = SpreadDeadLetters(two_pools)
    for pool in two_pools:
        await pool.execute(
            "INSERT INTO dead_letters (received_at, device_id, source, address, reason, detail, payload,"
            " size_bytes) VALUES (to_timestamp(0), 'd', 'mqtt', 'a', 'empty', '', '', 0)"
        )
    page = await letters.page()
    assert len({letter.id for letter in page.items}) == 2
    for letter in page.items:
        assert await letters.get(letter.id) == letter
        assert await letters.delete(letter.id)
        assert not await letters.delete(letter.id)
        assert await letters.get(letter.id) is None
    assert (await letters.page()).items == []
