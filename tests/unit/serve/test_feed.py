"""The live feed: filters, gaps of slow readers, resumption, and that nothing is read for nobody."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from sensorium.actors.errors import Overloaded
from sensorium.actors.placement import device_key
from sensorium.actors.records import Alarm
from sensorium.serve import feed as feeds
from sensorium.serve import feed_subscription
from sensorium.serve.feed import LiveFeed
from sensorium.serve.feed_filter import FeedFilter, read_filter
from sensorium.serve.feed_frames import Frame
from sensorium.serve.feed_subscription import Subscription
from sensorium.serve.problems import Problem
from sensorium.storage.live_cursor import Position, write_cursor
from tests.unit.serve.feed_log import AT_MS, FeedLog, happened, reading

DEADLINE_S = 5.0
ALARM = Alarm(
    *("a1", "one", "pump", "r1", "hot", 1, "critical", "ACTIVE", "temperature", 99.0, "too hot", AT_MS),
    acknowledged=True,
    acknowledged_by="ann",
)


class Alarms:
    async def get(self, alarm_id: str) -> Alarm | None:
        return ALARM if alarm_id == "a1" else None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "SHORTEST_PAUSE_S", 0.005)
    monkeypatch.setattr(feeds, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(feeds, "FIRST_RETRY_S", 0.005)


@pytest.fixture
def log() -> FeedLog:
    return FeedLog()


@pytest.fixture
async def feed(log: FeedLog) -> AsyncIterator[LiveFeed]:
    feed = LiveFeed(log.opened, Alarms(), lambda: AT_MS + 1_000, max_subscribers=3, resume_s=60)
    log.open = 0
    yield feed
    await feed.close()
    feed.check()


def items(frame: Frame | None) -> list[dict[str, Any]]:
    assert frame is not None
    assert frame.kind == "changes", frame.text
    body = msgspec.json.decode(frame.body)
    assert body["cursor"] == frame.cursor
    found: list[dict[str, Any]] = body["items"]
    assert frame.items == len(found)
    return found


async def told(subscription: Subscription, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            found += items(await subscription.next())
    return found


async def at_rest(log: FeedLog) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while log.open:
            await asyncio.sleep(0.001)


def where(found: list[dict[str, Any]]) -> list[str]:
    return [f"{item['device_id']} {item['id']} {item.get('event', item['topic'])}" for item in found]


async def test_changes_of_twins_are_told_without_the_way_back(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(read_filter({"topics": "twins"})) as (subscription, _):
        change = {"version": 2, "by": "alice", "patch": {"a": None}, "undo": {"values": {"a": 1}}}
        log.commit(happened("twin_desired", offset=7, **change), happened("online", offset=8))
        (told_of,) = await told(subscription, 1)
    assert (told_of["topic"], told_of["event"]) == ("twins", "desired")
    assert told_of["twin"] == {"version": 2, "by": "alice", "patch": {"a": None}}


async def test_what_is_committed_is_told(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        log.commit(reading("one", 7, temperature=21.5))
        log.commit(happened("online", offset=8), happened("command_sent", offset=9, command_id="c1"))
        log.commit(happened("registered", offset=10, status="active"), happened("secret", offset=11))
        first, online, sent, registered = await told(subscription, 4)
    assert first == {
        "topic": "readings",
        "id": "1-7",
        "device_id": "one",
        "device_type": "pump",
        "time_ms": AT_MS,
        "committed_ms": AT_MS,
        "values": {"temperature": 21.5},
    }
    assert (online["topic"], online["online"]) == ("presence", True)
    assert (sent["topic"], sent["event"], sent["command_id"]) == ("commands", "sent", "c1")
    assert (registered["topic"], registered["device"]) == ("devices", {"status": "active"})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"topics": "readings"}, ["one 1-1 readings", "two 1-2 readings"]),
        ({"topics": "readings", "device_id": "two,three"}, ["two 1-2 readings"]),
        ({"topics": "readings", "device_type": "valve"}, ["two 1-2 readings"]),
        ({"topics": "readings", "device_type": "valve", "device_id": "one"}, []),
        ({"topics": "readings", "metric": "temperature"}, ["one 1-1 readings"]),
        ({"topics": "alarms", "severity": "critical"}, ["one 1-4 raised"]),
        ({"topics": "alarms", "metric": "pressure"}, ["one 1-3 raised"]),
        ({"topics": "anomalies", "severity": "critical,major"}, ["one 1-6 started", "one 1-7 ended"]),
        ({"topics": "anomalies", "metric": "pressure"}, []),
        ({"topics": "presence,commands"}, ["one 1-5 presence"]),
        ({"topics": "presence,alarms", "device_type": "valve"}, []),
    ],
)
async def test_filters_add_up(
    feed: LiveFeed, log: FeedLog, asked: dict[str, str], expected: list[str]
) -> None:
    async with feed.subscribe(read_filter(asked)) as (subscription, _):
        log.commit(reading("one", 1), reading("two", 2, "valve", pressure=1.5))
        log.commit(happened("alarm_raised", offset=3, severity="minor", metric="pressure"))
        log.commit(happened("alarm_raised", offset=4, severity="critical", metric="temperature"))
        log.commit(happened("offline", offset=5))
        log.commit(happened("anomaly", offset=6, severity="major", metric="temperature"))
        log.commit(happened("anomaly_ended", offset=7, severity="major", metric="temperature"))
        looks = log.looks
        async with asyncio.timeout(DEADLINE_S):
            while log.looks < looks + 2:
                await asyncio.sleep(0.001)
        subscription.close()
        found: list[dict[str, Any]] = []
        while (frame := await subscription.next()) is not None:
            found += items(frame)
    assert where(found) == expected


async def test_readings_are_cut_to_the_metrics(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter(metrics=frozenset(("b",)))) as (subscription, _):
        log.commit(reading(a=1.0), reading(offset=2, a=1.0, b=2.0))
        assert [item["values"] for item in await told(subscription, 1)] == [{"b": 2.0}]


async def test_what_people_do_to_an_alarm_comes_with_the_alarm(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter(severities=frozenset(("critical",)))) as (subscription, _):
        log.commit(happened("alarm_acknowledged", alarm_id="other", by="ann"))
        log.commit(happened("alarm_acknowledged", alarm_id="a1", by="ann"))
        (found,) = await told(subscription, 1)
    assert (found["event"], found["alarm"]["by"], found["alarm"]["severity"]) == (
        "acknowledged",
        "ann",
        "critical",
    )


async def test_the_same_wish_is_encoded_once(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter()) as (one, _), feed.subscribe(FeedFilter()) as (other, _):
        log.commit(reading())
        assert await one.next() is await other.next()


async def test_nothing_is_read_for_nobody(feed: LiveFeed, log: FeedLog) -> None:
    assert (log.looks, log.open) == (0, 0)
    async with feed.subscribe(FeedFilter(frozenset(("alarms",)), device_ids=frozenset(("one",)))) as (s, _):
        log.commit(happened("alarm_raised", severity="minor"))
        await told(s, 1)
        assert log.asked == (False, frozenset((device_key("one"),)))
    await at_rest(log)
    looks = log.looks
    await asyncio.sleep(0.03)
    assert log.looks == looks


def of(*device_ids: str, topics: Sequence[str] = ("alarms", "readings")) -> FeedFilter:
    return FeedFilter(frozenset(topics), device_ids=frozenset(device_ids))


@pytest.mark.parametrize(
    ("first", "second"), [(of("two"), of("one")), (of("one", topics=["alarms"]), FeedFilter())]
)
async def test_who_comes_while_it_is_looked_for_others_is_told(
    feed: LiveFeed, log: FeedLog, first: FeedFilter, second: FeedFilter
) -> None:
    async with feed.subscribe(first):
        log.may_look.clear()
        looks = log.looks
        async with asyncio.timeout(DEADLINE_S):
            while log.looks == looks:
                await asyncio.sleep(0.001)
        async with feed.subscribe(second) as (subscription, _):
            log.commit(reading("one", 1))
            log.may_look.set()
            assert where(await told(subscription, 1)) == ["one 1-1 readings"]


async def test_who_keeps_coming_delays_others_only_so_often(
    feed: LiveFeed, log: FeedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming: list[str] = []
    look = log.after

    async def crowded(*asked: Any) -> Any:
        if coming:
            await feed_stack.enter_async_context(feed.subscribe(of(coming.pop())))
        return await look(*asked)

    monkeypatch.setattr(log, "after", crowded)
    monkeypatch.setattr(feed, "_max_subscribers", 100)
    async with AsyncExitStack() as feed_stack:
        first, _ = await feed_stack.enter_async_context(feed.subscribe(of("one")))
        looks = log.looks
        coming += [f"late-{n}" for n in range(50)]
        log.commit(reading("one", 1))
        assert where(await told(first, 1)) == ["one 1-1 readings"]
        assert log.looks - looks <= feeds.LOOKS_AT_MOST + 2
        assert coming
        coming.clear()


async def test_who_comes_while_the_reading_for_others_ends_is_told(feed: LiveFeed, log: FeedLog) -> None:
    log.may_close.clear()
    async with feed.subscribe(FeedFilter()):
        pass
    await log.closing.wait()
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        log.commit(reading("one", 1))
        assert where(await told(subscription, 1)) == ["one 1-1 readings"]
        log.may_close.set()
        log.commit(reading("one", 2))
        assert where(await told(subscription, 1)) == ["one 1-2 readings"]


async def test_slow_readers_are_cut_to_the_newest(
    feed: LiveFeed, log: FeedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_subscription, "MAX_QUEUED_FRAMES", 3)
    async with (
        feed.subscribe(FeedFilter()) as (slow, _),
        feed.subscribe(FeedFilter(frozenset(("readings",)))) as (quick, _),
    ):
        log.commit(reading(offset=1))
        await told(slow, 1)
        for n in range(2, 12):
            log.commit(reading(offset=n))
            await told(quick, 1 if n > 2 else 2)
        gap = await slow.next()
        assert gap is not None
        said = msgspec.json.decode(gap.body)
        assert (said["type"], said["dropped"]) == ("gap", 7)
        assert [item["id"] for item in await told(slow, 3)] == ["1-9", "1-10", "1-11"]
        assert feed.statistics()["dropped"] == 7
    # From the cursor of the gap it can be had again.
    async with feed.subscribe(FeedFilter(), said["cursor"]) as (_, missed):
        again = [item["id"] async for frame in missed for item in items(frame)]
    assert again == [f"1-{n}" for n in range(2, 12)]


async def test_it_goes_on_behind_a_cursor(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        log.commit(reading(offset=1))
        frame = await subscription.next()
        assert frame is not None
    await at_rest(log)
    for n in range(2, 5):
        log.commit(reading(offset=n), happened("online", "two", n))
    which = read_filter({"topics": "readings"})
    async with feed.subscribe(which, frame.cursor) as (subscription, missed):
        frames = [frame async for frame in missed]
        log.commit(reading(offset=5))
        assert [item["id"] for item in await told(subscription, 1)] == ["1-5"]
    assert [item["id"] for frame in frames for item in items(frame)] == ["1-2", "1-3", "1-4"]
    # Another replica, and from the middle of what was missed.
    other = LiveFeed(log.opened, Alarms(), lambda: AT_MS)
    async with other.subscribe(which, frames[0].cursor) as (_, missed):
        assert [item["id"] async for frame in missed for item in items(frame)] == ["1-3", "1-4", "1-5"]
    await other.close()


@pytest.mark.parametrize(
    ("cursor", "status", "code"),
    [
        ("nonsense", 422, "invalid"),
        (write_cursor([Position(AT_MS), Position(AT_MS)]), 422, "invalid"),
        (write_cursor([Position(AT_MS - 60_000)]), 410, "cursor_expired"),
        (write_cursor([Position(AT_MS + 600_000)]), 422, "invalid"),
    ],
)
async def test_bad_cursors_are_refused(feed: LiveFeed, cursor: str, status: int, code: str) -> None:
    with pytest.raises(Problem) as refused:
        async with feed.subscribe(FeedFilter(), cursor):
            pass
    assert (refused.value.status, refused.value.code) == (status, code)


async def test_there_is_room_for_so_many(feed: LiveFeed) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(feed.subscribe(FeedFilter()))
        with pytest.raises(Overloaded):
            await stack.enter_async_context(feed.subscribe(FeedFilter()))
        assert feed.statistics()["refused"] == 1
    async with feed.subscribe(FeedFilter()):
        assert feed.statistics()["subscribers"] == 1


async def test_an_outage_of_the_database_loses_nothing(feed: LiveFeed, log: FeedLog) -> None:
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        log.down = True
        log.commit(reading(offset=1))
        await asyncio.sleep(0.02)
        log.down = False
        log.commit(reading(offset=2))
        assert [item["id"] for item in await told(subscription, 2)] == ["1-1", "1-2"]


async def test_a_database_that_is_away_holds_back_what_is_in_it_only() -> None:
    logs = [FeedLog(), FeedLog()]
    logs[1].down = True
    feed = LiveFeed(lambda: logs, Alarms(), lambda: AT_MS)
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        logs[0].commit(reading("one"))
        assert [item["device_id"] for item in await told(subscription, 1)] == ["one"]
        logs[1].commit(reading("two"))
        logs[1].down = False
        assert [item["device_id"] for item in await told(subscription, 1)] == ["two"]
    await feed.close()


async def test_a_quiet_feed_shows_that_it_lives(
    feed: LiveFeed, log: FeedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_subscription, "KEEPALIVE_S", 0.02)
    async with feed.subscribe(FeedFilter(frozenset(("alarms",)))) as (subscription, _):
        log.commit(reading())
        async with asyncio.timeout(DEADLINE_S):
            while (frame := await subscription.next()) is not None and frame.cursor == write_cursor(
                [Position(AT_MS)]
            ):
                pass
        assert frame is not None
        assert (frame.kind, frame.event[:12]) == ("cursor", b": keepalive\n")
        assert frame.cursor == feed.cursor()


async def test_closing_ends_all(feed: LiveFeed) -> None:
    async with feed.subscribe(FeedFilter()) as (subscription, _):
        await feed.close()
        assert await subscription.next() is None


def test_the_busier_the_process_the_longer_it_waits() -> None:
    pause_s = feeds.LONGEST_PAUSE_S
    for used_s, low, high in ((0.0, 0.005, 0.005), (0.001, 0.005, 0.005), (1.0, 0.01, 0.01)):
        for _ in range(20):
            pause_s = feeds.next_pause(pause_s, used_s)
        assert low <= pause_s <= high
