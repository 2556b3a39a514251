"""What a host has for one database of the log: the devices whose shards are in it, and all that runs them.

Its lock, lease, turns and commits are its own, so a database that is away stops what is in it and nothing
else. A host over one database has one compartment.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from sensorium.actors.activations import Activations, ActivationSettings
from sensorium.actors.command_waiters import CommandWaiters
from sensorium.actors.delivery import Delivery
from sensorium.actors.device import Surroundings
from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable, Unavailable
from sensorium.actors.holdings import Holdings
from sensorium.actors.messages import RefreshRules, TimerFired
from sensorium.actors.passivation import Correction, Passivation
from sensorium.actors.placement import SHARDS, device_key
from sensorium.actors.ports import Filter, Held, Log, Registry, Rehoming
from sensorium.actors.profile import PROCESS, SHARED
from sensorium.actors.records import Commit, EventRow, Snapshot
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rules import NoData, Rule
from sensorium.actors.ticker import Ticker
from sensorium.actors.turns import Work

SENDERS_KNOWN: Final = 4_096
"""Senders of which a host remembers what came last."""

SAVE_PAUSE_S: Final = 0.05
"""Between two batches of snapshots, so that many that come due together do not crowd out the commits."""

ARM_CHUNK: Final = 500
"""Devices of a new no-data rule that share one commit."""

RULE_OVERLAP_MS: Final = 3_600_000
"""How old a rule may be that a starting host still brings to its devices."""

IDLE_S: Final = 1.0
TURNS: Final = "turns"
"""The job that is not cancelled: it ends when nothing waits any more."""

_json = msgspec.json.Encoder()


def shared_out(settings: ActivationSettings, compartments: int) -> ActivationSettings:
    """The part of a host's memory that each of its compartments may take."""
    if compartments == 1:
        return settings
    return replace(
        settings,
        max_active=max(1, settings.max_active // compartments),
        max_active_bytes=max(1, settings.max_active_bytes // compartments),
    )


class Compartment:
    """The devices of a host that are in one database. The host starts `jobs` as tasks, and calls `stop` last.

    Args:
        name: the host's.
        registry: asked for devices of this database's shards only.
        around: what the devices are told of the world, as of now.
        waiters: those who wait here for the end of a command.

    Attributes:
        ahead: held while memory may be ahead of the log; whoever reads state for others takes it too.
        snapshots: how many were stored.
    """

    def __init__(
        self,
        name: str,
        log: Log,
        registry: Registry,
        settings: ActivationSettings,
        correction: Correction,
        around: Callable[[], Surroundings],
        clock_ms: Callable[[], int],
        waiters: CommandWaiters,
    ) -> None:
        self.name = name
        self.log = log
        self.ahead = asyncio.Lock()
        self.snapshots = 0
        clock_s = asyncio.get_running_loop().time
        self.holdings = Holdings(log, self, clock_s)
        shard_of = self.holdings.owned.shard_of
        self.activations = Activations(log, (), settings, clock_s, shard_of)
        self.passivation = Passivation(self.activations, self.ahead, self._save_now, correction)
        self.ticker = Ticker(log, (), clock_ms, self._fire)
        self.delivery = Delivery(
            name,
            log,
            self.activations,
            self.holdings,
            self.passivation,
            self.ahead,
            around,
            clock_ms,
            self._committed,
            waiters,
        )
        self._waiters = waiters
        self._registry = registry
        self._around = around
        self._clock_ms = clock_ms
        self._stopping = False
        self._newcomers: set[int] = set()
        """Shards whose devices may lack the timers of young rules."""
        self._armed_ms = clock_ms() - RULE_OVERLAP_MS
        """When the newest rule was changed that the devices have."""
        self._unarmed = asyncio.Event()
        self._sequences: dict[str, int] = {}
        """By sender the newest batch; of `SENDERS_KNOWN`, those that were heard last."""

    # --- life -------------------------------------------------------------------------------------------

    def jobs(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What runs as long as the host does, by name. `TURNS` ends after `stop`; cancel the others."""
        return {
            TURNS: self.delivery.serve(),
            "snapshots": self._save(),
            "passivation": self.passivation.run(),
            "new timers": self._arm_young(),
            "timers": self.ticker.run(),
            "lease": self.holdings.run(),
            "shards": self.holdings.follow(),
        }

    def stop(self) -> None:
        """Take nothing more; what waits is finished."""
        self._stopping = True
        self.delivery.stop()

    async def save_all(self) -> None:
        """Save every unsaved device, after all jobs have ended. Raises `LogUnavailable`."""
        while not self.holdings.fenced and (snapshots := self.activations.take_unsaved()):
            await self._store(snapshots)

    def in_turn(self, sender: str, sequence: int) -> None:
        """Raises `InvalidMessage` for a batch after which the sender has sent another."""
        newest = self._sequences.pop(sender, 0)
        self._sequences[sender] = max(newest, sequence)
        if len(self._sequences) > SENDERS_KNOWN:
            del self._sequences[next(iter(self._sequences))]
        if sequence < newest:
            raise InvalidMessage(f"{sender} has sent {newest} after {sequence}, which comes too late")

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        return {
            "lease_age_s": round(self.holdings.lease_age_s, 3),
            "devices_active": len(self.activations.devices),
            "devices_unsaved": self.activations.dirty,
            "activations": self.activations.activated,
            **self.passivation.statistics(),
            "snapshots": self.snapshots,
            "shards_owned": len(self.holdings.owned.epochs),
            **self.ticker.statistics(),
            **self.delivery.statistics(),
        }

    # --- shards -----------------------------------------------------------------------------------------

    async def opened(self, held: Mapping[int, Held]) -> None:
        """See `holdings.Tenant`."""
        await self.activations.open({shard: one.head for shard, one in held.items()})
        self.ticker.own({*self.holdings.owned.epochs, *held})
        self._newcomers |= held.keys()
        self._unarmed.set()

    async def closed(self, shards: Iterable[int]) -> None:
        """See `holdings.Tenant`."""
        gone = set(shards)
        async with self.ahead:
            self.activations.close(gone)
        self.ticker.own(self.holdings.owned.epochs)
        self._newcomers -= gone

    async def drained(self) -> None:
        """See `holdings.Tenant`."""
        await self.delivery.drained()

    async def flush(self, shards: Iterable[int]) -> None:
        """See `holdings.Tenant`."""
        wanted = set(shards)
        while True:
            async with self.ahead:
                snapshots = self.activations.take_unsaved(wanted)
            if not snapshots:
                return
            try:
                await self._save_now(snapshots)
            except BaseException:
                self.activations.unsaved(snapshots)
                raise

    def heads(self, shards: Iterable[int]) -> Mapping[int, int]:
        """See `holdings.Tenant`."""
        return self.activations.certain_heads(shards)

    async def packed(self, device_id: str, left: int, to: int, epochs: Mapping[int, int]) -> Rehoming:
        """See `holdings.Tenant`."""
        now_ms = self._clock_ms()
        heads = {} if to in self.holdings.owned.epochs else await self.log.open([to])
        async with self.ahead:
            await self.activations.ensure([device_id], self._around())
            heads = self.activations.certain_heads((left, to)) | heads
            device = self.activations.devices[device_id]
            snapshot = take_snapshot(device)._replace(shard=to, offset=heads[to] + 1)
        heads[to] += 1
        body = _json.encode({"isolation": PROCESS if to >= SHARDS else SHARED})
        event = EventRow(
            to, heads[to], device_key(device_id), now_ms, "isolation", body, device.retention_class
        )
        return Rehoming(device_id, left, to, epochs, heads, event, snapshot)

    # --- snapshots and timers ---------------------------------------------------------------------------

    async def _save(self) -> None:
        while not self.holdings.fenced:
            async with self.ahead:
                snapshots = self.activations.take_due()
            if snapshots:
                await self._store(snapshots)
                await asyncio.sleep(SAVE_PAUSE_S)
            else:
                await asyncio.sleep(IDLE_S if not self.activations.dirty else IDLE_S / 10)

    async def _save_now(self, snapshots: Sequence[Snapshot]) -> None:
        try:
            await self.log.save(snapshots, self.activations.heads(snapshots))
        except Fenced:
            self.holdings.fenced = True
            raise
        self.snapshots += len(snapshots)

    async def _store(self, snapshots: Sequence[Snapshot]) -> None:
        try:
            await self._save_now(snapshots)
        except LogUnavailable:
            self.activations.unsaved(snapshots)
            if self._stopping:
                raise
            await asyncio.sleep(IDLE_S)
        except Fenced:
            return

    def _committed(self, commit: Commit) -> None:
        self.ticker.add(commit.timers)
        self._waiters.tell(commit.commands)

    async def _fire(self, due: Sequence[TimerFired]) -> None:
        await self.delivery.run(Work(due))

    def rules_changed(self) -> None:
        """Have the devices learn what a change of the rules means for their timers, soon."""
        self._unarmed.set()

    async def _arm_young(self) -> None:
        """What changed lately may not have reached devices that are not in memory, or came here just now."""
        while True:
            await self._unarmed.wait()
            self._unarmed.clear()
            shards = sorted(self._newcomers)
            rules = list(self._around().rules.rules.values())
            young_ms = self._clock_ms() - RULE_OVERLAP_MS
            try:
                await self._arm([r for r in rules if r.updated_ms > self._armed_ms])
                await self._arm([r for r in rules if r.updated_ms > young_ms], shards)
            except Unavailable:
                await asyncio.sleep(IDLE_S)
                self._unarmed.set()
            else:
                self._armed_ms = max([self._armed_ms, *(rule.updated_ms for rule in rules)])
                self._newcomers.difference_update(shards)

    async def _arm(self, rules: Sequence[Rule], shards: Sequence[int] | None = None) -> None:
        """Have devices that may not be in memory set the timers of no-data rules."""
        for rule in rules:
            if not isinstance(rule.spec.condition, NoData):
                continue
            scope = rule.spec.scope
            only = None if scope.device_id is None else [scope.device_id]
            which = Filter(scope.device_type, device_ids=only)
            asked = sorted(self.holdings.owned.epochs) if shards is None else shards
            ids = await self._registry.select(which, asked)
            for start in range(0, len(ids), ARM_CHUNK):
                await self.delivery.run(Work([RefreshRules(i) for i in ids[start : start + ARM_CHUNK]]))
