"""The live feed of one replica: follows the log for all its subscribers, each row read and encoded once.

It reads while somebody subscribes, after the commit and beside the hosts: nothing of it is on the way of a
message. When the process is busy it looks less often and tells more at a time.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from sensorium.actors.errors import InvalidMessage, LogUnavailable, Overloaded, SensoriumError
from sensorium.actors.placement import device_key
from sensorium.actors.records import Alarm
from sensorium.serve.feed_filter import ALARMS, ANOMALIES, READINGS, FeedFilter, topic_of
from sensorium.serve.feed_frames import Frame, changes_frame, item
from sensorium.serve.feed_subscription import Subscription
from sensorium.serve.problems import Problem, invalid_parameter
from sensorium.storage.live_cursor import Position, read_cursor, write_cursor
from sensorium.storage.live_log import Change

_log = logging.getLogger(__name__)

SHORTEST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0
"""Between two looks at the log."""
BUSY_SHARE: Final = 0.35
"""Of a CPU: what this process may use before the feed looks less often."""
HERE_S: Final = 2.0
"""In which a database of several answers whoever subscribes first, or counts as away."""
FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0
PAGES_BEHIND: Final = 20
"""So many full pages in a row, and the feed gives up on being complete and goes on from now."""
LOOKS_AT_MOST: Final = 4
"""At the same place, because somebody comes while it is looked; then that one is told of a gap."""
RESUMING_AT_ONCE: Final = 4
RETRY_AFTER_S: Final = 5.0
CLOCKS_APART_MS: Final = 60_000
"""Of this machine and the database's, at most."""
MAX_PUSHED_DOWN: Final = 5_000
"""Devices by whose keys the database is asked; with more of them, all rows are read."""


class FollowsLog(Protocol):
    """A database of the log, as `storage.live_log.LiveLog` reads it."""

    async def here(self) -> Position: ...
    async def after(
        self, position: Position, readings: bool, devices: Collection[int] | None
    ) -> tuple[list[Change], Position, bool]: ...
    def between(
        self, start: Position, end: Position, readings: bool, devices: Collection[int] | None
    ) -> AsyncGenerator[tuple[list[Change], Position], None]: ...
    async def close(self) -> None: ...


class FindsAlarms(Protocol):
    """Alarms by their ids."""

    async def get(self, alarm_id: str) -> Alarm | None: ...


class _Wanted(NamedTuple):
    """What a database is asked for: readings besides events or not, of some devices (by keys) or of all."""

    readings: bool
    devices: frozenset[int] | None

    def cover(self, filters: Iterable[FeedFilter]) -> bool:
        """Whether it is all that they want."""
        return all(
            (self.readings or READINGS not in which.topics)
            and (
                self.devices is None
                or (bool(which.device_ids) and self.devices.issuperset(map(device_key, which.device_ids)))
            )
            for which in filters
        )


class _Group:
    """Subscribers that want the same."""

    def __init__(self, which: FeedFilter) -> None:
        self.filter = which
        self.subscriptions: set[Subscription] = set()
        self.items: list[bytes] = []


