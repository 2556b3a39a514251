"""A DeviceHost: many devices in one process, one turn at a time each, one commit for all that waits.

A plain class that knows nothing of Ray; `runtime` makes a Ray actor of it. What comes in while a commit is
under way waits and shares the next one, so the transactions become as large as the load needs.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import msgspec

from sensorium.actors.activations import Activations, ActivationSettings
from sensorium.actors.cloning import CLONE_CHUNK, Clones, clone
from sensorium.actors.command_waiters import CommandWaiters
from sensorium.actors.conditions import validate
from sensorium.actors.device import Surroundings
from sensorium.actors.errors import (
    Fenced,
    InvalidMessage,
    LogUnavailable,
    Overloaded,
    Unavailable,
    refused,
)
from sensorium.actors.figures import Histogram
from sensorium.actors.messages import (
    ACCEPTED,
    DEAD_LETTER_PAYLOAD_BYTES,
    Answer,
    BatchReply,
    DeadLetter,
    Duplicate,
    Message,
    Outcome,
    Reading,
    RefreshRules,
    Refusal,
    SendCommand,
    TimerFired,
    batch_decoder,
)
from sensorium.actors.passivation import Passivation
from sensorium.actors.past import Past
from sensorium.actors.ports import Filter, HostPorts, HostPortsFactory
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Command, Snapshot, StoredDevice
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import NoData, Rule, RuleSpec
from sensorium.actors.ticker import Ticker
from sensorium.actors.turns import Names, TurnFailed, Turns, Work, cut, lookups, run
from sensorium.actors.view import DeviceView

MAX_WAITING_BATCHES = 256
"""Batches a host lets wait. Each sender has one in flight, so this bounds the senders."""

GROUP_MESSAGES = 4_000
"""Messages after which a commit group takes no further batch: keeps one commit short."""

MAP_CHUNK = 100
"""Devices that a mapped function sees before waiting messages get their turn."""

Outcomes = dict[int, Outcome]
"""By a message's place; what is not in it was plainly accepted."""

SAVE_PAUSE_S = 0.05
"""Between two batches of snapshots, so that many that come due together do not crowd out the commits."""

ARM_CHUNK = 500
"""Devices of a new no-data rule that share one commit."""

RULE_OVERLAP_MS = 3_600_000
"""How old a rule may be that a starting host still brings to its devices."""

