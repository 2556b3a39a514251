"""What every `Log` and `Membership` promises, over each implementation."""

import asyncio
import time

import msgspec
import pytest
from storage_rows import NOON_MS, alarm, event, reading, registration, snapshot
from storage_stores import Store

from sensorium.actors.errors import Fenced, InvalidMessage
from sensorium.actors.messages import DeadLetter, Location
from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.ports import Log
from sensorium.actors.records import (
    Commit,
    Identity,
    ReadingRow,
    Registration,
    Timer,
    TimerRow,
    TwinState,
)
from sensorium.actors.twin_documents import NOTHING, Document, FieldWritten


@pytest.fixture
async def log(store: Store) -> Log:
    return store.log(await store.members.join("a"))


async def test_an_unknown_device_has_nothing(log: Log) -> None:
    [found] = await log.load(["nobody"])
    assert found[:6] == ("nobody", None, None, [], [], {})
    assert not found.commands
    assert found.presence is None


async def test_a_commit_is_loaded_as_it_was_written(log: Log) -> None:
    told = Registration("d", "pump", "active", Location(1.5, 2.5, "Hafen"), {"a": [1, None]}, 1, 2)
    raised = alarm("x", "d", value=True)
    await log.commit(
        Commit(
            readings=[
                reading("d", 1, temperature=20.5, door=True, mode="eco"),
                reading("d", 3, key=-5, t=1e300),
            ],
            events=[event("d", 2)],
            registrations=[told],
            alarms=[raised, alarm("y", "d", "CLEARED", end_ms=5, end_value="off", end_reason="rule_removed")],
        )
    )
    [found] = await log.load(["d"])
    assert found.registration == told
    assert found.alarms == [raised]
    assert found.snapshot is None
    first, second = found.tail
    assert (first.offset, first.time_ms, first.key, first.flags) == (1, NOON_MS, 1, 0)
    assert first.metric_set is metric_set(("temperature", "door", "mode"), "nbt")
    assert first.values == [20.5, True, "eco"]
    assert type(first.values[1]) is bool
    assert (second.offset, second.key, second.values) == (3, -5, [1e300])


async def test_a_twin_is_loaded_as_it_was_written(log: Log) -> None:
    values = {"a": {"b": [1, None, 1e300, 1.0, "ü"]}, "": {}}
    desired = Document(2, values, {"/a/b": FieldWritten(NOON_MS, "alice")}, NOON_MS)
    twin = TwinState("d", desired, NOTHING, 1, 3, True, NOON_MS, "coap")
    await log.commit(Commit(twins=[msgspec.structs.replace(twin, tries=0), twin]))
    await log.commit(Commit(twins=[TwinState("e", NOTHING, desired)]))
    found = await log.load(["d", "e", "f"])
    assert [s.twin for s in found] == [twin, TwinState("e", NOTHING, desired), None]
    assert found[0].twin is not None
    assert type(found[0].twin.desired.values["a"]["b"][3]) is float


async def test_absent_values_stay_absent(log: Log) -> None:
    metrics = metric_set(("a", "b", "c", "d"), "nbtn")
    row = ReadingRow(shard_of("d"), 1, device_key("d"), NOON_MS, 1, 3, metrics, [None, None, None, 4.0])
    numbers = metric_set(("a", "b"), "nn")
    await log.commit(Commit(readings=[row, row._replace(offset=2, metric_set=numbers, values=(1.0, None))]))
    [found] = await log.load(["d"])
    assert [(t.flags, t.values) for t in found.tail] == [(3, [None, None, None, 4.0]), (3, [1.0, None])]


async def test_devices_come_in_the_order_asked_for(log: Log) -> None:
    await log.commit(Commit(readings=[reading(d, 1, t=float(i)) for i, d in enumerate("abc")]))
    found = await log.load(["c", "nobody", "a", "b", "a"])
    assert [s.device_id for s in found] == ["c", "nobody", "a", "b", "a"]
    assert [[t.values for t in s.tail] for s in found] == [[[2.0]], [], [[0.0]], [[1.0]], [[0.0]]]


