"""Following the log: every committed row once, whatever becomes visible when, and again from any position."""

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest
from storage_rows import event, reading, registration

from sensorium.actors.placement import device_key
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.live_cursor import Position, read_cursor, write_cursor
from sensorium.storage.live_log import Change, LiveLog

pytestmark = pytest.mark.database


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await log.commit(Commit(registrations=[registration("one"), registration("two", "valve")]))
    yield log
    await log.close()


@pytest.fixture
async def live(dsn: str) -> AsyncIterator[LiveLog]:
    live = LiveLog(dsn)
    yield live
    await live.close()


def places(changes: list[Change]) -> list[tuple[str, int]]:
    return [(change.device_id, change.offset) for change in changes]


async def caught_up(
    live: LiveLog, start: Position, end: Position, devices: list[int] | None = None
) -> list[tuple[str, int]]:
    return [place async for page, _ in live.between(start, end, devices=devices) for place in places(page)]


async def test_what_is_committed_comes_once(log: PgLog, live: LiveLog) -> None:
    await log.commit(Commit(readings=[reading("one", 1)]))
    position = await live.here()
    assert (await live.after(position))[0] == []
    await log.commit(
        Commit(readings=[reading("one", 2, temperature=21.5, on=True), reading("two", 1, mode="eco")])
    )
    await log.commit(Commit(events=[event("one", 3, "alarm_raised", b'{"severity":"major"}')]))
    changes, position, more = await live.after(position)
    assert not more
    assert sorted(places(changes)) == [("one", 2), ("one", 3), ("two", 1)]
    by_place = {(change.device_id, change.offset): change for change in changes}
    first = by_place["one", 2]
    assert (first.device_type, first.values, first.kind) == ("pump", {"temperature": 21.5, "on": True}, None)
    assert first.time_ms == 1_704_110_400_000
    raised = by_place["one", 3]
    assert (raised.kind, raised.body, raised.values) == ("alarm_raised", {"severity": "major"}, None)
    assert (await live.after(position))[0] == []


async def test_without_readings_only_events_come(log: PgLog, live: LiveLog) -> None:
    position = await live.here()
    await log.commit(Commit(readings=[reading("one", 1)], events=[event("one", 2, "online")]))
    changes, _, _ = await live.after(position, readings=False)
    assert places(changes) == [("one", 2)]


async def test_only_the_devices_that_matter(log: PgLog, live: LiveLog) -> None:
    position = await live.here()
    await log.commit(Commit(readings=[reading("one", 1), reading("two", 1)]))
    changes, end, _ = await live.after(position, devices=[device_key("two")])
    assert places(changes) == [("two", 1)]
    assert await caught_up(live, position, end, [device_key("two")]) == [("two", 1)]


async def test_a_commit_that_becomes_visible_late_is_given(dsn: str, pool: Pool, live: LiveLog) -> None:
    """The older transaction ends last: its rows are behind those that have been given already."""
    await PgMembership(pool).join("a")
    slow = await asyncpg.connect(dsn, server_settings={"application_name": "sensorium-host-7"})
    quick = await asyncpg.connect(dsn, server_settings={"application_name": "sensorium-host-8"})
    insert = (
        "INSERT INTO events (shard, log_offset, device, time, kind, body)"
        " VALUES (0, $1, $2, now(), 'online', '{}')"
    )
    try:
        for device in ("one", "two"):
            await quick.execute(
                "INSERT INTO devices VALUES ($1, $2, 'pump', 'active', NULL, '{}', now(), now())",
                device_key(device),
                device,
            )
        position = start = await live.here()
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(insert, 1, device_key("one"))
        await quick.execute(insert, 1, device_key("two"))
        changes, position, _ = await live.after(position)
        assert places(changes) == [("two", 1)]
        between = read_cursor(write_cursor([position]), 1)[0]
        await transaction.commit()
        changes, position, _ = await live.after(position)
        assert places(changes) == [("one", 1)]
        # Whoever comes back with the cursor from in between gets what they lack, and only that.
        assert await caught_up(live, between, position) == [("one", 1)]
        assert sorted(await caught_up(live, start, position)) == [("one", 1), ("two", 1)]
    finally:
        await slow.close()
        await quick.close()


async def test_pages_hold_whole_commits(log: PgLog, live: LiveLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.storage.live_log.PAGE_ENTRIES", 5)
    start = position = await live.here()
    expected = []
    offset = 0
    for size in (3, 3, 7, 1, 12, 2):
        rows = [reading("one", offset + n + 1, key=offset + n) for n in range(size)]
        offset += size
        await log.commit(Commit(readings=rows))
        expected += [("one", row.offset) for row in rows]
    found: list[tuple[str, int]] = []
    cursors = [start]
    more = True
    while more:
        changes, position, more = await live.after(position)
        found += places(changes)
        cursors.append(position)
    assert found == expected
    for cursor in cursors:
        rest = [place async for page, _ in live.between(cursor, position) for place in places(page)]
        assert rest == expected[len(expected) - len(rest) :]
    assert await caught_up(live, start, position) == expected


async def test_from_every_page_of_a_catch_up_it_goes_on(
    log: PgLog, live: LiveLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.live_log.PAGE_ENTRIES", 4)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    start = await live.here()
    offset = 0
    for _ in range(12):
        size = rng.randint(1, 6)
        await log.commit(
            Commit(readings=[reading("one", offset + n + 1, key=offset + n) for n in range(size)])
        )
        offset += size
    end = await live.here()
    pages = [(places(page), position) async for page, position in live.between(start, end)]
    whole = [place for page, _ in pages for place in page]
    assert whole == [("one", n + 1) for n in range(offset)], seed
    given = 0
    for page, position in pages:
        given += len(page)
        rest = await caught_up(live, position, end)
        # At least what is left; a commit that was cut comes again as a whole.
        assert rest[-(offset - given) :] == whole[given:] if given < offset else len(rest) <= 6, seed


async def test_a_vacuum_at_work_holds_nobody_up(dsn: str, log: PgLog, live: LiveLog) -> None:
    position = await live.here()
    await log.commit(Commit(readings=[reading("one", 1)]))
    vacuum = await asyncpg.connect(dsn)
    try:
        async with vacuum.transaction(), asyncio.timeout(5):
            for row in await vacuum.fetch("SELECT inhrelid::regclass::text FROM pg_inherits"):
                if "idx" not in row[0]:
                    await vacuum.execute(f"LOCK TABLE {row[0]} IN SHARE UPDATE EXCLUSIVE MODE")
            changes, _, _ = await live.after(position)
        assert places(changes) == [("one", 1)]
    finally:
        await vacuum.close()
