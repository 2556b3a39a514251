"""The stored past, of both stores; and rows out of PostgreSQL's COPY, cut anywhere."""

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from storage_rows import NOON_MS, alarm, reading, registration
from storage_stores import Store
from tests.unit.actors.driving import DEVICE_ID, TYPE, Driver

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import ChangeTwin, Register
from sensorium.actors.ports import Filter
from sensorium.actors.records import Commit, TailReading
from sensorium.actors.rules import Operator, RuleSpec, Threshold
from sensorium.storage import stored_past as past_module
from sensorium.storage.database import Pool, acquired
from sensorium.storage.decode_copy import CopiedReadings
from sensorium.storage.stored_past import PgStoredPastFactory


async def test_readings_come_as_they_came(store: Store) -> None:
    log = store.log(await store.members.join("host"))
    past = [
        reading("a", 3, NOON_MS + 2000, key=-3, temperature=3.5),
        reading("a", 1, NOON_MS + 5000, key=1, temperature=1.5, on=True, mode="fast"),
        reading("a", 2, NOON_MS, key=2, temperature=2.5),
        reading("a", 4, NOON_MS + 10_000, key=4, temperature=4.5),
        reading("a", 5, NOON_MS - 1, key=5, temperature=5.5),
        reading("b", 1, NOON_MS, key=6, humidity=1.0),
    ]
    absent = past[1]._replace(offset=6, key=7, time_ms=NOON_MS + 9999, values=[None, False, None])
    await log.commit(Commit(readings=[*past, absent], registrations=[registration("a"), registration("b")]))
    stored = await store.past()
    got: list[TailReading] = []
    try:
        await stored.readings("a", NOON_MS, NOON_MS + 10_000, got.extend)
        assert [(r.offset, r.time_ms, r.key, list(r.values)) for r in got] == [
            (1, NOON_MS + 5000, 1, [1.5, True, "fast"]),
            (2, NOON_MS, 2, [2.5]),
            (3, NOON_MS + 2000, -3, [3.5]),
            (6, NOON_MS + 9999, 7, [None, False, None]),
        ]
        assert got[0].metric_set is past[1].metric_set
        await stored.readings("nobody", NOON_MS, NOON_MS + 1, got.extend)
        assert len(got) == 4
        assert await stored.has_readings(["nobody", "b"], NOON_MS, NOON_MS + 1)
        assert not await stored.has_readings(["b"], NOON_MS - 10, NOON_MS)
        assert not await stored.has_readings([], NOON_MS, NOON_MS + 1)
    finally:
        await stored.close()


async def test_twins_as_they_were(store: Store) -> None:
    driver = Driver(register=False)
    driver.now_ms = NOON_MS
    driver.send(Register(DEVICE_ID, TYPE))
    for second, part, patch in [
        (1, "desired", {"a": {"b": 1}}),
        (2, "reported", {"m": 1e300}),
        (3, "desired", {"a": {"c": 2}}),
        (3, "desired", {"a": {"b": None}}),
        (5, "reported", {"m": "x"}),
    ]:
        driver.now_ms = NOON_MS + second * 1000
        driver.send(ChangeTwin(DEVICE_ID, **{part: patch}))  # type: ignore[arg-type]
    log = store.log(await store.members.join("host"))
    await log.commit(driver.log)
    stored = await store.past()

    async def seen(start_s: int, end_s: int) -> list[tuple[float, Any, Any]]:
        twins = await stored.twins(DEVICE_ID, NOON_MS + start_s * 1000, NOON_MS + end_s * 1000)
        return [((t.time_ms - NOON_MS) / 1000, t.desired, t.reported) for t in twins]

    both = {"b": 1, "c": 2}
    try:
        assert await seen(2, 5) == [
            (2, {"a": {"b": 1}}, {"m": 1e300}),
            (3, {"a": both}, {"m": 1e300}),
            (3, {"a": {"c": 2}}, {"m": 1e300}),
        ]
        assert (await seen(0, 2))[:2] == [(0, {}, {}), (1, {"a": {"b": 1}}, {})]
        assert (await seen(4, 9))[-1] == (5, {"a": {"c": 2}}, {"m": "x"})
        assert await stored.twins("nobody", NOON_MS, NOON_MS + 1000) == []
    finally:
        await stored.close()


@pytest.mark.database
async def test_a_twin_is_empty_before_its_history_begins(postgres_store: Store, pool: Pool) -> None:
    driver = Driver(register=False)
    driver.now_ms = NOON_MS
    driver.send(Register(DEVICE_ID, TYPE))
    for second, part in [(1, "desired"), (2, "reported"), (3, "desired"), (4, "reported"), (5, "desired")]:
        driver.now_ms = NOON_MS + second * 1000
        driver.send(ChangeTwin(DEVICE_ID, **{part: {"n": second}}))  # type: ignore[arg-type]
    log = postgres_store.log(await postgres_store.members.join("host"))
    await log.commit(driver.log)
    async with acquired(pool) as connection:
        await connection.execute("DELETE FROM events WHERE time <= $1", NOON_MS + 2000)
    stored = await postgres_store.past()
    try:
        twins = await stored.twins(DEVICE_ID, NOON_MS, NOON_MS + 9000)
        assert [((t.time_ms - NOON_MS) / 1000, t.desired, t.reported) for t in twins] == [
            (0, {}, {}),
            (1, {"n": 1}, {}),
            (2, {"n": 1}, {"n": 2}),
            (3, {"n": 3}, {"n": 2}),
            (4, {"n": 3}, {"n": 4}),
            (5, {"n": 5}, {"n": 4}),
        ]
    finally:
        await stored.close()


