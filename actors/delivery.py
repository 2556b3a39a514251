"""The way of messages through a host: sorted by who owns them, waiting for a turn, in one commit together.

What comes in while a commit is under way waits and shares the next one, so the transactions become as large
as the load needs.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec

from sensorium.actors.activations import Activations
from sensorium.actors.command_waiters import CommandWaiters
from sensorium.actors.device import Surroundings
from sensorium.actors.errors import Fenced, InvalidMessage, LeaseOver, LogUnavailable, Moved, Overloaded
from sensorium.actors.figures import Histogram
from sensorium.actors.holdings import Holdings
from sensorium.actors.messages import (
    DEAD_LETTER_PAYLOAD_BYTES,
    DeadLetter,
    Duplicate,
    Message,
    Outcome,
    Reading,
    Refusal,
)
from sensorium.actors.passivation import Passivation
from sensorium.actors.ports import Log
from sensorium.actors.records import Commit
from sensorium.actors.turns import Names, TurnFailed, Turns, Work, cut, lookups, run

MAX_WAITING_BATCHES: Final = 256
"""Batches a host lets wait. Each sender has one in flight, so this bounds the senders."""

GROUP_MESSAGES: Final = 4_000
"""Messages after which a commit group takes no further batch: keeps one commit short."""

FROZEN_WAIT_S: Final = 8.0
"""How long messages wait for the end of their shard's hand-over before they are sent back as moved."""

MOVED_TRIES: Final = 8
"""How often a batch is sorted anew because shards went while it waited, before its sender is told."""

Outcomes = dict[int, Outcome]
"""By a message's place; what is not in it was plainly accepted."""


@dataclass(slots=True)
class _Waiting:
    work: Work
    done: asyncio.Future[Outcomes]


