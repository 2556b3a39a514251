"""The rules' watch over one device: what they find, how long it has held, which alarms stand. Pure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sensorium.actors import alarms
from sensorium.actors.conditions.registry import Test, judge
from sensorium.actors.derivations import CONTAINED, Derivations
from sensorium.actors.messages import ActOnAlarm, Value
from sensorium.actors.records import Alarm, AlarmNote, Commit, Timer, TimerRow
from sensorium.actors.rulebook import Check, Checks, RuleBook
from sensorium.actors.rules import NoData, Rule, Severity, worse
from sensorium.actors.tallies import Tally

if TYPE_CHECKING:
    from sensorium.actors.device import Device

HELD: Final = "held/"
"""Timers of rules whose condition must hold for a while: `since_ms` is when it began, in event time."""

TIMES: Final = "times/"
"""Timers of rules whose condition must hold several times, one a time: `since_ms` is the reading's time."""

ESCALATE: Final = "escalate/"
"""Timers of active alarms that nobody has acknowledged."""

SILENT: Final = "silent/"
"""Timers of no-data rules."""

FAILED: Final = "failed/"
"""Timers of rules, by id and version, whose failure was told: while one is set, it is not told again."""

FAILED_AGAIN_MS: Final = 3_600_000
"""How long a rule that goes on failing at a device is not told of again: not an event a reading."""


NONE: Final = Checks()


