"""A DeviceHost: many devices in one process, one turn at a time each, one commit for all that waits.

A plain class that knows nothing of Ray; `runtime` makes a Ray actor of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.actors.activations import Activations, ActivationSettings
from sensorium.actors.cloning import CLONE_CHUNK, Clones, clone
from sensorium.actors.command_waiters import CommandWaiters
from sensorium.actors.conditions import validate
from sensorium.actors.delivery import Delivery
from sensorium.actors.device import Surroundings
from sensorium.actors.errors import (
    Fenced,
    InvalidMessage,
    LogUnavailable,
    Moved,
    Unavailable,
    refused,
)
from sensorium.actors.holdings import Holdings
from sensorium.actors.isolation import isolated_in
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    BatchReply,
    Message,
    Outcome,
    Reading,
    RefreshRules,
    Refusal,
    SendCommand,
    TimerFired,
    batch_decoder,
)
from sensorium.actors.models.info import ActiveModel
from sensorium.actors.origin import Origin, asked_by
from sensorium.actors.passivation import Passivation
from sensorium.actors.past import Past
from sensorium.actors.placement import SHARDS, device_key
from sensorium.actors.ports import Filter, Held, HostPorts, HostPortsFactory, Rehoming
from sensorium.actors.profile import PROCESS, SHARED, Profiles
from sensorium.actors.records import Command, Commit, EventRow, Snapshot, StoredDevice
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import NoData, Rule, RuleSpec
from sensorium.actors.ticker import Ticker
from sensorium.actors.turns import Names, Work
from sensorium.actors.view import DeviceView

if TYPE_CHECKING:
    from sensorium.actors.models.book import ModelBook

SENDERS_KNOWN = 4_096
"""Senders of which a host remembers what came last."""

MAP_CHUNK = 100
"""Devices that a mapped function sees before waiting messages get their turn."""

SAVE_PAUSE_S = 0.05
"""Between two batches of snapshots, so that many that come due together do not crowd out the commits."""

ARM_CHUNK = 500
"""Devices of a new no-data rule that share one commit."""

RULE_OVERLAP_MS = 3_600_000
"""How old a rule may be that a starting host still brings to its devices."""

_IDLE_S = 1.0
_logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host is told at its start. `auto_register_as`: see `Surroundings`."""

    profiles: Profiles = field(default_factory=Profiles)
    auto_register_as: str | None = None
    activation: ActivationSettings = field(default_factory=ActivationSettings)


