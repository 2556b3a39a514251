"""A fork's devices in one process: copies under a clock and rules of their own. Knows no log and no Ray.

Nothing is stored: a sandbox has no port by which anything could leave it.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from sensorium.actors.cloning import Clones
from sensorium.actors.conditions import validate
from sensorium.actors.conditions.recursion import check_recursion
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.errors import InvalidMessage, refused
from sensorium.actors.messages import Answer, Duplicate, Message, Outcome, Reading, Refusal, Register, Value
from sensorium.actors.origin import Origin
from sensorium.actors.placement import shard_of
from sensorium.actors.ports import Filter
from sensorium.actors.records import Alarm, StoredDevice
from sensorium.actors.recovery import activate, as_stored
from sensorium.actors.relive import Relived
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.selection import matches
from sensorium.actors.turns import Names
from sensorium.actors.view import DeviceView

MAX_DEVICES: Final = 10_000
"""Copies in one sandbox: some hundred megabytes with the windows of a few metrics each."""

MAX_ALARMS: Final = 100_000
"""Alarms that a sandbox keeps; beyond it the oldest cleared ones are forgotten, and counted."""

Row = tuple[str, int, Mapping[str, Value]]
"""A reading to take in: device id, event time in ms, values by metric."""


class Ingested(msgspec.Struct, frozen=True):
    """What became of rows.

    Attributes:
        accepted: of these, `late` were older than the device's lateness bound, so no rule judged them.
        duplicates: of readings that the device remembers.
        refused: how many by reason, such as "unregistered".
    """

    accepted: int = 0
    late: int = 0
    duplicates: int = 0
    refused: dict[str, int] = {}

    def __add__(self, other: "Ingested") -> "Ingested":
        return Ingested(
            self.accepted + other.accepted,
            self.late + other.late,
            self.duplicates + other.duplicates,
            dict(Counter(self.refused) + Counter(other.refused)),
        )


class Sandbox:
    """Copies of devices. Its calls are a host's, as far as a `Fleet` makes them, and a fork's.

    The clock starts at `now_ms` and goes by event time: forward with what is taken in, and by `advance`.
    """

    def __init__(self, name: str, now_ms: int) -> None:
        self.name = name
        self._now_ms = now_ms
        self._around = Surroundings()
        self._devices: dict[str, Relived] = {}
        self._names: dict[Names, Names] = {}
        self._alarms: dict[str, Alarm] = {}
        self._created = 0
        self._readings = 0
        self._forgotten = 0

    def load(self, *parts: Clones) -> int:
        """Take the copies in, and the first part's profiles and rules; returns how many devices.

        Raises:
            InvalidMessage: they are more than `MAX_DEVICES`.
        """
        count = sum(len(part.devices) for part in parts)
        if count > MAX_DEVICES:
            raise InvalidMessage(f"a fork holds at most {MAX_DEVICES} devices, and {count} are chosen")
        for part in parts[:1]:
            self._around = Surroundings(part.profiles, RuleBook(part.rules))
        self._devices = {
            stored.device_id: self._relived(activate(stored, _shard(stored), self._around))
            for part in parts
            for stored in part.devices
        }
        for relived in self._devices.values():
            self._alarms |= {a.alarm_id: a for a in relived.device.alarms.values()}
        return count

    # --- what a host answers too ------------------------------------------------------------------------

    def answer(self, message: Message, names: Names = ()) -> Any:
        """See `DeviceHost.answer`. A device may be registered: it exists here only."""
        relived = self._devices.get(message.device_id)
        if relived is None:
            device = Device(message.device_id, Shard(shard_of(message.device_id), 0))
            relived = self._relived(device)
            if isinstance(message, Register):
                if len(self._devices) >= MAX_DEVICES:
                    raise InvalidMessage(f"a fork holds at most {MAX_DEVICES} devices")
                self._devices[message.device_id] = relived
        if isinstance(message, Reading):
            outcome = self._take(relived, message.time_ms, message.key, names, message.values)
            self._catch_up()
        else:
            outcome = relived.tell(message)
            self._note(relived)
        if isinstance(outcome, Refusal):
            raise refused(outcome.code, outcome.detail)
        return outcome.value if isinstance(outcome, Answer) else None

    def map(
        self,
        which: Filter,
        function: Callable[[DeviceView], Any],
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """See `DeviceHost.map`. All `shards` are this sandbox's."""
        results: dict[str, Any] = {}
        for relived in self._matching(which):
            device = relived.device
            try:
                results[device.id] = function(DeviceView(device, self._around, self._now_ms))
            except Exception as error:  # the caller's code: its errors are the caller's to see
                results[device.id] = error
        return results

    def rules_of(self, device_id: str) -> list[dict[str, Any]]:
        """See `DeviceHost.rules_of`."""
        relived = self._devices.get(device_id)
        if relived is None:
            return []
        rules = relived.device.covering(self._around)
        return [{"rule": rule, "alarm": relived.device.alarms.get(rule.rule_id)} for rule in rules]

    def clone(
        self,
        which: Filter,
        limit: int,
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> Clones:
        """See `DeviceHost.clone`: a fork can be forked."""
        chosen = self._matching(which)
        if len(chosen) > limit:
            raise InvalidMessage(f"fork {self.name} has {len(chosen)} such devices, above the limit {limit}")
        devices = [as_stored(relived.device) for relived in chosen]
        return Clones(devices, self._around.profiles, self.rules())

    def rules(self) -> list[Rule]:
        """All rules."""
        return list(self._around.rules.rules.values())

    def create_rule(self, spec: RuleSpec, origin: Origin | None = None) -> Rule:
        """A rule of this sandbox only, whoever made it. Raises `InvalidMessage` for one that cannot work."""
        validate(spec)
        check_recursion(spec, [rule.spec for rule in self.rules()])
        self._created += 1
        rule = Rule(
            rule_id=f"{self.name}-{self._created}",
            version=1,
            spec=spec,
            created_ms=self._now_ms,
            updated_ms=self._now_ms,
        )
        self._use([*self.rules(), rule])
        return rule

    def replace_rule(self, rule_id: str, spec: RuleSpec, origin: Origin | None = None) -> Rule | None:
        """The rule's next version, here only; None when there is no such rule."""
        validate(spec)
        old = self._around.rules.rules.get(rule_id)
        if old is None:
            return None
        check_recursion(spec, [rule.spec for rule in self.rules() if rule.rule_id != rule_id])
        rule = msgspec.structs.replace(old, version=old.version + 1, spec=spec, updated_ms=self._now_ms)
        self._use([rule if r.rule_id == rule_id else r for r in self.rules()])
        return rule

    def delete_rule(self, rule_id: str, origin: Origin | None = None) -> bool:
        """Whether there was such a rule. The real one stays."""
        kept = [rule for rule in self.rules() if rule.rule_id != rule_id]
        if len(kept) == len(self._around.rules.rules):
            return False
        self._use(kept)
        return True

    # --- what only a fork has ---------------------------------------------------------------------------

    def ingest(self, rows: Sequence[Row]) -> Ingested:
        """Readings as if the devices had sent them, each received at its own time."""
        refusals: Counter[str] = Counter()
        accepted = late = duplicates = 0
        for device_id, time_ms, metrics in rows:
            relived = self._devices.get(device_id)
            if relived is None:
                refusals["unregistered"] += 1
                continue
            values: list[Value] = [float(v) if type(v) is int else v for v in metrics.values()]
            names = tuple(metrics)
            key = zlib.crc32(msgspec.json.encode(values))
            in_order = time_ms >= relived.device.newest_ms - relived.device.lateness_ms
            outcome = self._take(relived, time_ms, key, self._names.setdefault(names, names), values)
            if isinstance(outcome, Refusal):
                refusals[outcome.code] += 1
            elif isinstance(outcome, Duplicate):
                duplicates += 1
            else:
                accepted += 1
                late += not in_order
        self._catch_up()
        return Ingested(accepted, late, duplicates, dict(refusals))

    def advance(self, to_ms: int) -> int:
        """Move the clock on, if it lies behind, and fire what is due by then; returns the clock."""
        self._now_ms = max(self._now_ms, to_ms)
        self._catch_up()
        return self._now_ms

    def now_ms(self) -> int:
        """The clock."""
        return self._now_ms

    def alarms(self) -> list[Alarm]:
        """All of the fork's alarms by their start, those that stood when it was made included."""
        return sorted(self._alarms.values(), key=lambda alarm: (alarm.start_ms, alarm.alarm_id))

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges by name; nobody but the fork's owner is shown them."""
        return {
            "name": self.name,
            "now_ms": self._now_ms,
            "devices": len(self._devices),
            "rules": len(self._around.rules.rules),
            "readings": self._readings,
            "alarms": len(self._alarms),
            "alarms_forgotten": self._forgotten,
        }

    # --- leaves -----------------------------------------------------------------------------------------

    def _relived(self, device: Device) -> Relived:
        return Relived(device, self._around, self._now_ms)

    def _matching(self, which: Filter) -> list[Relived]:
        return [
            relived
            for _, relived in sorted(self._devices.items())
            if relived.device.registration is not None and matches(which, relived.device.registration)
        ]

    def _use(self, rules: Iterable[Rule]) -> None:
        self._around = replace(self._around, rules=RuleBook(list(rules)))
        for relived in self._devices.values():
            relived.surround(self._around)
            self._note(relived)

    def _take(self, relived: Relived, time_ms: int, key: int, names: Names, values: list[Value]) -> Outcome:
        outcome = relived.take(time_ms, key, 0, names, values)
        self._readings += not isinstance(outcome, Refusal | Duplicate)
        self._now_ms = max(self._now_ms, relived.now_ms)
        if relived.emitted:
            self._note(relived)
        return outcome

    def _catch_up(self) -> None:
        for relived in self._devices.values():
            relived.advance(self._now_ms)
            if relived.emitted:
                self._note(relived)

    def _note(self, relived: Relived) -> None:
        for alarm in relived.emitted:
            self._alarms[alarm.alarm_id] = alarm
        if len(self._alarms) > MAX_ALARMS:
            ended = [i for i, alarm in self._alarms.items() if alarm.state == "CLEARED"]
            for alarm_id in ended[: MAX_ALARMS // 10]:
                del self._alarms[alarm_id]
            self._forgotten += len(ended[: MAX_ALARMS // 10])


def _shard(stored: StoredDevice) -> Shard:
    """A shard of the copy's own. It goes on from the real one's offset, by which some timers are named."""
    offsets = [row.offset for row in stored.tail[-1:]]
    if stored.snapshot is not None:
        offsets.append(stored.snapshot.offset)
    return Shard(shard_of(stored.device_id), max(offsets, default=0))