class Delivery:
    """Runs messages of one host's devices, each once and after its commit. `serve` is its life.

    Args:
        ahead: held while memory may be ahead of the log.
        around: what the devices are told of the world, as of now.
        committed: called with each commit once it is durable. Must not raise.
        waiters: who waits here for the end of a command needs no notice of the database.
    """

    def __init__(
        self,
        name: str,
        log: Log,
        activations: Activations,
        holdings: Holdings,
        passivation: Passivation,
        ahead: asyncio.Lock,
        around: Callable[[], Surroundings],
        clock_ms: Callable[[], int],
        committed: Callable[[Commit], None],
        waiters: CommandWaiters,
    ) -> None:
        self._name = name
        self._log = log
        self._activations = activations
        self._holdings = holdings
        self._passivation = passivation
        self._ahead = ahead
        self._around = around
        self._clock_ms = clock_ms
        self._committed = committed
        self._waiters = waiters
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._counts: Counter[str] = Counter()
        self._dead_letters: Counter[str] = Counter()
        self._alarms: Counter[str] = Counter()
        self._latency = Histogram()
        self._commits = Histogram()
        self._log_down_since_s: float | None = None

    def stop(self) -> None:
        """Take nothing more; `serve` ends when nothing waits."""
        self._stopping = True
        self._wake.set()

    async def drained(self) -> None:
        """Return once every message taken so far has been committed. Raises `Unavailable`."""
        await self._queued(Work([]))

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        down = self._log_down_since_s
        return {
            "readings_committed": self._counts["readings"],
            "readings_duplicate": self._counts["duplicates"],
            "commits": self._counts["commits"],
            "commit_failures": self._counts["commit_failures"],
            "commits_refused": self._counts["commits_refused"],
            "dead_letters": dict(self._dead_letters),
            "alarms_raised": dict(self._alarms),
            "batches_waiting": len(self._waiting),
            "log_down_s": 0.0 if down is None else time.monotonic() - down,
            "ingest_to_commit": self._latency.as_dict(),
            "commit": self._commits.as_dict(),
        }

    async def run(self, work: Work) -> tuple[Outcomes, list[int]]:
        """Outcomes of the messages whose shards are owned here, and the places of the others."""
        messages = work.messages
        owned = self._holdings.owned
        # What is active here is owned here, so only the rest has to be worked out.
        new = {m.device_id for m in messages}.difference(self._activations.devices)
        if self._holdings.steady and all(owned.shard_of(device_id) in owned.epochs for device_id in new):
            try:
                return await self._enqueue(work), []
            except Moved:
                await self._holdings.refresh()
        return await self._sorted(work)

    async def _sorted(self, work: Work) -> tuple[Outcomes, list[int]]:
        messages, owned = work.messages, self._holdings.owned
        outcomes: Outcomes = {}
        moved: list[int] = []
        rest = list(range(len(messages)))
        clock_s = asyncio.get_running_loop().time
        deadline_s = clock_s() + FROZEN_WAIT_S
        tries = 0
        while rest:
            shards = {i: owned.shard_of(messages[i].device_id) for i in rest}
            unready = owned.frozen | self._holdings.coming
            moved += [i for i, s in shards.items() if s not in owned.epochs and s not in unready]
            waiting = [i for i, shard in shards.items() if shard in unready]
            mine = [i for i, s in shards.items() if s in owned.epochs and s not in unready]
            rest = waiting
            if mine:
                try:
                    part = await self._enqueue(Work([messages[i] for i in mine], work.names))
                except Moved:
                    tries += 1
                    if tries >= MOVED_TRIES:
                        raise
                    await self._holdings.refresh()
                    rest = sorted(mine + waiting)
                else:
                    outcomes.update({mine[i]: outcome for i, outcome in part.items()})
            elif waiting:
                if self._holdings.fenced:
                    raise Fenced(f"{self._name} lost its shards")
                if clock_s() >= deadline_s:
                    moved += waiting
                    break
                await self._holdings.changed(deadline_s - clock_s())
        return outcomes, sorted(moved)

    async def _enqueue(self, work: Work) -> Outcomes:
        if self._holdings.fenced:
            raise Fenced(f"{self._name} lost its shards")
        if self._stopping:
            raise LogUnavailable(f"{self._name} is stopping")
        if len(self._waiting) >= MAX_WAITING_BATCHES:
            raise Overloaded(f"{self._name} has {MAX_WAITING_BATCHES} batches waiting")
        return await self._queued(work)

    async def _queued(self, work: Work) -> Outcomes:
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        return await waiting.done

    async def serve(self) -> None:
        """Take turns until `stop`, and then until nothing waits."""
        while True:
            if not self._waiting:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            group = [self._waiting.popleft()]
            size = len(group[0].work.messages)
            while self._waiting and size + len(self._waiting[0].work.messages) <= GROUP_MESSAGES:
                group.append(self._waiting.popleft())
                size += len(group[-1].work.messages)
            await self._passivation.room()
            async with self._ahead:
                await self._settle_group(group)

    async def _settle_group(self, group: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._settle([waiting.work for waiting in group])
        except (LogUnavailable, Fenced) as error:
            self._fail(group, error)
            return
        self._log_down_since_s = None
        start = 0
        for waiting in group:
            end = start + len(waiting.work.messages)
            if not waiting.done.done():
                own = {i - start: o for i, o in outcomes.items() if start <= i < end} if outcomes else {}
                waiting.done.set_result(own)
            start = end

    def _fail(self, group: Sequence[_Waiting], error: LogUnavailable | Fenced) -> None:
        if isinstance(error, LogUnavailable):
            self._counts["commit_failures"] += 1
            if self._log_down_since_s is None:
                self._log_down_since_s = time.monotonic()
            try:
                self._holdings.check_lease()
            except LeaseOver as over:
                error = over  # so that senders ask who owns the shards now
        elif type(error) is Fenced:
            self._counts["commit_failures"] += 1
            self._holdings.fenced = True
        for waiting in group:
            if not waiting.done.done():
                waiting.done.set_exception(type(error)(str(error)))

    async def _settle(self, works: Sequence[Work]) -> Outcomes:
        """Outcomes of all of `works`, committed. A message that cannot be committed becomes a dead letter."""
        try:
            return await self._attempt(works)
        except TurnFailed as error:
            bad, reason, detail = error.index, "internal_error", str(error)
        except InvalidMessage as error:
            size = sum(len(work.messages) for work in works)
            if size > 1:
                return await self._settle_parts(works, 0, size // 2, size)
            bad, reason, detail = 0, InvalidMessage.code, str(error)
        size = sum(len(work.messages) for work in works)
        (work,) = cut(works, bad, bad + 1)
        letter = dead_letter_of(work.messages[0], work.names, reason, detail, self._clock_ms())
        before = await self._settle(cut(works, 0, bad)) if bad else {}
        await self._attempt([Work([letter])])
        after = await self._settle(cut(works, bad + 1, size)) if bad + 1 < size else {}
        refusal = Refusal(reason, detail, dead_lettered=True)
        return {**before, bad: refusal, **{bad + 1 + i: o for i, o in after.items()}}

    async def _settle_parts(self, works: Sequence[Work], *bounds: int) -> Outcomes:
        outcomes: Outcomes = {}
        for start, stop in pairwise(bounds):
            part = await self._settle(cut(works, start, stop))
            outcomes |= {start + i: o for i, o in part.items()}
        return outcomes

    async def _attempt(self, works: Sequence[Work]) -> Outcomes:
        activations, around = self._activations, self._around()
        # In the order of the messages: what follows is the same in each run.
        ids = dict.fromkeys(m.device_id for work in works for m in work.messages)
        await activations.ensure(ids, around)
        identities = lookups(works, activations.devices)
        known = await self._log.seen(identities) if identities else set()
        heads = activations.mark(ids)
        epochs = self._holdings.epochs(heads)
        try:
            turns = run(works, activations.devices, around, self._clock_ms(), known)
            if around.models is not None:
                around.models.judge(turns.touched, turns.commit)
            if turns.commit:
                turns.commit.epochs = epochs
                turns.commit.told = self._waiters.among(turns.commit.commands)
                started_s = time.monotonic()
                await self._log.commit(turns.commit)
                self._commits.observe(time.monotonic() - started_s)
        except BaseException as error:
            self._counts["commits_refused"] += isinstance(error, Fenced)
            # Let it crash: memory is ahead of the log, so it is loaded again, never patched back.
            activations.discard(ids, heads)
            raise
        if not turns.commit:
            self._holdings.check_lease()
        activations.changed(turns.touched)
        self._committed(turns.commit)
        self._count(works, turns)
        return turns.outcomes

    def _count(self, works: Sequence[Work], turns: Turns) -> None:
        commit = turns.commit
        self._counts["commits"] += 1
        self._counts["readings"] += len(commit.readings)
        self._counts["duplicates"] += sum(type(o) is Duplicate for o in turns.outcomes.values())
        received = [m.received_ms for w in works for m in w.messages if type(m) is Reading]
        self._latency.observe_since_ms(self._clock_ms(), received)
        # Alarms have rows for other reasons too: what people do to them, counts, other severities.
        for event in commit.events:
            if event.kind == "alarm_raised":
                self._alarms[msgspec.json.decode(event.body, type=_Raised).severity] += 1
        for letter in commit.dead_letters:
            self._dead_letters[letter.reason] += 1


class _Raised(msgspec.Struct):
    severity: str


def dead_letter_of(
    message: Message, names: Sequence[Names], reason: str, detail: str, now_ms: int
) -> DeadLetter:
    """What is kept of a message that cannot be committed."""
    own = names[message.metrics] if isinstance(message, Reading) else ()
    payload = msgspec.json.encode({"message": message, "names": own})
    device_id = message.device_id.replace("\0", "�")
    return DeadLetter(
        device_id[:128],
        "host",
        f"devices/{device_id}"[:256],
        reason,
        detail.replace("\0", "�"),
        payload[:DEAD_LETTER_PAYLOAD_BYTES],
        len(payload),
        now_ms,
    )