_IDLE_S = 1.0
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host is told at its start. `auto_register_as`: see `Surroundings`."""

    profiles: Profiles = field(default_factory=Profiles)
    auto_register_as: str | None = None
    activation: ActivationSettings = field(default_factory=ActivationSettings)


@dataclass(slots=True)
class _Waiting:
    work: Work
    done: asyncio.Future[Outcomes]


class DeviceHost:
    """Owns shards and the devices in them, for one incarnation.

    Call `start` first and `stop` last; both by the owner. `deliver`, `ask` and `map` may overlap.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        shards: Sequence[int],
        open_ports: HostPortsFactory,
        settings: HostSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self._shards = list(shards)
        self._open_ports = open_ports
        self._settings = settings
        self._clock_ms = clock_ms
        self._around = Surroundings(settings.profiles, RuleBook(), settings.auto_register_as)
        self._names: dict[Names, Names] = {}
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._ahead = asyncio.Lock()
        """Held while memory may be ahead of the log; whoever reads state for others takes it too."""
        self._counts: Counter[str] = Counter()
        self._dead_letters: Counter[str] = Counter()
        self._alarms: Counter[str] = Counter()
        self._latency = Histogram()
        self._commits = Histogram()
        self._log_down_since_s: float | None = None
        self._waiters = CommandWaiters()
        self._stopping = False
        self._fenced = False
        self._tasks: list[asyncio.Task[None]] = []

    # --- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports, the shards and the rules. Raises `LogUnavailable`."""
        self._ports: HostPorts = await self._open_ports(self.incarnation)
        self._ticker = Ticker(self._ports.log, self._shards, self._clock_ms, self._fire)
        self._activations = Activations(self._ports.log, self._shards, self._settings.activation)
        await self._activations.open()
        self._passivation = Passivation(self._activations, self._ahead, self._save_now)
        rules = await self._ports.rules.load()
        self._around = replace(self._around, rules=RuleBook(rules))
        self._tasks = [
            asyncio.create_task(self._work(), name=f"{self.name} turns"),
            asyncio.create_task(self._save(), name=f"{self.name} snapshots"),
            asyncio.create_task(self._passivation.run(), name=f"{self.name} passivation"),
            asyncio.create_task(self._watch_rules(), name=f"{self.name} rules"),
            asyncio.create_task(self._ticker.run(), name=f"{self.name} timers"),
        ]

    async def stop(self) -> None:
        """Finish what waits, save every unsaved device, give back the ports."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            turns, *others = self._tasks
            for task in others:
                task.cancel()
            await asyncio.gather(turns, *others, return_exceptions=True)
            while not self._fenced and (snapshots := self._activations.take_unsaved()):
                await self._store(snapshots)
            self._tasks = []
            await self._ports.close()

    async def ping(self) -> int:
        """The incarnation: proof of life. Raises `Fenced` once this host may not commit any more."""
        if self._fenced:
            raise Fenced(f"{self.name} lost its shards")
        return self.incarnation

    # --- calls ------------------------------------------------------------------------------------------

    async def deliver(self, data: bytes) -> bytes:
        """Run an encoded `Batch`; answers an encoded `BatchReply` once everything in it is committed.

        Raises:
            LogUnavailable: nothing can be said of the batch; deliver it again.
            Fenced: this host has lost its shards; ask for the routing table.
            Overloaded: too many senders wait.
            InvalidMessage: the bytes are no batch.
        """
        try:
            batch = batch_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessage(f"not a batch: {error}") from error
        names = [self._intern(n) for n in batch.metrics]
        if not all(type(m) is not Reading or m.metrics < len(names) for m in batch.messages):
            raise InvalidMessage("not a batch: a reading refers to metrics that it does not carry")
        work = Work(batch.messages, names)
        owns = self._activations.owns
        # What is active here is owned here, so only the rest has to be worked out.
        new = {m.device_id for m in batch.messages}.difference(self._activations.devices)
        if all(map(owns, new)):
            return _encode(BatchReply(batch.sequence, await self._enqueue(work)))
        mine = [i for i, m in enumerate(batch.messages) if owns(m.device_id)]
        moved = sorted(set(range(len(batch.messages))) - set(mine))
        outcomes = await self._enqueue(Work([batch.messages[i] for i in mine], names))
        return _encode(BatchReply(batch.sequence, {mine[i]: o for i, o in outcomes.items()}, moved))

    async def ask(self, message: Message, names: Names = ()) -> Outcome:
        """One message's turn, for a caller that holds this host's handle. Raises like `deliver`."""
        if not self._activations.owns(message.device_id):
            raise Fenced(f"{message.device_id} is not hosted by {self.name}; ask for the routing table")
        return (await self._enqueue(Work([message], [names]))).get(0, ACCEPTED)

    async def answer(self, message: Message, names: Names = ()) -> Any:
        """Like `ask`, but gives the answer's value and raises refusals as `Refused`."""
        outcome = await self.ask(message, names)
        if isinstance(outcome, Refusal):
            raise refused(outcome.code, outcome.detail)
        return outcome.value if isinstance(outcome, Answer) else None

    async def command(self, message: SendCommand, wait_s: float) -> Command | None:
        """Have a device do something: the command as it ended within `wait_s`, or as it stands.

        None: it has ended before. Raises like `answer`.
        """
        with self._waiters.expecting(message.command_id) as ended:
            command: Command | None = await self.answer(message)
            if command is not None and wait_s > 0:
                try:
                    async with asyncio.timeout(wait_s):
                        return await ended
                except TimeoutError:
                    pass
            return command

    async def map(self, which: Filter, function: Callable[[DeviceView], Any]) -> dict[str, Any]:
        """Run a function beside the state of each device of this host that matches.

        Returns:
            By device id what the function returned, or the exception that it raised.
        """
        ids = await self._ports.registry.select(which, self._shards)
        results: dict[str, Any] = {}
        for start in range(0, len(ids), MAP_CHUNK):
            chunk = ids[start : start + MAP_CHUNK]
            await self._passivation.room()
            async with self._ahead:
                await self._activations.ensure(chunk, self._around, scan=True)
                for device_id in chunk:
                    view = DeviceView(self._activations.devices[device_id], self._around, self._clock_ms())
                    try:
                        results[device_id] = function(view)
                    except Exception as error:  # the caller's code: its errors are the caller's to see
                        results[device_id] = error
        return results

    async def clone(self, which: Filter, limit: int) -> Clones:
        """Copies of the devices of this host that match.

        Raises:
            InvalidMessage: there are more than `limit`.
        """
        ids = await self._ports.registry.select(which, self._shards)
        if len(ids) > limit:
            raise InvalidMessage(f"{self.name} alone has {len(ids)} such devices, above the limit of {limit}")
        devices: list[StoredDevice] = []
        for start in range(0, len(ids), CLONE_CHUNK):
            async with self._ahead:
                active, log = self._activations.devices, self._ports.log
                devices += await clone(ids[start : start + CLONE_CHUNK], active, log)
        return Clones(devices, self._around.profiles, list(self._around.rules.rules.values()))

    def past(self) -> Past:
        """What it takes to relive devices elsewhere. Raises `InvalidMessage` where no past is kept."""
        if self._ports.open_past is None:
            raise InvalidMessage("no past is kept here, so nothing can be relived")
        return Past(self._ports.open_past, self._around.profiles)

    async def rules_of(self, device_id: str) -> list[dict[str, Any]]:
        """The rules that watch a device, each with the alarm it holds there or None."""
        async with self._ahead:
            await self._activations.ensure([device_id], self._around)
            device = self._activations.devices[device_id]
            rules = device.covering(self._around)
            return [{"rule": rule, "alarm": device.alarms.get(rule.rule_id)} for rule in rules]

    async def rules(self) -> list[Rule]:
        """All rules."""
        return await self._ports.rules.load()

    async def create_rule(self, spec: RuleSpec) -> Rule:
        """Store a new rule. Raises `InvalidMessage` for one that can never work."""
        validate(spec)
        return await self._ports.rules.create(spec)

    async def replace_rule(self, rule_id: str, spec: RuleSpec) -> Rule | None:
        """The rule's next version; None when there is no such rule."""
        validate(spec)
        return await self._ports.rules.replace(rule_id, spec)

    async def delete_rule(self, rule_id: str) -> bool:
        """Whether there was such a rule."""
        return await self._ports.rules.delete(rule_id)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        down = self._log_down_since_s
        return {
            "name": self.name,
            "readings_committed": self._counts["readings"],
            "readings_duplicate": self._counts["duplicates"],
            "commits": self._counts["commits"],
            "commit_failures": self._counts["commit_failures"],
            "dead_letters": dict(self._dead_letters),
            "alarms_raised": dict(self._alarms),
            "devices_active": len(self._activations.devices),
            "devices_unsaved": self._activations.dirty,
            "activations": self._activations.activated,
            **self._passivation.statistics(),
            "snapshots": self._counts["snapshots"],
            "shards_owned": len(self._shards),
            "batches_waiting": len(self._waiting),
            "rules": len(self._around.rules.rules),
            **self._ticker.statistics(),
            "log_down_s": 0.0 if down is None else time.monotonic() - down,
            "ingest_to_commit": self._latency.as_dict(),
            "commit": self._commits.as_dict(),
        }

    # --- turns ------------------------------------------------------------------------------------------

    def _intern(self, names: Names) -> Names:
        return self._names.setdefault(names, names) if len(self._names) < 65_536 else names

    async def _enqueue(self, work: Work) -> Outcomes:
        if self._fenced:
            raise Fenced(f"{self.name} lost its shards")
        if self._stopping:
            raise LogUnavailable(f"{self.name} is stopping")
        if len(self._waiting) >= MAX_WAITING_BATCHES:
            raise Overloaded(f"{self.name} has {MAX_WAITING_BATCHES} batches waiting")
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        return await waiting.done

    async def _work(self) -> None:
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
            self._fenced = self._fenced or isinstance(error, Fenced)
            self._counts["commit_failures"] += 1
            if self._log_down_since_s is None:
                self._log_down_since_s = time.monotonic()
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_exception(type(error)(str(error)))
            return
        self._log_down_since_s = None
        start = 0
        for waiting in group:
            end = start + len(waiting.work.messages)
            if not waiting.done.done():
                own = {i - start: o for i, o in outcomes.items() if start <= i < end} if outcomes else {}
                waiting.done.set_result(own)
            start = end

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
        letter = _dead_letter(work.messages[0], work.names, reason, detail, self._clock_ms())
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
        activations = self._activations
        ids = {m.device_id for work in works for m in work.messages}
        await activations.ensure(ids, self._around)
        identities = lookups(works, activations.devices)
        known = await self._ports.log.seen(identities) if identities else set()
        heads = activations.mark(ids)
        try:
            turns = run(works, activations.devices, self._around, self._clock_ms(), known)
            if turns.commit:
                started_s = time.monotonic()
                await self._ports.log.commit(turns.commit)
                self._commits.observe(time.monotonic() - started_s)
        except BaseException:
            # Let it crash: memory is ahead of the log, so it is loaded again, never patched back.
            activations.discard(ids, heads)
            raise
        activations.changed(turns.touched)
        self._ticker.add(turns.commit.timers)
        self._waiters.tell(turns.commit.commands)
        self._count(works, turns)
        return turns.outcomes

    def _count(self, works: Sequence[Work], turns: Turns) -> None:
        commit = turns.commit
        self._counts["commits"] += 1
        self._counts["readings"] += len(commit.readings)
        self._counts["duplicates"] += sum(type(o) is Duplicate for o in turns.outcomes.values())
        received = [m.received_ms for w in works for m in w.messages if type(m) is Reading]
        self._latency.observe_since_ms(self._clock_ms(), received)
        for alarm in commit.alarms:
            if alarm.state == "ACTIVE":
                self._alarms[alarm.severity] += 1
        for letter in commit.dead_letters:
            self._dead_letters[letter.reason] += 1

    # --- snapshots and rules ----------------------------------------------------------------------------

    async def _save(self) -> None:
        while not self._fenced:
            async with self._ahead:
                snapshots = self._activations.take_due()
            if snapshots:
                await self._store(snapshots)
                await asyncio.sleep(SAVE_PAUSE_S)
            else:
                await asyncio.sleep(_IDLE_S if not self._activations.dirty else _IDLE_S / 10)

    async def _save_now(self, snapshots: Sequence[Snapshot]) -> None:
        try:
            await self._ports.log.save(snapshots, self._activations.heads(snapshots))
        except Fenced:
            self._fenced = True
            raise
        self._counts["snapshots"] += len(snapshots)

    async def _store(self, snapshots: Sequence[Snapshot]) -> None:
        try:
            await self._save_now(snapshots)
        except LogUnavailable:
            self._activations.unsaved(snapshots)
            if self._stopping:
                raise
            await asyncio.sleep(_IDLE_S)
        except Fenced:
            return

    async def _watch_rules(self) -> None:
        # What changed shortly before this host took over may not have reached the devices yet.
        since_ms = self._clock_ms() - RULE_OVERLAP_MS
        async for _ in self._ports.rules.changes():
            try:
                rules = await self._ports.rules.load()
                self._around = replace(self._around, rules=RuleBook(rules))
                fresh = [rule for rule in rules if rule.updated_ms > since_ms]
                await self._arm([rule for rule in fresh if isinstance(rule.spec.condition, NoData)])
                since_ms = max([since_ms, *(rule.updated_ms for rule in fresh)])
            except Unavailable:
                continue  # `changes` yields again once the database is back

    async def _fire(self, due: Sequence[TimerFired]) -> None:
        await self._enqueue(Work(due))

    async def _arm(self, rules: Sequence[Rule]) -> None:
        """Have devices that may not be in memory set the timers of no-data rules."""
        for rule in rules:
            scope = rule.spec.scope
            only = None if scope.device_id is None else [scope.device_id]
            which = Filter(scope.device_type, device_ids=only)
            ids = await self._ports.registry.select(which, self._shards)
            for start in range(0, len(ids), ARM_CHUNK):
                await self._enqueue(Work([RefreshRules(i) for i in ids[start : start + ARM_CHUNK]]))


def _dead_letter(
    message: Message, names: Sequence[Names], reason: str, detail: str, now_ms: int
) -> DeadLetter:
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