async def test_heads_count_readings_events_and_saved_heads(log: Log) -> None:
    shards = [shard_of("a"), shard_of("b"), shard_of("c"), shard_of("nobody")]
    assert await log.open(shards) == dict.fromkeys(shards, 0)
    await log.commit(
        Commit(readings=[reading("a", 1), reading("a", 2), reading("b", 1)], events=[event("b", 2)])
    )
    await log.save([], {shard_of("c"): 7, shard_of("a"): 1})
    assert await log.open(shards) == {shards[0]: 2, shards[1]: 2, shards[2]: 7, shards[3]: 0}


async def test_replay_starts_behind_the_snapshot(log: Log) -> None:
    readings = [reading("d", n, NOON_MS + n * 1000) for n in range(1, 6)]
    await log.commit(Commit(readings=[*readings, reading("d", 6, NOON_MS - 10_000)]))
    await log.save([snapshot("d", 3, NOON_MS, b"three")], {})
    [found] = await log.load(["d"])
    assert found.snapshot == snapshot("d", 3, NOON_MS, b"three")
    assert [t.offset for t in found.tail] == [4, 5]
    await log.save([snapshot("d", 4, None, b"four")], {})
    [found] = await log.load(["d"])
    assert [t.offset for t in found.tail] == [5, 6]


async def test_an_older_snapshot_or_head_does_not_replace_a_newer_one(log: Log) -> None:
    await log.save([snapshot("d", 5, state=b"new")], {3: 9})
    await log.save([snapshot("d", 4, state=b"old")], {3: 8})
    [found] = await log.load(["d"])
    assert found.snapshot is not None
    assert found.snapshot.state == b"new"
    assert await log.open([3]) == {3: 9}


async def test_seen_by_time_and_key(log: Log) -> None:
    await log.commit(Commit(readings=[reading("d", 1, key=7)]))
    device, other = device_key("d"), device_key("e")
    there = Identity(device, NOON_MS, 7)
    not_there = [Identity(device, NOON_MS + 1, 7), Identity(device, NOON_MS, 8), Identity(other, NOON_MS, 7)]
    assert await log.seen([there, *not_there]) == {there}
    assert await log.seen([]) == set()


async def test_seen_without_a_time_goes_by_the_key_of_recent_readings(log: Log) -> None:
    now_ms = int(time.time() * 1000)
    await log.commit(Commit(readings=[reading("d", 1, now_ms - 5000, key=7), reading("e", 1, now_ms, key=8)]))
    there = Identity(device_key("d"), None, 7)
    assert await log.seen([there, Identity(device_key("d"), None, 8)]) == {there}


async def test_registrations_and_alarms_replace_those_of_the_same_id(log: Log) -> None:
    await log.commit(
        Commit(
            registrations=[registration("d"), registration("d", site="north")],
            alarms=[alarm("x", "d"), alarm("x", "d", acknowledged=True)],
        )
    )
    [found] = await log.load(["d"])
    assert found.registration == registration("d", site="north")
    assert found.alarms == [alarm("x", "d", acknowledged=True)]
    cleared = alarm("x", "d", "CLEARED", end_ms=NOON_MS + 1, end_value=3.0, end_reason="condition_ended")
    await log.commit(Commit(alarms=[cleared]))
    [found] = await log.load(["d"])
    assert found.alarms == []


async def test_a_fenced_incarnation_writes_nothing(store: Store, log: Log) -> None:
    await log.commit(Commit(readings=[reading("d", 1)]))
    successor = store.log(await store.members.join("a"))
    with pytest.raises(Fenced):
        await log.commit(Commit(readings=[reading("d", 2)], registrations=[registration("d")]))
    with pytest.raises(Fenced):
        await log.save([snapshot("d", 1)], {shard_of("d"): 5})
    [found] = await successor.load(["d"])
    assert ([t.offset for t in found.tail], found.registration, found.snapshot) == ([1], None, None)
    assert await successor.open([shard_of("d")]) == {shard_of("d"): 1}
    await successor.commit(Commit(readings=[reading("d", 2)]))