class Watch:
    """Alarms and timers of one device under the rules of one book.

    A rule holds one alarm a device. `bind` comes first, and again whenever the book, the device's type or
    its metrics change.
    """

    __slots__ = ("_checks", "_silences", "alarms", "book", "derivations", "tallies", "timers")

    def __init__(self) -> None:
        self.alarms: dict[str, Alarm] = {}
        """The active ones, by rule id."""
        self.tallies: dict[str, Tally] = {}
        """What is counted of each of them."""
        self.timers: dict[str, Timer] = {}
        self.book: RuleBook | None = None
        self._checks = NONE
        self._silences: tuple[Rule, ...] = ()
        self.derivations: Derivations | None = None
        """What rules derive at each reading; see `derive`."""

    def bind(self, device: "Device", book: RuleBook, now_ms: int, effects: Commit) -> None:
        """Take these rules: clear the alarms that none of them can clear any more, set no-data timers.

        The device's metrics may grow by those that rules derive.
        """
        r = device.registration
        if r is None:
            self.book = book
            return
        device.fit_windows(book)
        self._bind_derivations(device, book, now_ms, effects)
        device.fit_detection(book)
        if device.detection is not None:
            device.detection.settle(device, effects)
            if not device.detection.watchers:
                device.detection = None
        self.book = book
        self._checks = book.checks(device.id, r.device_type, device.metrics, device.windows, r.metadata)
        self._silences = book.silences(device.id, r.device_type, r.metadata)
        silences = {rule.rule_id for rule in self._silences}
        if self.alarms:
            judged = {(check.rule_id, device.metrics.names[check.position]) for check in self._checks.each}
            judged |= {(rule_id, "") for rule_id in silences}
            for rule_id in sorted(self.alarms):
                if (rule_id, self.alarms[rule_id].metric) not in judged:
                    self.clear(device, rule_id, None, now_ms, "rule_removed", effects)
        if self.timers:
            held = {check.rule_id for check in self._checks.each if check.for_ms}
            counted = {check.rule_id for check in self._checks.each if check.times is not None}
            kept = {HELD + rule_id for rule_id in held} | {SILENT + rule_id for rule_id in silences}
            kept |= {ESCALATE + rule_id for rule_id in self.alarms if _steps(book, rule_id)}
            for name in list(self.timers):
                if (
                    name not in kept
                    and not (name.startswith(TIMES) and name.split("/")[1] in counted)
                    and not (name.startswith(FAILED) and _is_of_version(book, name))
                ):
                    self._cancel(device, name, effects)
        for rule in self._silences:
            if rule.rule_id not in self.alarms:
                heard_ms = max(device.last_seen_ms, r.updated_ms)
                self._set(device, SILENT + rule.rule_id, heard_ms + _after_ms(rule), heard_ms, effects)

    def check(
        self, device: "Device", values: Sequence[Any], time_ms: int, now_ms: int, effects: Commit
    ) -> None:
        """Judge the newest reading, before the device has taken it in."""
        checks = self._checks
        if not checks.each:
            return
        active = self.alarms
        try:
            holding = checks.index.holding(values, time_ms, device)
        except CONTAINED:
            holding = [
                n
                for n, check in enumerate(checks.each)
                if self._ask(device, check.rule, check.test, values, time_ms, now_ms, effects)
            ]
        found: Iterable[tuple[int, bool]] = ()
        if active or self.timers:
            found = self._concerned(holding or ())
        elif holding is not None:
            found = [(n, True) for n in holding]
        for n, held in found:
            check = checks.each[n]
            holds = held or self._ask(device, check.rule, check.test, values, time_ms, now_ms, effects)
            if holds:
                if check.rule_id not in active:
                    if (not check.for_ms or self._has_held(device, check, time_ms, now_ms, effects)) and (
                        check.times is None or self._often_enough(device, check, time_ms, now_ms, effects)
                    ):
                        severity = self._severity(device, check, values, time_ms, now_ms, effects)
                        value = _value(check, values, device)
                        self._raise(device, check.rule, severity, value, time_ms, now_ms, effects)
                    continue
                if self.tallies[check.rule_id].count(True, time_ms):
                    self._note(check.rule_id, effects)
                if check.levels:
                    severity = self._severity(device, check, values, time_ms, now_ms, effects)
                    self._grade(device, check, severity, values, time_ms, effects)
            elif holds is not None:
                if check.for_ms and HELD + check.rule_id in self.timers:
                    self._cancel(device, HELD + check.rule_id, effects)
                if active and check.rule_id in active:
                    due = self.tallies[check.rule_id].count(False, time_ms)
                    if check.clears is None or self._ask(
                        device, check.rule, check.clears, values, time_ms, now_ms, effects
                    ):
                        value = _value(check, values, device)
                        self.clear(device, check.rule_id, value, time_ms, "condition_ended", effects)
                    elif due:
                        self._note(check.rule_id, effects)

    def own_changed(self, device: "Device", own: str, now_ms: int, effects: Commit) -> None:
        """Judge the rules that compare with `own`, "twin" or "metadata", by the newest values.

        What they find is of the change's time, or of the newest reading's where a device's clock is ahead.
        """
        checks = self._checks.standing
        if not checks:
            return
        time_ms = max(now_ms, device.newest_ms)
        nothing = [None] * len(device.metrics.names)
        for check in checks:
            rule, rule_id, standing = check.rule, check.rule_id, check.standing
            value = device.latest[check.position]
            if standing is None or own not in standing.names or standing.test is None or value is None:
                continue
            holds = self._ask(device, rule, standing.test, nothing, time_ms, now_ms, effects)
            if holds and rule_id in self.alarms:
                severity = self._standing_severity(device, check, nothing, time_ms, now_ms, effects)
                if severity is not None:
                    self._grade(device, check, severity, nothing, time_ms, effects)
            elif holds:
                # How many times it holds is counted by readings.
                if check.times is None and (
                    not check.for_ms or self._has_held(device, check, time_ms, now_ms, effects)
                ):
                    severity = self._standing_severity(device, check, nothing, time_ms, now_ms, effects)
                    severity = severity or rule.spec.severity
                    self._raise(device, rule, severity, value, time_ms, now_ms, effects, by_reading=False)
            elif holds is not None:
                if check.for_ms and HELD + rule_id in self.timers:
                    self._cancel(device, HELD + rule_id, effects)
                clears = standing.clears
                if rule_id in self.alarms and (
                    check.clears is None
                    or (
                        clears is not None
                        and self._ask(device, rule, clears, nothing, time_ms, now_ms, effects)
                    )
                ):
                    self.clear(device, rule_id, value, time_ms, "condition_ended", effects)

    def _concerned(self, holding: Sequence[int]) -> list[tuple[int, bool]]:
        """The checks that this reading can change something for, in order, and whether they hold for certain.

        They hold, or they have an alarm or a beginning that may end.
        """
        place = self._checks.place
        concerned = {place[rule_id]: False for rule_id in self.alarms if rule_id in place}
        for name in self.timers:
            if name.startswith(HELD) and name.removeprefix(HELD) in place:
                concerned[place[name.removeprefix(HELD)]] = False
        concerned.update(dict.fromkeys(holding, True))
        return sorted(concerned.items())

    def restore(self, alarms: Iterable[Alarm]) -> None:
        """Take in the active alarms as the log has them."""
        self.alarms = {alarm.rule_id: alarm for alarm in alarms}
        self.tallies = {rule_id: Tally(alarm) for rule_id, alarm in self.alarms.items()}

    def recount(self, device: "Device", book: RuleBook, values: Sequence[Any], time_ms: int) -> None:
        """Count a reading that the log had already, and no row of an alarm yet. Decides and emits nothing."""
        r = device.registration
        if r is None or all(time_ms <= tally.last_reading_ms for tally in self.tallies.values()):
            return
        checks = book.checks(device.id, r.device_type, device.metrics, device.windows, r.metadata)
        for rule_id, tally in self.tallies.items():
            if time_ms <= tally.last_reading_ms or rule_id not in checks.place:
                continue
            check = checks.each[checks.place[rule_id]]
            try:
                (holds,) = judge((check.test,), values, time_ms, device, True) or (None,)
            except CONTAINED:
                continue
            if holds is not None:
                tally.count(holds, time_ms)

    def _note(self, rule_id: str, effects: Commit) -> None:
        """Write an alarm's row with what was counted since."""
        alarm = self.alarms[rule_id] = self.tallies[rule_id].onto(self.alarms[rule_id])
        effects.alarms.append(alarm)

    def heard(self, device: "Device", time_ms: int, now_ms: int, effects: Commit) -> None:
        """Something was received: no-data alarms end, and their timers are set where none is."""
        for rule in self._silences:
            if rule.rule_id in self.alarms:
                self.clear(device, rule.rule_id, None, time_ms, "condition_ended", effects)
            if SILENT + rule.rule_id not in self.timers:
                self._set(device, SILENT + rule.rule_id, now_ms + _after_ms(rule), now_ms, effects)

    @property
    def listens(self) -> bool:
        """Whether `heard` has anything to do."""
        return bool(self._silences)

    def fire(self, device: "Device", name: str, due_ms: int, now_ms: int, effects: Commit) -> None:
        """A timer is due. One that was cancelled or set anew since means nothing."""
        timer = self.timers.get(name)
        if timer is None or timer.due_ms != due_ms:
            return
        self._cancel(device, name, effects)
        kind, _, rule_id = name.partition("/")
        if kind + "/" == ESCALATE:
            self._escalate(device, rule_id, now_ms, effects)
        elif rule_id in self.alarms:
            return
        elif kind + "/" == SILENT:
            self._silence(device, rule_id, now_ms, effects)
        elif kind + "/" == HELD:
            self._held(device, rule_id, timer, now_ms, effects)
        # One of TIMES counts no more, now that it is cancelled.

    def act(self, device: "Device", message: ActOnAlarm, now_ms: int, effects: Commit) -> str | None:
        """What a person does to an alarm. Returns why it cannot be done, or None."""
        alarm = next((a for a in self.alarms.values() if a.alarm_id == message.alarm_id), None)
        if alarm is not None:
            alarm = self.tallies[alarm.rule_id].onto(alarm)
        if alarm is None:
            if message.action in ("shelve", "unshelve"):
                return "an alarm that has ended cannot be shelved"
            effects.alarm_notes.append(_told(device, message, now_ms))
        else:
            after = alarms.acted_on(alarm, message, now_ms)
            if after is not alarm:
                self.alarms[alarm.rule_id] = after
                effects.alarms.append(after)
            name = ESCALATE + alarm.rule_id
            if after.acknowledged and name in self.timers:
                self._cancel(device, name, effects)
        body: dict[str, str | int] = {"alarm_id": message.alarm_id, "by": message.by}
        if message.action in ("assign", "comment"):
            body["text"] = message.text
        elif message.action == "shelve":
            body["until_ms"] = message.until_ms
        device.event(f"alarm_{message.action}", now_ms, body, effects)
        return None

    def _held(self, device: "Device", rule_id: str, timer: Timer, now_ms: int, effects: Commit) -> None:
        place = self._checks.place.get(rule_id)
        check = None if place is None else self._checks.each[place]
        value = None if check is None else device.latest[check.position]
        if check is not None and value is not None:
            severity = self._severity(device, check, device.latest, device.newest_ms, now_ms, effects)
            held_ms = timer.since_ms + check.for_ms
            self._raise(device, check.rule, severity, value, held_ms, now_ms, effects)

    def clear(
        self,
        device: "Device",
        rule_id: str,
        value: Value | None,
        time_ms: int,
        reason: str,
        effects: Commit,
    ) -> None:
        """End an alarm that stands."""
        counted = self.tallies.pop(rule_id).onto(self.alarms.pop(rule_id))
        alarm = alarms.cleared(counted, value, time_ms, reason)
        if ESCALATE + rule_id in self.timers:
            self._cancel(device, ESCALATE + rule_id, effects)
        effects.alarms.append(alarm)
        device.event("alarm_cleared", time_ms, alarm, effects)

    def end(self, device: "Device", now_ms: int, reason: str, effects: Commit) -> None:
        """End every alarm and timer: the device is not watched any more."""
        for rule_id in sorted(self.alarms):
            self.clear(device, rule_id, None, now_ms, reason, effects)
        for name in list(self.timers):
            self._cancel(device, name, effects)
        self._checks, self._silences = NONE, ()
        self.derivations = None

    def derive(
        self, device: "Device", values: Sequence[Any], time_ms: int, now_ms: int, effects: Commit
    ) -> list[Any]:
        """The reading's values with what rules derive of them, before it is judged.

        To be called with `derivations` only.
        """
        derivations = self.derivations
        assert derivations is not None
        late = time_ms < device.newest_ms
        if derivations.windowed and not late:
            for window in device.windows:
                window.advance(time_ms)
        worked, failed = derivations.work_out(values, time_ms, device, late)
        for rule, reason in failed:
            self._failed(device, rule, reason, time_ms, now_ms, effects)
        return worked

    def _bind_derivations(self, device: "Device", book: RuleBook, now_ms: int, effects: Commit) -> None:
        r = device.registration
        assert r is not None
        device.disarrange()
        self.derivations = derivations = book.derivations(
            device.id, r.device_type, device.metrics, device.windows, device.max_metrics, r.metadata
        )
        if derivations is not None:
            device.adopt(derivations.metrics)
            for rule, reason in derivations.left_out:
                self._failed(device, rule, reason, now_ms, now_ms, effects)

    def _ask(
        self,
        device: "Device",
        rule: Rule,
        test: Test,
        values: Sequence[Any],
        time_ms: int,
        now_ms: int,
        effects: Commit,
    ) -> bool | None:
        """What a test of the rule says; a failure is told, and the reading cannot tell."""
        try:
            return test(values, time_ms, device)
        except CONTAINED as error:
            self._failed(device, rule, str(error), time_ms, now_ms, effects)
            return None

    def _severity(
        self,
        device: "Device",
        check: Check,
        values: Sequence[Any],
        time_ms: int,
        now_ms: int,
        effects: Commit,
    ) -> Severity:
        """The worst level whose condition holds, or the rule's own severity."""
        for severity, test in check.levels:
            if self._ask(device, check.rule, test, values, time_ms, now_ms, effects):
                return severity
        return check.rule.spec.severity

    def _standing_severity(
        self,
        device: "Device",
        check: Check,
        nothing: Sequence[Any],
        time_ms: int,
        now_ms: int,
        effects: Commit,
    ) -> Severity | None:
        """The same without a reading; None while it cannot be told."""
        assert check.standing is not None
        for severity, test in check.standing.levels:
            if test is None:
                return None
            holds = self._ask(device, check.rule, test, nothing, time_ms, now_ms, effects)
            if holds is not False:
                return severity if holds else None
        return check.rule.spec.severity

    def _grade(
        self,
        device: "Device",
        check: Check,
        severity: Severity,
        values: Sequence[Any],
        time_ms: int,
        effects: Commit,
    ) -> None:
        """Give the active alarm this severity, or the worse one that it has escalated to."""
        alarm = self.alarms[check.rule_id]
        if alarm.escalated:
            steps = check.rule.spec.escalation[: alarm.escalated]
            severity = worse(severity, steps[-1].severity) if steps else severity
        if severity != alarm.severity:
            value = _value(check, values, device)
            self._change(device, check.rule, severity, value, time_ms, effects)

    def _failed(
        self, device: "Device", rule: Rule, reason: str, time_ms: int, now_ms: int, effects: Commit
    ) -> None:
        name = f"{FAILED}{rule.rule_id}/{rule.version}"
        if name in self.timers:
            return
        self._set(device, name, now_ms + FAILED_AGAIN_MS, time_ms, effects)
        body = {
            "rule_id": rule.rule_id,
            "rule_name": rule.spec.name,
            "rule_version": rule.version,
            "reason": reason,
        }
        device.event("rule_failed", time_ms, body, effects)

    def _silence(self, device: "Device", rule_id: str, now_ms: int, effects: Commit) -> None:
        rule = next((rule for rule in self._silences if rule.rule_id == rule_id), None)
        if rule is None or device.registration is None:
            return
        heard_ms = max(device.last_seen_ms, device.registration.updated_ms)
        due_ms = heard_ms + _after_ms(rule)
        if due_ms > now_ms:
            # It was heard of since the timer was set; setting it at each reading would be a write each.
            self._set(device, SILENT + rule_id, due_ms, heard_ms, effects)
        else:
            silent_s = (now_ms - heard_ms) / 1000.0
            self._raise(device, rule, rule.spec.severity, silent_s, due_ms, now_ms, effects)

    def _has_held(self, device: "Device", check: Check, time_ms: int, now_ms: int, effects: Commit) -> bool:
        name = HELD + check.rule_id
        timer = self.timers.get(name)
        if timer is None:
            self._set(device, name, now_ms + check.for_ms, time_ms, effects)
            return False
        if time_ms - timer.since_ms < check.for_ms:
            return False
        self._cancel(device, name, effects)
        return True

    def _often_enough(
        self, device: "Device", check: Check, time_ms: int, now_ms: int, effects: Commit
    ) -> bool:
        assert check.times is not None
        prefix = f"{TIMES}{check.rule_id}/"
        within_ms = round(check.times.within_s * 1000)
        names = [name for name in self.timers if name.startswith(prefix)]
        recent = [name for name in names if time_ms - self.timers[name].since_ms <= within_ms]
        if len(recent) + 1 >= check.times.count:
            for name in names:
                self._cancel(device, name, effects)
            return True
        self._set(device, f"{prefix}{device.shard.head}", now_ms + within_ms, time_ms, effects)
        return False

    def _set_escalation(
        self, device: "Device", rule: Rule, alarm: Alarm, now_ms: int, effects: Commit
    ) -> None:
        """A timer for the alarm's next step, if there is one."""
        if alarm.escalated < len(rule.spec.escalation):
            after_ms = round(rule.spec.escalation[alarm.escalated].after_s * 1000)
            self._set(device, ESCALATE + rule.rule_id, now_ms + after_ms, now_ms, effects)

    def _escalate(self, device: "Device", rule_id: str, now_ms: int, effects: Commit) -> None:
        alarm = self.alarms.get(rule_id)
        rule = None if self.book is None else self.book.rules.get(rule_id)
        if alarm is None or rule is None or alarm.acknowledged:
            return
        steps = rule.spec.escalation
        if alarm.escalated >= len(steps):
            return
        if alarm.shelved_until_ms is not None and alarm.shelved_until_ms > now_ms:
            self._set(device, ESCALATE + rule_id, alarm.shelved_until_ms, now_ms, effects)
            return
        alarm = self.tallies[rule_id].onto(alarm)
        alarm = self.alarms[rule_id] = alarms.escalated(alarm, steps[alarm.escalated].severity, now_ms)
        effects.alarms.append(alarm)
        device.event("alarm_escalated", now_ms, alarm, effects)
        self._set_escalation(device, rule, alarm, now_ms, effects)

    def _change(
        self,
        device: "Device",
        rule: Rule,
        severity: Severity,
        value: Value,
        time_ms: int,
        effects: Commit,
    ) -> None:
        alarm = self.tallies[rule.rule_id].onto(self.alarms[rule.rule_id])
        alarm = alarms.changed(alarm, rule.spec, severity, value, time_ms)
        self.alarms[rule.rule_id] = alarm
        effects.alarms.append(alarm)
        device.event("alarm_changed", time_ms, alarm, effects)

    def _raise(
        self,
        device: "Device",
        rule: Rule,
        severity: Severity,
        value: Value,
        time_ms: int,
        now_ms: int,
        effects: Commit,
        *,
        by_reading: bool = True,
    ) -> None:
        assert device.registration is not None
        alarm = alarms.raised(rule, device.registration, value, time_ms, severity, by_reading=by_reading)
        self.alarms[rule.rule_id] = alarm
        self.tallies[rule.rule_id] = Tally(alarm)
        effects.alarms.append(alarm)
        device.event("alarm_raised", time_ms, alarm, effects)
        if rule.spec.escalation:
            self._set_escalation(device, rule, alarm, now_ms, effects)

    def _set(self, device: "Device", name: str, due_ms: int, since_ms: int, effects: Commit) -> None:
        timer = Timer(due_ms, since_ms)
        if self.timers.get(name) != timer:
            self.timers[name] = timer
            effects.timers.append(TimerRow(device.shard.number, device.id, name, due_ms, since_ms))

    def _cancel(self, device: "Device", name: str, effects: Commit) -> None:
        timer = self.timers.pop(name)
        effects.timers.append(TimerRow(device.shard.number, device.id, name, None, timer.since_ms))


def _after_ms(rule: Rule) -> int:
    condition = rule.spec.condition
    assert isinstance(condition, NoData)
    return round(condition.after_s * 1000)


def _steps(book: RuleBook, rule_id: str) -> bool:
    rule = book.rules.get(rule_id)
    return rule is not None and bool(rule.spec.escalation)


def _is_of_version(book: RuleBook, name: str) -> bool:
    """Whether a timer of `FAILED` is of a rule as the book has it."""
    rule_id, _, version = name.removeprefix(FAILED).rpartition("/")
    rule = book.rules.get(rule_id)
    return rule is not None and rule.spec.enabled and str(rule.version) == version


def _told(device: "Device", act: ActOnAlarm, now_ms: int) -> AlarmNote:
    acknowledged = {"ack": True, "unack": False}.get(act.action)
    assignee = act.text if act.action == "assign" else None
    return AlarmNote(device.id, act.alarm_id, now_ms, act.by, acknowledged, assignee)


def _value(check: Check, values: Sequence[Any], device: "Device") -> Value:
    """What the rule's metric is at: of this reading, or before it where the reading lacks it."""
    value: Value | None = values[check.position]
    if value is None:
        value = device.latest[check.position]
    return value if value is not None else ""
