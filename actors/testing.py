"""An in-memory store that keeps the promises of the ports, for tests of what runs on it. Not durable."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from sensorium.actors.conditions.recursion import check_recursion
from sensorium.actors.errors import InvalidMessage, LogUnavailable
from sensorium.actors.memory_members import MemoryMembers
from sensorium.actors.messages import DeadLetter, Value
from sensorium.actors.past import Take, TwinThen, moments
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.ports import Filter, Held, HostPorts, Isolated, Rehoming
from sensorium.actors.records import (
    Alarm,
    Anomaly,
    AuditRow,
    Command,
    Commit,
    ErasureRow,
    EventRow,
    Identity,
    PresenceRow,
    ReadingRow,
    Registration,
    Snapshot,
    StoredDevice,
    TailReading,
    Timer,
    TimerRow,
    TwinState,
)
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.selection import matches


class MemoryStore(MemoryMembers):
    """What a database would hold, and the faults to come.

    Implements `Membership`, `RuleStore` and `Registry` itself; `log(incarnation)` gives a `Log`. What it
    holds is open for a test to look at.

    Attributes:
        fail_before: how many of the next commits fail with `LogUnavailable` and write nothing.
        fail_after: how many of the next commits (after those of `fail_before`) write and then fail so.
        down: while true, every call fails with `LogUnavailable`.
        stalled: by incarnation, an event that its commits wait for before they reach the store.
        commits: how many were written.
    """

    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        super().__init__()
        self._now_ms = now_ms
        self.fail_before = 0
        self.fail_after = 0
        self.down = False
        self.stalled: dict[int, asyncio.Event] = {}
        self.commits = 0
        self.readings: list[ReadingRow] = []
        self.events: list[EventRow] = []
        self.registrations: dict[str, Registration] = {}
        self.alarms: dict[str, Alarm] = {}
        self.dead_letters: list[DeadLetter] = []
        self.timers: dict[tuple[str, str], TimerRow] = {}
        self.commands: dict[str, Command] = {}
        self.presences: dict[str, PresenceRow] = {}
        self.anomalies: dict[str, Anomaly] = {}
        self.twins: dict[str, TwinState] = {}
        self.audits: list[AuditRow] = []
        self.erasures: list[ErasureRow] = []
        self.snapshots: dict[int, Snapshot] = {}
        self.heads: dict[int, int] = {}
        self._rules: dict[str, Rule] = {}
        self._listeners: dict[asyncio.Event, None] = {}
        self._by_device: dict[int, list[ReadingRow]] = {}
        self._seen: set[tuple[int, int, int]] = set()
        self._tops: dict[int, int] = {}

    def log(self, incarnation: int) -> "MemoryLog":
        """The log as this incarnation sees it."""
        return MemoryLog(self, incarnation)

    async def ports(self, incarnation: int) -> HostPorts:
        """A `HostPortsFactory` for hosts in this process."""
        log = self.log(incarnation)
        return HostPorts([log], self, self, log.close)

    async def membership(self) -> "MemoryStore":
        """A `MembershipFactory` for coordinators in this process."""
        return self

    async def close(self) -> None:
        """As `Membership` says; what is stored stays."""

    async def load(self) -> list[Rule]:
        """As `RuleStore` says."""
        await self._turn()
        return [self._rules[rule_id] for rule_id in sorted(self._rules)]

    async def changes(self) -> AsyncIterator[None]:
        """As `RuleStore` says."""
        changed = asyncio.Event()
        changed.set()
        self._listeners[changed] = None
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield None
        finally:
            self._listeners.pop(changed, None)

    async def create(self, spec: RuleSpec, by: str = "") -> Rule:
        """As `RuleStore` says."""
        await self._turn()
        check_recursion(spec, [rule.spec for rule in self._rules.values()])
        now_ms = self._now_ms()
        rule = Rule(rule_id=uuid4().hex, version=1, spec=spec, created_ms=now_ms, updated_ms=now_ms)
        self.set_rules([*self._rules.values(), rule])
        return rule

    async def replace(self, rule_id: str, spec: RuleSpec, by: str = "") -> Rule | None:
        """As `RuleStore` says."""
        await self._turn()
        rule = self._rules.get(rule_id)
        if rule is None:
            return None
        check_recursion(spec, [other.spec for other in self._rules.values() if other.rule_id != rule_id])
        rule = msgspec.structs.replace(rule, version=rule.version + 1, spec=spec, updated_ms=self._now_ms())
        self.set_rules([*self._rules.values(), rule])
        return rule

    async def delete(self, rule_id: str) -> bool:
        """As `RuleStore` says."""
        await self._turn()
        if rule_id not in self._rules:
            return False
        self.set_rules([rule for rule in self._rules.values() if rule.rule_id != rule_id])
        return True

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Replace all rules and tell those who watch."""
        self._rules = {rule.rule_id: rule for rule in rules}
        for listener in self._listeners:
            listener.set()

    async def select(self, which: Filter, shards: Sequence[int] | None = None) -> list[str]:
        """As `Registry` says."""
        await self._turn()
        wanted = None if shards is None else frozenset(shards)
        return sorted(
            device_id
            for device_id, r in self.registrations.items()
            if (wanted is None or self.homes.get(device_id, shard_of(device_id)) in wanted)
            and matches(which, r)
        )

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """As `Membership` says."""
        return [one for _, one in await self.isolated_by_rank(by_type, otherwise, limit)]

    async def isolated_by_rank(
        self, by_type: Mapping[str, bool], otherwise: bool, limit: int
    ) -> list[tuple[int, Isolated]]:
        """What `isolated` says, each behind the number of its part of the order."""
        await self._turn()
        found = [
            r
            for r in self.registrations.values()
            if r.status == "active"
            and (by_type.get(r.device_type, otherwise) if r.isolation is None else r.isolation == "process")
        ]

        def rank(r: Registration) -> int:
            return 0 if r.device_id in self.homes else 1 if r.isolation is not None else 2

        found.sort(key=lambda r: (rank(r), r.device_id))
        return [(rank(r), Isolated(r.device_id, r.device_type)) for r in found[:limit]]

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise LogUnavailable("the memory store is down")

    def _write(self, commit: Commit, incarnation: int) -> None:
        for row in commit.readings:
            self._by_device.setdefault(row.device, []).append(row)
            self._seen.add((row.device, row.time_ms, row.key))
        places = [row[:2] for row in commit.readings] + [row[:2] for row in commit.events]
        for shard, offset in places:
            self._tops[shard] = max(offset, self._tops.get(shard, 0))
        self.readings += commit.readings
        self.events += commit.events
        for erasure in commit.erasures:
            self._erase(erasure)
        self.registrations |= {r.device_id: r for r in commit.registrations}
        self.alarms |= {a.alarm_id: a for a in commit.alarms}
        for note in commit.alarm_notes:
            if note.alarm_id in self.alarms:
                self.alarms[note.alarm_id] = note.applied(self.alarms[note.alarm_id])
        self.dead_letters += commit.dead_letters
        self.commands |= {c.command_id: c for c in commit.commands}
        self.presences |= {p.device_id: p for p in commit.presences}
        self.anomalies |= {a.anomaly_id: a for a in commit.anomalies}
        self.twins |= {t.device_id: t for t in commit.twins}
        self.audits += commit.audits
        for timer in commit.timers:
            if timer.due_ms is None:
                self.timers.pop((timer.device_id, timer.name), None)
            else:
                self.timers[timer.device_id, timer.name] = timer
        self.commits += 1

    def _erase(self, erasure: ErasureRow) -> None:
        """All at once what the real store does little by little."""
        device_id, key = erasure.device_id, device_key(erasure.device_id)
        self.erasures.append(erasure)
        shard, offset = erasure.shard, erasure.offset
        # What it has in another shard, it had before.
        self.readings = [
            r for r in self.readings if r.device != key or (r.shard == shard and r.offset > offset)
        ]
        own = self._by_device.get(key, [])
        self._by_device[key] = [r for r in own if r.shard == shard and r.offset > offset]
        self.events = [e for e in self.events if e.device != key or (e.shard == shard and e.offset >= offset)]
        self.dead_letters = [d for d in self.dead_letters if d.device_id != device_id]
        kept: tuple[dict[Any, Any], ...] = (
            *(self.alarms, self.commands, self.presences, self.twins, self.timers, self.anomalies),
        )
        for rows in kept:
            for name in [n for n, row in rows.items() if row.device_id == device_id]:
                del rows[name]
        self.registrations.pop(device_id, None)
        self.snapshots[key] = erasure.snapshot