class DeviceHost:
    """Owns shards and the devices in them, for one incarnation: those that the database says are its own.

    Call `start` first and `stop` last; both by the owner. All else may overlap. `shards` are claimed at the
    start, as far as nobody else owns them.
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
        self._claimed = list(shards)
        self._open_ports = open_ports
        self._settings = settings
        self._clock_ms = clock_ms
        own = name if isolated_in(name) is not None else None
        self._around = Surroundings(settings.profiles, RuleBook(), settings.auto_register_as, process=own)
        self._names: dict[Names, Names] = {}
        self._ahead = asyncio.Lock()
        """Held while memory may be ahead of the log; whoever reads state for others takes it too."""
        self._snapshots = 0
        self._waiters = CommandWaiters()
        self._stopping = False
        self._newcomers: set[int] = set()
        """Shards whose devices may lack the timers of young rules."""
        self._armed = asyncio.Event()
        self._models: Sequence[ActiveModel] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sequences: dict[str, int] = {}
        """By sender the newest batch; of `SENDERS_KNOWN`, those that were heard last."""

    # --- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports, the rules and the shards. Raises `LogUnavailable`."""
        self._ports: HostPorts = await self._open_ports(self.incarnation)
        self._ticker = Ticker(self._ports.log, (), self._clock_ms, self._fire)
        clock_s = asyncio.get_running_loop().time
        self._holdings = Holdings(self._ports.log, self, clock_s)
        shard_of = self._holdings.owned.shard_of
        self._activations = Activations(self._ports.log, (), self._settings.activation, clock_s, shard_of)
        self._passivation = Passivation(self._activations, self._ahead, self._save_now)
        self._delivery = Delivery(
            self.name,
            self._ports.log,
            self._activations,
            self._holdings,
            self._passivation,
            self._ahead,
            lambda: self._around,
            self._clock_ms,
            self._committed,
        )
        rules = await self._ports.rules.load()
        self._around = replace(self._around, rules=RuleBook(rules))
        await self._take_models()
        await self._holdings.refresh()
        if self._claimed:
            await self._holdings.claim(self._claimed)
        self._tasks = [
            asyncio.create_task(self._delivery.serve(), name=f"{self.name} turns"),
            asyncio.create_task(self._save(), name=f"{self.name} snapshots"),
            asyncio.create_task(self._passivation.run(), name=f"{self.name} passivation"),
            asyncio.create_task(self._watch_rules(), name=f"{self.name} rules"),
            asyncio.create_task(self._watch_models(), name=f"{self.name} models"),
            asyncio.create_task(self._arm_newcomers(), name=f"{self.name} new shards"),
            asyncio.create_task(self._ticker.run(), name=f"{self.name} timers"),
            asyncio.create_task(self._holdings.run(), name=f"{self.name} lease"),
            asyncio.create_task(self._holdings.follow(), name=f"{self.name} shards"),
        ]

    async def stop(self) -> None:
        """Finish what waits, save every unsaved device, give back the ports."""
        self._stopping = True
        if self._tasks:
            self._delivery.stop()
        if self._tasks:
            turns, *others = self._tasks
            for task in others:
                task.cancel()
            await asyncio.gather(turns, *others, return_exceptions=True)
            while not self._holdings.fenced and (snapshots := self._activations.take_unsaved()):
                await self._store(snapshots)
            self._tasks = []
            await self._ports.close()

    async def ping(self) -> float:
        """Proof of life: the seconds since the lease was renewed. Raises `Fenced` once it may not commit."""
        if self._holdings.fenced:
            raise Fenced(f"{self.name} lost its shards")
        return self._holdings.lease_age_s

    # --- shards -----------------------------------------------------------------------------------------

    @property
    def _shards(self) -> list[int]:
        return sorted(self._holdings.owned.epochs)

    async def refresh(self) -> None:
        """Look at once at what the database says this host owns. See `Holdings.refresh`."""
        await self._holdings.refresh()

    async def claim(self, shards: Sequence[int]) -> dict[int, int]:
        """Own those of the shards that are free. See `Holdings.claim`."""
        return await self._holdings.claim(shards)

    async def hand_over(self, epochs: Mapping[int, int], to: int) -> dict[int, int]:
        """Give shards to another incarnation. See `Holdings.hand_over`."""
        return await self._holdings.hand_over(epochs, to)

    async def rehome(self, device_id: str, to: int, epochs: Mapping[int, int]) -> None:
        """Give a device a shard of its own, or have it back in that of its key. See `Holdings.rehome`."""
        await self._holdings.rehome(device_id, to, epochs)

    async def opened(self, held: Mapping[int, Held]) -> None:
        """See `holdings.Tenant`."""
        await self._activations.open({shard: one.head for shard, one in held.items()})
        self._ticker.own({*self._holdings.owned.epochs, *held})
        self._newcomers |= held.keys()
        self._armed.set()

    async def closed(self, shards: Iterable[int]) -> None:
        """See `holdings.Tenant`."""
        gone = set(shards)
        async with self._ahead:
            self._activations.close(gone)
        self._ticker.own(self._holdings.owned.epochs)
        self._newcomers -= gone

    async def drained(self) -> None:
        """See `holdings.Tenant`."""
        await self._delivery.drained()

    async def flush(self, shards: Iterable[int]) -> None:
        """See `holdings.Tenant`."""
        wanted = set(shards)
        while True:
            async with self._ahead:
                snapshots = self._activations.take_unsaved(wanted)
            if not snapshots:
                return
            try:
                await self._save_now(snapshots)
            except BaseException:
                self._activations.unsaved(snapshots)
                raise

    def heads(self, shards: Iterable[int]) -> Mapping[int, int]:
        """See `holdings.Tenant`."""
        return self._activations.certain_heads(shards)

    async def packed(self, device_id: str, left: int, to: int, epochs: Mapping[int, int]) -> Rehoming:
        """See `holdings.Tenant`."""
        now_ms = self._clock_ms()
        heads = {} if to in self._holdings.owned.epochs else await self._ports.log.open([to])
        async with self._ahead:
            await self._activations.ensure([device_id], self._around)
            heads = self._activations.certain_heads((left, to)) | heads
            device = self._activations.devices[device_id]
            snapshot = take_snapshot(device)._replace(shard=to, offset=heads[to] + 1)
        heads[to] += 1
        body = _json.encode({"isolation": PROCESS if to >= SHARDS else SHARED})
        event = EventRow(
            to, heads[to], device_key(device_id), now_ms, "isolation", body, device.retention_class
        )
        return Rehoming(device_id, left, to, epochs, heads, event, snapshot)

    # --- calls ------------------------------------------------------------------------------------------

    async def deliver(self, data: bytes) -> bytes:
        """Run an encoded `Batch`; answers an encoded `BatchReply` once everything in it is committed.

        Raises:
            LogUnavailable: nothing can be said of the batch; deliver it again.
            Fenced: this host has lost its shards; ask for the routing table.
            Overloaded: too many senders wait.
            InvalidMessage: the bytes are no batch, or it comes after the sender's next one.
        """
        try:
            batch = batch_decoder.decode(data)
            names = [self._intern(n) for n in batch.names()]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"not a batch: {error}") from error
        if not all(type(m) is not Reading or m.metrics < len(names) for m in batch.messages):
            raise InvalidMessage("not a batch: a reading refers to metrics that it does not carry")
        self._in_turn(batch.sender, batch.sequence)
        outcomes, moved = await self._delivery.run(Work(batch.messages, names))
        return _encode(BatchReply(batch.sequence, outcomes, moved))

    def _in_turn(self, sender: str, sequence: int) -> None:
        """Raises `InvalidMessage` for a batch after which the sender has sent another."""
        newest = self._sequences.pop(sender, 0)
        self._sequences[sender] = max(newest, sequence)
        if len(self._sequences) > SENDERS_KNOWN:
            del self._sequences[next(iter(self._sequences))]
        if sequence < newest:
            raise InvalidMessage(f"{sender} has sent {newest} after {sequence}, which comes too late")

    async def ask(self, message: Message, names: Names = ()) -> Outcome:
        """One message's turn, for a caller with this host's handle. Raises as `deliver`, and `Moved`."""
        outcomes, moved = await self._delivery.run(Work([message], [names]))
        if moved:
            raise Moved(f"{message.device_id} is not hosted by {self.name}; ask for the routing table")
        return outcomes.get(0, ACCEPTED)

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

    async def map(
        self,
        which: Filter,
        function: Callable[[DeviceView], Any],
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Run a function beside the state of each matching device of these shards, by default this host's.

        `known` are the dedicated shards that are asked elsewhere: a device with another raises `Moved`.

        Returns:
            By device id what the function returned, or the exception that it raised.

        Raises:
            Moved: one of the shards is not this host's, or no longer; ask for the routing table.
            LeaseOver: this host cannot tell.
        """
        asked = self._shards if shards is None else shards
        self._holdings.check_homes(asked, known)
        ids = await self._ports.registry.select(which, asked)
        results: dict[str, Any] = {}
        for start in range(0, len(ids), MAP_CHUNK):
            chunk = ids[start : start + MAP_CHUNK]
            await self._passivation.room()
            async with self._ahead:
                await self._activations.ensure(chunk, self._around, scan=True)
                self._holdings.epochs(asked)
                self._holdings.check_lease()
                for device_id in chunk:
                    view = DeviceView(self._activations.devices[device_id], self._around, self._clock_ms())
                    try:
                        results[device_id] = function(view)
                    except Exception as error:  # the caller's code: its errors are the caller's to see
                        results[device_id] = error
        self._holdings.epochs(asked)
        self._holdings.check_homes(asked, known)
        return results

    async def clone(
        self,
        which: Filter,
        limit: int,
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> Clones:
        """Copies of the matching devices of these shards, by default this host's. `known`: as for `map`.

        Raises:
            InvalidMessage: there are more than `limit`.
            Moved, LeaseOver: as `map`.
        """
        asked = self._shards if shards is None else shards
        self._holdings.check_homes(asked, known)
        ids = await self._ports.registry.select(which, asked)
        if len(ids) > limit:
            raise InvalidMessage(f"{self.name} alone has {len(ids)} such devices, above the limit of {limit}")
        devices: list[StoredDevice] = []
        for start in range(0, len(ids), CLONE_CHUNK):
            async with self._ahead:
                active, log = self._activations.devices, self._ports.log
                devices += await clone(ids[start : start + CLONE_CHUNK], active, log)
                self._holdings.epochs(asked)
                self._holdings.check_lease()
        self._holdings.epochs(asked)
        self._holdings.check_homes(asked, known)
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
            self._holdings.check_lease()
            device = self._activations.devices[device_id]
            rules = device.covering(self._around)
            return [{"rule": rule, "alarm": device.alarms.get(rule.rule_id)} for rule in rules]

    async def rules(self) -> list[Rule]:
        """All rules."""
        return await self._ports.rules.load()

    async def create_rule(self, spec: RuleSpec, origin: Origin | None = None) -> Rule:
        """Store a new rule. Raises `InvalidMessage` for one that can never work."""
        validate(spec)
        with asked_by(origin):
            return await self._ports.rules.create(spec, _name(origin))

    async def replace_rule(self, rule_id: str, spec: RuleSpec, origin: Origin | None = None) -> Rule | None:
        """The rule's next version; None when there is no such rule."""
        validate(spec)
        with asked_by(origin):
            return await self._ports.rules.replace(rule_id, spec, _name(origin))

    async def delete_rule(self, rule_id: str, origin: Origin | None = None) -> bool:
        """Whether there was such a rule."""
        with asked_by(origin):
            return await self._ports.rules.delete(rule_id)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            "lease_age_s": round(self._holdings.lease_age_s, 3),
            "devices_active": len(self._activations.devices),
            "devices_unsaved": self._activations.dirty,
            "activations": self._activations.activated,
            **self._passivation.statistics(),
            "snapshots": self._snapshots,
            "shards_owned": len(self._holdings.owned.epochs),
            "rules": len(self._around.rules.rules),
            **({} if self._around.models is None else self._around.models.statistics()),
            **self._ticker.statistics(),
            **self._delivery.statistics(),
        }

    def _intern(self, names: Names) -> Names:
        return self._names.setdefault(names, names) if len(self._names) < 65_536 else names

    # --- snapshots and rules ----------------------------------------------------------------------------

    async def _save(self) -> None:
        while not self._holdings.fenced:
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
            self._holdings.fenced = True
            raise
        self._snapshots += len(snapshots)

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

    async def _watch_models(self) -> None:
        if self._ports.models is not None:
            async for _ in self._ports.models.changes():
                try:
                    await self._take_models()
                except Unavailable:
                    continue  # `changes` yields again once the database is back

    async def _take_models(self) -> None:
        """Have those judge that the database says; while there never was one, nothing of them is imported."""
        if self._ports.models is None:
            return
        active = await self._ports.models.load()
        if active != self._models:
            book = await asyncio.to_thread(_book, active)
            self._models = active
            self._around = replace(self._around, models=book)
            for label, fault in book.broken.items():
                _logger.error("%s: the model %s cannot judge here: %s", self.name, label, fault)

    def _committed(self, commit: Commit) -> None:
        self._ticker.add(commit.timers)
        self._waiters.tell(commit.commands)

    async def _fire(self, due: Sequence[TimerFired]) -> None:
        await self._delivery.run(Work(due))

    async def _arm_newcomers(self) -> None:
        """What changed shortly before a shard came here may not have reached its devices yet."""
        while True:
            await self._armed.wait()
            self._armed.clear()
            shards = sorted(self._newcomers)
            since_ms = self._clock_ms() - RULE_OVERLAP_MS
            rules = [r for r in self._around.rules.rules.values() if r.updated_ms > since_ms]
            try:
                await self._arm([r for r in rules if isinstance(r.spec.condition, NoData)], shards)
            except Unavailable:
                await asyncio.sleep(_IDLE_S)
                self._armed.set()
            else:
                self._newcomers.difference_update(shards)

    async def _arm(self, rules: Sequence[Rule], shards: Sequence[int] | None = None) -> None:
        """Have devices that may not be in memory set the timers of no-data rules."""
        for rule in rules:
            scope = rule.spec.scope
            only = None if scope.device_id is None else [scope.device_id]
            which = Filter(scope.device_type, device_ids=only)
            ids = await self._ports.registry.select(which, self._shards if shards is None else shards)
            for start in range(0, len(ids), ARM_CHUNK):
                await self._delivery.run(Work([RefreshRules(i) for i in ids[start : start + ARM_CHUNK]]))


def _name(origin: Origin | None) -> str:
    return "" if origin is None else origin.by


def _book(active: Sequence[ActiveModel]) -> "ModelBook":
    # numpy is imported for models only.
    from sensorium.actors.models.book import ModelBook

    return ModelBook(active)