class LiveFeed:
    """`subscribe` as many as `max_subscribers`; `close` it once.

    Args:
        open_logs: opens the databases of the log, in their order; called for the reader, and for those who
            resume.
        resume_s: how old a cursor may be.
    """

    def __init__(
        self,
        open_logs: Callable[[], Sequence[FollowsLog]],
        alarms: FindsAlarms,
        now_ms: Callable[[], int],
        max_subscribers: int = 2_000,
        resume_s: float = 3_600.0,
    ) -> None:
        self._open_logs = open_logs
        self._alarms = alarms
        self._now_ms = now_ms
        self._max_subscribers = max_subscribers
        self._resume_s = resume_s
        self._databases = len(open_logs())
        self._groups: dict[FeedFilter, _Group] = {}
        self._subscribers = self._came = 0
        self._positions: list[Position] = []
        self._cursor: str | None = None
        self._starting = asyncio.Lock()
        self._resuming = asyncio.Semaphore(RESUMING_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        """That reads `_logs`; as long as anybody subscribes, unless a fault has ended it."""
        self._logs: Sequence[FollowsLog] = ()
        self._ending: set[asyncio.Task[None]] = set()
        """That close logs which are read no more."""
        self._closed = False
        self._told = self._dropped = self._refused = 0

    @asynccontextmanager
    async def subscribe(
        self, which: FeedFilter, cursor: str | None = None
    ) -> AsyncIterator[tuple[Subscription, AsyncGenerator[Frame, None]]]:
        """Frames from now on, and those between `cursor` and now, which are to be sent before.

        Raises:
            Overloaded: there are too many subscribers in this process.
            Problem: the cursor is none of this feed (422) or too old (410).
            LogUnavailable: the database does not answer.
        """
        if self._closed or self._subscribers >= self._max_subscribers:
            self._refused += 1
            raise Overloaded(f"{self._max_subscribers} subscribers are served here already", RETRY_AFTER_S)
        start = None if cursor is None else self._start(cursor)
        self._subscribers += 1
        group = subscription = None
        try:
            await self._follow()
            self._came += 1
            group = self._groups.setdefault(which, _Group(which))
            subscription = Subscription(which, self.cursor)
            group.subscriptions.add(subscription)
            missed = self._missed(which, start or self._positions, list(self._positions))
            async with aclosing(missed):
                yield subscription, missed
        finally:
            self._subscribers -= 1
            if group is not None and subscription is not None:
                self._dropped += subscription.dropped
                group.subscriptions.discard(subscription)
                if not group.subscriptions:
                    self._groups.pop(which, None)
            if not self._subscribers:
                self._end_reading()

    def cursor(self) -> str:
        """Behind everything that was told so far."""
        if self._cursor is None:
            self._cursor = write_cursor(self._positions)
        return self._cursor

    def statistics(self) -> dict[str, int]:
        """Counts since the start."""
        return {
            "subscribers": self._subscribers,
            "told": self._told,
            "dropped": self._dropped + sum(s.dropped for s in self._everybody()),
            "refused": self._refused,
        }

    def check(self) -> None:
        """Raise what ended the reading, if a fault of ours did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def close(self) -> None:
        """End all subscriptions, and read no more."""
        self._closed = True
        for subscription in self._everybody():
            subscription.close()
        self._end_reading()
        await asyncio.gather(*self._ending)
        await _close(self._logs)

    def _everybody(self) -> Iterable[Subscription]:
        return [one for group in self._groups.values() for one in group.subscriptions]

    def _start(self, cursor: str) -> list[Position]:
        try:
            positions = read_cursor(cursor, self._databases)
        except InvalidMessage as error:
            raise invalid_parameter("cursor", str(error)) from None
        now_ms = self._now_ms()
        if max(position.floor_ms for position in positions) > now_ms + CLOCKS_APART_MS:
            raise invalid_parameter("cursor", "it lies in the future: it is of another platform")
        if min(position.floor_ms for position in positions) < now_ms - self._resume_s * 1000:
            raise Problem(
                410,
                "cursor_expired",
                f"The feed is resumed from at most {self._resume_s:g} s ago. Begin without a cursor; what was"
                " missed is in the history.",
            )
        return positions

    async def _follow(self) -> None:
        """See to it that the log is read."""
        async with self._starting:
            if self._task is None or self._task.done():
                await _close(self._logs)
                self._logs = logs = self._open_logs()
                try:
                    self._positions = await self._here(logs)
                except BaseException:
                    self._logs = ()
                    await _close(logs)
                    raise
                self._cursor = None
                self._task = asyncio.create_task(self._read(logs), name="live feed")

    def _end_reading(self) -> None:
        """At once: whoever subscribes from here on has it begin anew."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            ending = asyncio.create_task(_ended(self._task, self._logs), name="end of a live feed")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._task, self._logs = None, ()

    async def _here(self, logs: Sequence[FollowsLog]) -> list[Position]:
        """Behind everything that is visible now; in one of several databases that is away, the time."""
        if len(logs) == 1:
            return [await logs[0].here()]
        found: list[Position | None] = []
        for log in logs:
            try:
                async with asyncio.timeout(HERE_S):
                    found.append(await log.here())
            except (LogUnavailable, TimeoutError):
                await log.close()
                found.append(None)
        if not any(found):
            raise LogUnavailable("no database of the log answers")
        now = Position(self._now_ms(), frozenset())
        return [now if position is None else position for position in found]

    async def _read(self, logs: Sequence[FollowsLog]) -> None:
        """Until cancelled, each database by itself."""
        async with asyncio.TaskGroup() as tasks:
            for number, log in enumerate(logs):
                tasks.create_task(self._read_database(number, log))

    async def _read_database(self, number: int, log: FollowsLog) -> None:
        pause_s, retry_s, pages = SHORTEST_PAUSE_S, FIRST_RETRY_S, 0
        while True:
            began_cpu_s = time.process_time()
            try:
                more = await self._look(number, log)
                pages = pages + 1 if more else 0
                if pages >= PAGES_BEHIND:
                    self._positions[number], pages = await log.here(), 0
                    self._cursor = None
                    for subscription in self._everybody():
                        subscription.miss(0)
                retry_s = FIRST_RETRY_S
            except LogUnavailable as error:
                _log.warning("live feed: %s; again in %.1f s", error, retry_s)
                await log.close()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
                continue
            await asyncio.sleep(0 if more else pause_s)
            # What the subscribers' tasks have sent in the pause is part of it.
            pause_s = next_pause(pause_s, time.process_time() - began_cpu_s)

    async def _look(self, number: int, log: FollowsLog) -> bool:
        """Tell what is new in a database; whether there is more at once."""
        for _ in range(LOOKS_AT_MOST):
            came, wanted = self._came, self._wanted()
            changes, position, more = await log.after(
                self._positions[number], wanted.readings, wanted.devices and list(wanted.devices)
            )
            await self._complete(changes)
            # Whoever came meanwhile may want what was not asked for.
            if came == self._came or wanted.cover(self._groups):
                break
        else:
            for which, group in self._groups.items():
                if not wanted.cover((which,)):
                    for subscription in group.subscriptions:
                        subscription.miss(0)
        # From here on nothing waits: whoever subscribes does so before or after all of this.
        self._positions[number] = position
        self._cursor = None
        if changes:
            self._tell(changes)
        return more

    def _wanted(self) -> _Wanted:
        filters = list(self._groups)
        readings = any(READINGS in which.topics for which in filters)
        if not filters or not all(which.device_ids for which in filters):
            return _Wanted(readings, None)
        ids = frozenset[str]().union(*(which.device_ids for which in filters))
        return _Wanted(readings, frozenset(map(device_key, ids)) if len(ids) <= MAX_PUSHED_DOWN else None)

    async def _complete(self, changes: list[Change]) -> None:
        """Put the alarm, as it stands, where an event names it only: what people did to one."""
        for n, change in enumerate(changes):
            if topic_of(change) == ALARMS and "severity" not in change.body:
                alarm = await self._alarms.get(change.body["alarm_id"])
                if alarm is not None:
                    body = {**msgspec.to_builtins(alarm), "by": change.body.get("by")}
                    changes[n] = change._replace(body=body)

    def _tell(self, changes: Sequence[Change]) -> None:
        index = _Index(self._groups.values())
        for change in changes:
            topic = topic_of(change)
            if topic is None:
                continue
            encoded: dict[frozenset[str], bytes | None] = {}
            for group in index.of(change):
                metrics = _passes(group.filter, change, topic)
                if metrics is None:
                    continue
                if metrics not in encoded:
                    encoded[metrics] = item(change, topic, metrics)
                text = encoded[metrics]
                if text is not None:
                    group.items.append(text)
        cursor = self.cursor()
        for group in self._groups.values():
            if group.items:
                items, group.items = group.items, []
                frame = changes_frame(cursor, items)
                self._told += frame.items * len(group.subscriptions)
                for subscription in group.subscriptions:
                    subscription.offer(frame)

    async def _missed(
        self, which: FeedFilter, start: list[Position], end: list[Position]
    ) -> AsyncGenerator[Frame, None]:
        """The frames from `start` to `end`."""
        if start == end:
            return
        devices = list(map(device_key, which.device_ids)) or None
        async with self._resuming:
            logs = self._open_logs()
            try:
                reached = list(start)
                for n, log in enumerate(logs):
                    pages = log.between(start[n], end[n], READINGS in which.topics, devices)
                    async with aclosing(pages):
                        async for changes, reached[n] in pages:
                            await self._complete(changes)
                            items = [text for change in changes if (text := _item_for(which, change))]
                            if items:
                                yield changes_frame(write_cursor(reached), items)
                    reached[n] = end[n]
            finally:
                await _close(logs)


class _Index:
    """Groups by what they are about, so that a change is compared with few of them."""

    def __init__(self, groups: Iterable[_Group]) -> None:
        self._by_device: dict[str, list[_Group]] = {}
        self._by_type: dict[str, list[_Group]] = {}
        self._rest: list[_Group] = []
        for group in groups:
            which = group.filter
            if which.device_ids:
                for device_id in which.device_ids:
                    self._by_device.setdefault(device_id, []).append(group)
            elif which.device_types:
                for device_type in which.device_types:
                    self._by_type.setdefault(device_type, []).append(group)
            else:
                self._rest.append(group)

    def of(self, change: Change) -> Iterable[_Group]:
        yield from self._by_device.get(change.device_id, ())
        yield from self._by_type.get(change.device_type, ())
        yield from self._rest


_ALL: Final[frozenset[str]] = frozenset()


def _passes(which: FeedFilter, change: Change, topic: str) -> frozenset[str] | None:
    """None, or the metrics that a reading is cut to (empty: it is not)."""
    if topic not in which.topics or not which.takes_device(change.device_id, change.device_type):
        return None
    if topic == READINGS:
        if which.qualities and change.quality not in which.qualities:
            return None
        return which.metrics
    if topic in (ALARMS, ANOMALIES):
        body: dict[str, Any] = change.body
        if which.severities and body.get("severity") not in which.severities:
            return None
        if which.metrics and body.get("metric") not in which.metrics:
            return None
    return _ALL


def _item_for(which: FeedFilter, change: Change) -> bytes | None:
    topic = topic_of(change)
    if topic is None:
        return None
    metrics = _passes(which, change, topic)
    return None if metrics is None else item(change, topic, metrics)


def next_pause(pause_s: float, used_s: float) -> float:
    """How long to wait after a round that took so much CPU, so that all take `BUSY_SHARE` of one at most."""
    wanted_s = used_s * (1 / BUSY_SHARE - 1)
    # Half of the way, because one round is not like the other.
    return min(max((pause_s + wanted_s) / 2, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)


async def _ended(task: asyncio.Task[None], logs: Sequence[FollowsLog]) -> None:
    await asyncio.wait({task})
    await _close(logs)


async def _close(logs: Sequence[FollowsLog]) -> None:
    for log in logs:
        try:
            await log.close()
        except SensoriumError as error:
            _log.warning("live feed: %s", error)