async def test_one_host_leaves_the_others_alive(store: Store, log: Log) -> None:
    other = await store.members.join("b")
    await log.commit(Commit(readings=[reading("d", 1)]))
    await store.members.fence(other)
    await store.members.fence(other)
    await log.commit(Commit(readings=[reading("d", 2)]))
    with pytest.raises(Fenced):
        await store.log(other).commit(Commit(events=[event("e", 1)]))


async def test_an_incarnation_that_never_joined_is_fenced(store: Store) -> None:
    with pytest.raises(Fenced):
        await store.log(12345).commit(Commit(events=[event("e", 1)]))


@pytest.mark.parametrize("text", ["a\0b", "lone \ud800 surrogate"])
async def test_text_that_cannot_be_stored_refuses_the_whole_commit(log: Log, text: str) -> None:
    with pytest.raises(InvalidMessage):
        await log.commit(Commit(readings=[reading("d", 1), reading("d", 2, mode=text)]))
    [found] = await log.load(["d"])
    assert found.tail == []
    await log.commit(Commit(readings=[reading("d", 1)]))


async def test_a_dead_letter_never_stops_a_commit(log: Log) -> None:
    letter = DeadLetter("bad\0id", "mqtt", "topic\0\ud800", "malformed_json", "why\0", b"\0\xff", 2, NOON_MS)
    await log.commit(Commit(dead_letters=[letter], readings=[reading("d", 1)]))
    [found] = await log.load(["d"])
    assert len(found.tail) == 1


async def test_an_empty_commit_does_nothing(store: Store) -> None:
    await store.log(12345).commit(Commit())


async def test_reads_and_saves_run_beside_commits(log: Log) -> None:
    async def commits() -> None:
        for n in range(1, 21):
            await log.commit(Commit(readings=[reading("d", n)]))

    async def saves() -> None:
        for n in range(1, 11):
            await log.save([snapshot("d", 0)], {9: n})

    async def loads() -> None:
        for _ in range(10):
            [found] = await log.load(["d"])
            assert [t.offset for t in found.tail] == list(range(1, len(found.tail) + 1))

    await asyncio.gather(commits(), saves(), loads())
    [found] = await log.load(["d"])
    assert len(found.tail) == 20


async def test_timers_are_read_by_due_time_and_come_with_their_device(log: Log) -> None:
    shards = [shard_of("d"), shard_of("e")]
    rows = [
        TimerRow(shards[0], "d", "late", NOON_MS + 2000, NOON_MS),
        TimerRow(shards[1], "e", "soon", NOON_MS + 1000, NOON_MS),
        TimerRow(shards[0], "d", "gone", NOON_MS + 500, NOON_MS),
    ]
    await log.commit(Commit(timers=[*rows, rows[2]._replace(due_ms=None)]))
    assert await log.timers(shards, NOON_MS + 2001, 10) == [rows[1], rows[0]]
    assert await log.timers(shards, NOON_MS + 2000, 10) == [rows[1]]
    assert await log.timers(shards, NOON_MS + 9000, 1) == [rows[1]]
    assert await log.timers([s for s in range(1024) if s not in shards], NOON_MS + 9000, 10) == []
    [found] = await log.load(["d"])
    assert found.timers == {"late": Timer(NOON_MS + 2000, NOON_MS)}
    await log.commit(Commit(timers=[rows[0]._replace(due_ms=NOON_MS + 3000)]))
    assert await log.timers(shards, NOON_MS + 9000, 10) == [rows[1], rows[0]._replace(due_ms=NOON_MS + 3000)]
    await log.commit(Commit(timers=[rows[0]._replace(due_ms=None), rows[1]._replace(due_ms=None)]))
    assert await log.timers(shards, NOON_MS + 9000, 10) == []