class MemoryPast:
    """`StoredPast` over a `MemoryStore`; rules have no versions but their present one."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def devices(self, which: Filter, limit: int) -> list[Registration]:
        """As `StoredPast` says."""
        return [self._store.registrations[i] for i in (await self._store.select(which))[:limit]]

    async def rule(self, rule_id: str, version: int | None = None) -> Rule | None:
        """As `StoredPast` says."""
        rules = {rule.rule_id: rule for rule in await self._store.load()}
        rule = rules.get(rule_id)
        return rule if rule is None or version in (None, rule.version) else None

    async def rules(self) -> Sequence[Rule]:
        """As `StoredPast` says."""
        return await self._store.load()

    async def has_readings(self, device_ids: Sequence[str], start_ms: int, end_ms: int) -> bool:
        """As `StoredPast` says."""
        keys = {device_key(device_id) for device_id in device_ids}
        await self._store._turn()
        return any(r.device in keys and start_ms <= r.time_ms < end_ms for r in self._store.readings)

    async def readings(self, device_id: str, start_ms: int, end_ms: int, take: Take) -> None:
        """As `StoredPast` says."""
        await self._store._turn()
        rows = self._store._by_device.get(device_key(device_id), ())
        tail = [
            TailReading(r.offset, r.time_ms, r.key, r.flags, r.metric_set, list[Value | None](r.values))
            for r in rows
            if start_ms <= r.time_ms < end_ms
        ]
        if tail:
            take(sorted(tail))

    async def twins(self, device_id: str, start_ms: int, end_ms: int) -> list[TwinThen]:
        """As `StoredPast` says."""
        await self._store._turn()
        key, kinds = device_key(device_id), ("twin_desired", "twin_reported")
        rows = [e for e in self._store.events if e.device == key and e.kind in kinds]
        changes = [(e.kind, e.time_ms, msgspec.json.decode(e.body)["patch"]) for e in sorted(rows)]
        return moments(start_ms, {}, {}, changes, end_ms) if changes else []

    async def alarm_times(
        self, device_id: str, rule_id: str, start_ms: int, end_ms: int
    ) -> list[tuple[int, int | None]]:
        """As `StoredPast` says."""
        await self._store._turn()
        own = (a for a in self._store.alarms.values() if (a.device_id, a.rule_id) == (device_id, rule_id))
        return sorted((a.start_ms, a.end_ms) for a in own if start_ms <= a.start_ms < end_ms)

    async def close(self) -> None:
        """As `StoredPast` says."""


class MemoryLog:
    """`Log` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore, incarnation: int) -> None:
        self.incarnation = incarnation
        self._store = store
        self._committing = False

    async def open(self, shards: Sequence[int]) -> dict[int, int]:
        """As `Log` says."""
        await self._store._turn()
        return {s: max(self._store._tops.get(s, 0), self._store.heads.get(s, 0)) for s in shards}

    async def held(self) -> dict[int, Held]:
        """As `Log` says."""
        return await self._store.held(self.incarnation)

    async def claim(self, shards: Sequence[int]) -> dict[int, Held]:
        """As `Log` says."""
        return await self._store.claim(self.incarnation, shards)

    async def hand_over(self, held: Mapping[int, Held], to: int) -> dict[int, int]:
        """As `Log` says."""
        return await self._store.hand_over(self.incarnation, held, to)

    async def rehome(self, move: Rehoming) -> dict[int, Held]:
        """As `Log` says."""
        store = self._store
        await store._turn()
        epoch = store._rehome(self.incarnation, move)
        store._write(Commit(events=[move.event], epochs={move.to: epoch}), self.incarnation)
        store.snapshots[move.snapshot.device] = move.snapshot
        for place, row in store.timers.items():
            if row.device_id == move.device_id:
                store.timers[place] = row._replace(shard=move.to)
        return store._held(self.incarnation)

    async def commit(self, commit: Commit) -> None:
        """As `Log` says. Two at once are a fault of the caller's, and fail an assertion."""
        assert not self._committing, "two commits at once"
        self._committing = True
        try:
            await self._commit(commit)
        finally:
            self._committing = False

    async def _commit(self, commit: Commit) -> None:
        store = self._store
        if not commit:
            return
        for row in commit.readings:
            if any(isinstance(value, str) and not _storable(value) for value in row.values):
                raise InvalidMessage("a text contains what cannot be stored")
        if self.incarnation in store.stalled:
            await store.stalled[self.incarnation].wait()
        await store._turn()
        store._check_fence(self.incarnation)
        store._check_epochs(commit.epochs)
        if store.fail_before:
            store.fail_before -= 1
            raise LogUnavailable("failed before the commit, as told")
        store._write(commit, self.incarnation)
        if store.fail_after:
            store.fail_after -= 1
            raise LogUnavailable("failed after the commit, as told")

    async def load(self, device_ids: Sequence[str]) -> list[StoredDevice]:
        """As `Log` says."""
        await self._store._turn()
        return [self._stored(device_id) for device_id in device_ids]

    def _stored(self, device_id: str) -> StoredDevice:
        store = self._store
        snapshot = store.snapshots.get(device_key(device_id))
        after = snapshot.offset if snapshot else 0
        start_ms = snapshot.replay_from_ms if snapshot else None
        tail = [
            TailReading(
                row.offset, row.time_ms, row.key, row.flags, row.metric_set, list[Value | None](row.values)
            )
            for row in store._by_device.get(device_key(device_id), ())
            if row.offset > after
            and (snapshot is None or row.shard == snapshot.shard)
            and (start_ms is None or row.time_ms >= start_ms)
        ]
        active = [a for a in store.alarms.values() if a.device_id == device_id and a.state == "ACTIVE"]
        return StoredDevice(
            device_id,
            store.registrations.get(device_id),
            snapshot,
            sorted(tail),
            sorted(active, key=lambda a: (a.start_ms, a.alarm_id)),
            {
                name: Timer(row.due_ms, row.since_ms)
                for (owner, name), row in store.timers.items()
                if owner == device_id and row.due_ms is not None
            },
            sorted((c for c in store.commands.values() if c.device_id == device_id), key=lambda c: c.number),
            store.presences.get(device_id),
            store.twins.get(device_id),
        )

    async def seen(self, identities: Sequence[Identity]) -> set[Identity]:
        """As `Log` says, but without a time it looks at all that was ever committed."""
        await self._store._turn()
        found = set()
        for identity in identities:
            device, time_ms, key = identity
            if time_ms is not None:
                if (device, time_ms, key) in self._store._seen:
                    found.add(identity)
            elif any(row.key == key for row in self._store._by_device.get(device, ())):
                found.add(identity)
        return found

    async def timers(self, shards: Sequence[int], before_ms: int, limit: int) -> list[TimerRow]:
        """As `Log` says."""
        await self._store._turn()
        wanted = frozenset(shards)
        rows = [r for r in self._store.timers.values() if r.shard in wanted and (r.due_ms or 0) < before_ms]
        return sorted(rows, key=lambda r: (r.due_ms or 0, r.device_id, r.name))[:limit]

    async def save(self, snapshots: Sequence[Snapshot], heads: Mapping[int, int]) -> None:
        """As `Log` says."""
        store = self._store
        await store._turn()
        store._check_fence(self.incarnation)
        for snapshot in snapshots:
            have = store.snapshots.get(snapshot.device)
            if have is None or (have.shard == snapshot.shard and have.offset <= snapshot.offset):
                store.snapshots[snapshot.device] = snapshot
        for shard, head in heads.items():
            store.heads[shard] = max(head, store.heads.get(shard, 0))

    async def close(self) -> None:
        """As `Log` says."""


def _storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
