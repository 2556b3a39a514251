"""A device driven by hand: turns run as in a host, and what holds for any turn is checked at each."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import (
    Message,
    Outcome,
    Reading,
    ReadingFlag,
    Refusal,
    Register,
    TimerFired,
    Value,
)
from sensorium.actors.placement import shard_of
from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.records import Alarm, Commit, Identity, StoredDevice, TailReading, Timer
from sensorium.actors.recovery import activate, take_snapshot
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Condition, Rule, RuleSpec

DEVICE_ID = "sensor-001"
TYPE = "climate"
T0_MS = 1_700_000_000_000


def make_rule(condition: Condition, rule_id: str = "r1", version: int = 1, **spec: Any) -> Rule:
    return Rule(
        rule_id=rule_id,
        version=version,
        spec=RuleSpec(name=f"rule {rule_id}", condition=condition, **spec),
        created_ms=0,
        updated_ms=0,
    )


def around_of(*rules: Rule, auto: str | None = None, profile: Profile | None = None) -> Surroundings:
    return Surroundings(Profiles(profile or Profile()), RuleBook(rules), auto)


class Driver:
    """Holds a device and everything that it ever made durable."""

    def __init__(self, around: Surroundings | None = None, register: bool = True, head: int = 0) -> None:
        self.around = around or around_of()
        self.device = Device(DEVICE_ID, Shard(shard_of(DEVICE_ID), head))
        self.log = Commit()
        self.now_ms = T0_MS
        self.first_offset = head + 1
        if register:
            self.send(Register(DEVICE_ID, TYPE))

    def send(self, message: Message) -> Outcome:
        return self._turn(lambda effects: self.device.handle(message, self.now_ms, self.around, effects))

    def read(
        self,
        metrics: Mapping[str, Value],
        time_ms: int,
        key: int | None = None,
        flags: int = 0,
        received_ms: int | None = None,
    ) -> Outcome:
        """`time_ms` counts from T0_MS; without a key, one of its own is given."""
        key = key if key is not None else 1_000_000 + len(self.log.readings) + len(self.log.dead_letters)
        received_ms = self.now_ms if received_ms is None else received_ms
        reading = Reading(DEVICE_ID, T0_MS + time_ms, received_ms, key, 0, list(metrics.values()), int(flags))
        names = tuple(metrics)
        known = self.device.must_ask(reading) and self.in_log(self.device.identity(reading))
        return self._turn(
            lambda effects: self.device.read(reading, names, self.now_ms, self.around, effects, known)
        )

    def in_log(self, identity: Identity) -> bool:
        return any(
            row.key == identity.key and identity.time_ms in (None, row.time_ms) for row in self.log.readings
        )

    def use(self, *rules: Rule) -> None:
        """Give the device a new rule book."""
        self.around = replace(self.around, rules=RuleBook(rules))

    @property
    def alarms(self) -> list[tuple[str, str, str | None]]:
        """All that was said of alarms, in order: rule, state, reason of the end."""
        return [(a.rule_id, a.state, a.end_reason) for a in self.log.alarms]

    @property
    def latest(self) -> dict[str, Value]:
        newest = self.device.newest_values()
        return {} if newest is None else {name: latest.value for name, latest in newest.metrics.items()}

    def stored(self, snapshot: Any = None) -> StoredDevice:
        """What the log would hand out: the tail as the storage selects it."""
        after = -1 if snapshot is None else snapshot.offset
        from_ms = None if snapshot is None else snapshot.replay_from_ms
        tail = [
            TailReading(r.offset, r.time_ms, r.key, r.flags, r.metric_set, list(r.values))
            for r in self.log.readings
            if r.offset > after and (from_ms is None or r.time_ms >= from_ms)
        ]
        active: dict[str, Alarm] = {}
        for alarm in self.log.alarms:
            active[alarm.alarm_id] = alarm
        alarms = [alarm for alarm in active.values() if alarm.state == "ACTIVE"]
        commands = {command.command_id: command for command in self.log.commands}
        return StoredDevice(
            *(DEVICE_ID, self.device.registration, snapshot, tail, alarms, self.timers),
            sorted(commands.values(), key=lambda command: command.number),
            self.log.presences[-1] if self.log.presences else None,
            self.log.twins[-1] if self.log.twins else None,
        )

    @property
    def timers(self) -> dict[str, Timer]:
        """The timers that are set, as the log has them."""
        set_: dict[str, Timer] = {}
        for row in self.log.timers:
            set_.pop(row.name, None)
            if row.due_ms is not None:
                set_[row.name] = Timer(row.due_ms, row.since_ms)
        return set_

    def wait(self, seconds: float) -> None:
        """Let time pass: every timer that comes due has its turn, at its time."""
        end_ms = self.now_ms + round(seconds * 1000)
        while due := sorted((t.due_ms, name) for name, t in self.timers.items() if t.due_ms <= end_ms):
            due_ms, name = due[0]
            self.now_ms = max(self.now_ms, due_ms)
            self.send(TimerFired(DEVICE_ID, name, due_ms))
        self.now_ms = end_ms

    def recovered(self, snapshot: Any = None, around: Surroundings | None = None) -> "Driver":
        """A driver of the device as another host would activate it from the log."""
        other = Driver(around or self.around, register=False)
        other.now_ms = self.now_ms
        other.first_offset = self.first_offset
        head = self.device.shard.head
        other.device = activate(self.stored(snapshot), Shard(self.device.shard.number, head), other.around)
        other.log = Commit(
            *(
                list(rows)
                for rows in (
                    self.log.readings,
                    self.log.events,
                    self.log.registrations,
                    self.log.alarms,
                    self.log.dead_letters,
                    self.log.timers,
                    self.log.commands,
                    self.log.presences,
                    self.log.alarm_notes,
                    self.log.twins,
                )
            ),
            audits=list(self.log.audits),
            anomalies=list(self.log.anomalies),
        )
        return other

    def _turn(self, turn: Any) -> Outcome:
        before = observed(self.device)
        effects = Commit()
        outcome: Outcome = turn(effects)
        if isinstance(outcome, Refusal):
            assert observed(self.device) == before, "a refused turn must change nothing"
            assert effects == Commit(dead_letters=effects.dead_letters)
            assert len(effects.dead_letters) == int(outcome.dead_lettered)
        for kind in fields(Commit):
            if kind.name != "epochs":  # which the host adds
                getattr(self.log, kind.name).extend(getattr(effects, kind.name))
        offsets = sorted(row.offset for row in (*self.log.readings, *self.log.events))
        assert offsets == list(range(self.first_offset, self.device.shard.head + 1)), "offsets have a gap"
        assert all(row.device == self.device.key for row in (*effects.readings, *effects.events))
        for row in effects.readings:
            assert len(row.values) == len(row.metric_set.names)
        return outcome


def observed(device: Device) -> Any:
    """Everything by which two states of a device can differ."""
    return (
        take_snapshot(device),
        device.registration,
        dict(device.alarms),
        dict(device.watch.timers),
        dict(device.commands.open),
        device.commands.online,
        device.commands.timer,
        device.twin.state,
        device.twin.timer,
        [window.spec for window in device.windows],
        device.lateness_ms,
        device.max_metrics,
    )


REDELIVERED = ReadingFlag.REDELIVERED
LATE = ReadingFlag.LATE