async def test_devices_and_rules(store: Store) -> None:
    log = store.log(await store.members.join("host"))
    devices = [registration(f"d{n}", "pump" if n % 2 else "fan", n=n) for n in range(9)]
    await log.commit(Commit(registrations=devices))
    rule = await store.create_rule(RuleSpec(name="hot", condition=Threshold("a", Operator.GT, 1.0)))
    stored = await store.past()
    try:
        assert await stored.devices(Filter("pump"), 100) == devices[1::2]
        assert await stored.devices(Filter(), 3) == devices[:3]
        assert await stored.devices(Filter(metadata={"n": 4}), 3) == [devices[4]]
        assert await stored.rule(rule.rule_id) == rule
        assert await stored.rule("nobody") is None
    finally:
        await stored.close()


@pytest.mark.database
async def test_long_histories_come_in_pages_and_end_with_who_takes_them(
    postgres_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_module, "PAGE_ROWS", 50)
    log = postgres_store.log(await postgres_store.members.join("host"))
    past = [reading("a", n, NOON_MS + n * 1000, key=n, x=float(n), y=-1.0) for n in range(1, 5001)]
    await log.commit(Commit(readings=past))
    stored = await postgres_store.past()
    pages: list[int] = []
    got: list[Any] = []

    def take(rows: Sequence[TailReading]) -> None:
        pages.append(len(rows))
        got.extend(rows[:1])
        assert rows[-1].values == [float(rows[-1].offset), -1.0]

    def refuse(rows: Sequence[TailReading]) -> None:
        raise ZeroDivisionError

    try:
        await stored.readings("a", NOON_MS, NOON_MS + 10_000_000, take)
        assert sum(pages) == 5000
        assert len(pages) > 2
        with pytest.raises(ZeroDivisionError):
            await stored.readings("a", NOON_MS, NOON_MS + 10_000_000, refuse)
        await stored.readings("a", NOON_MS, NOON_MS + 2000, take)
        assert sum(pages) == 5001
    finally:
        await stored.close()


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    stored = await PgStoredPastFactory("postgresql://nobody@127.0.0.1:1/none")()
    with pytest.raises(LogUnavailable):
        await stored.readings("a", 0, 1, lambda rows: None)
    await stored.close()


def array(oid: int, items: list[bytes | None]) -> bytes:
    body = struct.pack(">5i", 1, int(None in items), oid, len(items), 1)
    body += b"".join(b"\xff\xff\xff\xff" if i is None else struct.pack(">i", len(i)) + i for i in items)
    return struct.pack(">i", len(body)) + body


def copied(numbers: list[float | None] | None, texts: list[str | None] | None, n: int) -> bytes:
    row = struct.pack(">hiqiqiqihiq", 7, 8, n, 8, -n * 1_000_000, 8, -n, 2, 1, 8, 99)
    null = struct.pack(">i", -1)
    row += (
        null
        if numbers is None
        else array(701, [None if v is None else struct.pack(">d", v) for v in numbers])
    )
    return row + (null if texts is None else array(25, [None if t is None else t.encode() for t in texts]))


@pytest.mark.parametrize("seed", range(20))
def test_rows_survive_any_cut(seed: int) -> None:
    rng = random.Random(seed)
    shapes: list[tuple[Any, Any]] = [
        ([1.5], None),
        ([1.5, -2.0], None),
        ([None, 2.0], ["ä", None]),
        (None, ["x"]),
    ]
    chosen = [shape for _ in range(20) for shape in [rng.choice(shapes)] * rng.randint(1, 5)]
    stream = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    stream += b"".join(copied(*shape, n) for n, shape in enumerate(chosen)) + b"\xff\xff"
    reader = CopiedReadings()
    rows = []
    while stream:
        size = rng.choice([1, 7, 60, 400])
        rows += reader.feed(stream[:size])
        stream = stream[size:]
    assert [(row[5], row[6]) for row in rows] == chosen
    assert [row[:5] for row in rows] == [
        (n, 946_684_800_000 - n * 1000, -n, 1, 99) for n in range(len(chosen))
    ]


def test_what_is_no_such_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="not a binary COPY"):
        CopiedReadings().feed(bytes(30))
    with pytest.raises(ValueError, match="6 columns"):
        CopiedReadings().feed(b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\0\6" + bytes(40))


async def test_times_of_alarms(store: Store) -> None:
    log = store.log(await store.members.join("host"))
    kept = [
        alarm("one", "a", start_ms=NOON_MS, state="CLEARED", end_ms=NOON_MS + 5),
        alarm("two", "a", start_ms=NOON_MS + 9),
        alarm("three", "a", start_ms=NOON_MS - 1),
        alarm("four", "a", start_ms=NOON_MS + 3, rule_id="other"),
    ]
    await log.commit(Commit(registrations=[registration("a")], alarms=kept))
    stored = await store.past()
    try:
        times = await stored.alarm_times(kept[0].device_id, kept[0].rule_id, NOON_MS, NOON_MS + 10)
        assert times == [(NOON_MS, NOON_MS + 5), (NOON_MS + 9, None)]
        assert await stored.alarm_times("nobody", kept[0].rule_id, NOON_MS, NOON_MS + 10) == []
    finally:
        await stored.close()
