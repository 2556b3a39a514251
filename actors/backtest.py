"""A draft rule over the past: what it would have raised, beside the rule that stands. Pure.

Both are judged in one go, by the same devices: a device's rules do not hear of each other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from sensorium.actors.actions import DeriveAction
from sensorium.actors.alarm_matching import by_device, match
from sensorium.actors.conditions.kinds import Formula, WindowAggregate, ZScore, parts_of
from sensorium.actors.conditions.recursion import derived_by, formulas_of, metrics_looked_at
from sensorium.actors.device import ACTIVE, Device, Shard, Surroundings
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.formulas import Windowed, nodes_of, parse_formula
from sensorium.actors.messages import Value
from sensorium.actors.metrics import MetricSet
from sensorium.actors.past import MAX_TWIN_CHANGES, TwinThen
from sensorium.actors.placement import shard_of
from sensorium.actors.profile import Profile, Profiles
from sensorium.actors.records import Alarm, Registration, TailReading
from sensorium.actors.relive import NEVER_DUE_MS, Relived
from sensorium.actors.rulebook import RuleBook, asked_of, own_of
from sensorium.actors.rules import NoData, Rule, RuleSpec

DRAFT: Final = "draft"
"""The rule id of the draft in its alarms."""

DAY_MS: Final = 86_400_000
MAX_DAYS: Final = 366
MAX_DEVICE_DAYS: Final = 36_600
"""A hundred devices for a year, or a thousand for a month."""

WARM_UP_MAX_S: Final = 31 * 86_400.0
DETECTOR_WARM_UP_S: Final = 3 * 86_400.0
"""Of rules that go by detectors: these know what is usual after two days, where the time of day counts."""
"""As long as the longest window."""

MAX_DEVICE_READINGS: Final = 5_000_000
"""Of one device: two months at one a second."""

MAX_DEVICE_ALARMS: Final = 10_000
"""Of one rule at one device: a draft that raises more is of no use, and is told so."""

MAX_LISTED: Final = 1_000
"""Alarms that a result names one by one; its figures count all."""


class Order(msgspec.Struct, frozen=True):
    """What to try: `draft` from `start_ms` to `end_ms` (excluded), beside `present` if there is one.

    `derive` are rules of the present that derive metrics which the two look at. What they derived at the time
    is stored; where nothing is, they derive it now. What the draft derives itself is derived anew.
    """

    draft: RuleSpec
    start_ms: int
    end_ms: int
    present: Rule | None = None
    derive: tuple[Rule, ...] = ()

    @property
    def rules(self) -> list[Rule]:
        """The rules that are judged. The draft is, even if it is written as switched off."""
        spec = msgspec.structs.replace(self.draft, enabled=True)
        draft = Rule(rule_id=DRAFT, version=0, spec=spec, created_ms=0, updated_ms=0)
        return [draft] if self.present is None else [draft, self._without_drafts_metrics(self.present)]

    def _without_drafts_metrics(self, rule: Rule) -> Rule:
        """The rule without what the draft derives too: there is one value of a metric at a reading."""
        drafted = derived_by(self.draft)
        kept = tuple(
            a for a in rule.spec.actions if not isinstance(a, DeriveAction) or a.metric not in drafted
        )
        return msgspec.structs.replace(rule, spec=msgspec.structs.replace(rule.spec, actions=kept))


class Figures(msgspec.Struct, frozen=True):
    """How often and for how long: alarms, the seconds that they stood within the range, devices."""

    alarms: int = 0
    active_s: float = 0.0
    devices: int = 0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            self.alarms + other.alarms, self.active_s + other.active_s, self.devices + other.devices
        )


class TriedAlarm(msgspec.Struct, frozen=True):
    """An alarm of the past. `change`: "new" (the draft's only), "gone" (the present rule's only) or "stays".

    `end_ms` is None where it still stood at the end of the range. Of one that stays, times are the draft's.
    """

    device_id: str
    change: str
    severity: str
    metric: str
    value: Value
    start_ms: int
    end_ms: int | None


class DeviceOutcome(msgspec.Struct, frozen=True):
    """What the rules made of one device's readings."""

    device_id: str
    readings: int
    draft: Figures
    present: Figures
    new: int
    gone: int
    stays: int
    listed: list[TriedAlarm] = []


class BacktestResult(msgspec.Struct, frozen=True, tag="result"):
    """What would have been.

    Attributes:
        devices: how many had readings in the range or were otherwise judged.
        draft, present: all alarms of each; `present` is None when there was no rule to compare with.
        new, gone, stays: the draft's alarms only, the present rule's only, and pairs that overlap in time.
        by_device: the same of each device that had any alarm.
        alarms: the first `MAX_LISTED` by their start; `more` says that there are others.
    """

    start_ms: int
    end_ms: int
    devices: int
    readings: int
    draft: Figures
    present: Figures | None
    new: int
    gone: int
    stays: int
    by_device: list[DeviceOutcome]
    alarms: list[TriedAlarm]
    more: bool


def check_range(start_ms: int, end_ms: int, devices: int) -> None:
    """Raises `InvalidMessage` when there is more past than a backtest takes."""
    days = (end_ms - start_ms) / DAY_MS
    if days <= 0:
        raise InvalidMessage("since: must lie before the end of the range")
    if days > MAX_DAYS:
        raise InvalidMessage(f"since: {days:.0f} days are too many; a backtest takes {MAX_DAYS} at most")
    if days * devices > MAX_DEVICE_DAYS:
        raise InvalidMessage(
            f"since: {devices} devices over {days:.0f} days are too much; a backtest takes {MAX_DEVICE_DAYS}"
            " device-days at most: choose fewer devices or a shorter time"
        )


def warm_up_ms(rules: Sequence[Rule], profile: Profile) -> int:
    """How long before the range a replay begins: windows are full then, and what must hold may have begun."""
    lengths_s = [0.0]
    for rule in rules:
        spec = rule.spec
        lengths_s.append(spec.for_s)
        if spec.times is not None:
            lengths_s.append(spec.times.within_s)
        if isinstance(spec.condition, NoData):
            lengths_s.append(spec.condition.after_s)
        if asked_of(rule):
            lengths_s.append(DETECTOR_WARM_UP_S)
        default_s = profile.windows[0].length_s if profile.windows else 0.0
        lengths_s += [default_s if length_s is None else length_s for length_s in _windows(spec)]
    return round(min(max(lengths_s), WARM_UP_MAX_S) * 1000)


class Trial:
    """One device under the rules of an order. Give `take` its readings in the order they came, then `finish`.

    The readings must begin `warm_up_ms` before the range, at `from_ms`.

    Attributes:
        looks_at_twin: whether `recall` is to be called first, with the device's twin from `from_ms` on.
    """

    def __init__(self, order: Order, profiles: Profiles, registration: Registration) -> None:
        profile = profiles.of(registration.device_type)
        judged = order.rules
        rules = [*judged, *order.derive]
        self.from_ms = order.start_ms - warm_up_ms(rules, profile)
        self.readings = 0
        self._order = order
        self._registration = registration
        anew = {metric for rule in judged for metric in derived_by(rule.spec)}
        self._picked = {name for rule in rules for name in metrics_looked_at(rule.spec)} - anew
        if not any(_windows(rule.spec) for rule in rules):
            # No rule looks at a window, and filling them is half of a reading's cost.
            profile = msgspec.structs.replace(profile, windows=())
        self.looks_at_twin = any("twin" in own_of(rule) for rule in rules)
        self._twins: deque[TwinThen] = deque()
        book = RuleBook(rules)
        if not book.asks_detectors:
            profile = msgspec.structs.replace(profile, detectors=())
        self._around = Surroundings(Profiles(profile), book)
        self._relived: Relived | None = None
        self._shapes: dict[MetricSet, tuple[tuple[str, ...], Callable[[Any], list[Any]]]] = {}
        self._alarms: dict[str, dict[str, Alarm]] = {rule.rule_id: {} for rule in judged}

    def recall(self, twins: Sequence[TwinThen]) -> None:
        """How the device's twin was, in order.

        Raises:
            InvalidMessage: it changed too often.
        """
        if len(twins) > MAX_TWIN_CHANGES:
            raise InvalidMessage(
                f"since: the twin of device {self._registration.device_id} changed more than"
                f" {MAX_TWIN_CHANGES} times in the range; choose a shorter time"
            )
        self._twins.extend(twins)

    def take(self, rows: Iterable[TailReading]) -> None:
        """Relive these readings.

        Raises:
            InvalidMessage: they are too many, or the alarms are.
        """
        relived = self._relived
        start_ms = self._order.start_ms
        twin_ms = self._twins[0].time_ms if self._twins else NEVER_DUE_MS
        known: MetricSet | None = None
        all_names: tuple[str, ...] = ()
        pick: Callable[[Any], list[Any]] = list
        counted = 0
        for _, time_ms, key, _, metrics, values in rows:
            if relived is None:
                relived = self._begin(time_ms)
            if time_ms > twin_ms:
                twin_ms = self._turn_twin(relived, time_ms)
            if metrics is not known:
                known, (all_names, pick) = metrics, self._shape_of(metrics)
            names, picked = all_names, pick(values)
            if None in picked:
                present = [(n, v) for n, v in zip(names, picked, strict=True) if v is not None]
                names, picked = tuple(n for n, _ in present), [v for _, v in present]
            relived.take(time_ms, key, 0, names, picked)
            counted += time_ms >= start_ms
            if relived.emitted:
                self._note(relived.emitted)
        self.readings += counted
        if self.readings > MAX_DEVICE_READINGS:
            raise InvalidMessage(
                f"since: device {self._registration.device_id} has more than {MAX_DEVICE_READINGS} readings"
                " in the range; choose a shorter time"
            )

    def finish(self) -> DeviceOutcome:
        """Let time pass to the end of the range; what the rules made of it."""
        order = self._order
        relived = self._relived or self._begin(order.end_ms)
        self._turn_twin(relived, order.end_ms)
        relived.advance(order.end_ms - 1)
        self._note(relived.emitted)
        drafted = self._of(DRAFT)
        present = [] if order.present is None else self._of(order.present.rule_id)
        matched = match(present, drafted, by_device)
        listed = [
            *(_tried(alarm, "new") for alarm in matched.new),
            *(_tried(alarm, "gone") for alarm in matched.gone),
            *(_tried(alarm, "stays") for _, alarm in matched.stays),
        ]
        return DeviceOutcome(
            self._registration.device_id,
            self.readings,
            self._figures(drafted),
            self._figures(present),
            len(matched.new),
            len(matched.gone),
            len(matched.stays),
            sorted(listed, key=_start)[:MAX_LISTED],
        )

    def _begin(self, first_ms: int) -> Relived:
        # It was known from its registration on, or from its first reading where that is older: an import.
        r = self._registration
        began_ms = min(first_ms, max(self.from_ms, r.registered_ms))
        device = Device(r.device_id, Shard(shard_of(r.device_id), 0))
        device.registration = msgspec.structs.replace(
            r, status=ACTIVE, registered_ms=began_ms, updated_ms=began_ms
        )
        device.furnish(self._around)
        self._relived = relived = Relived(device, self._around, began_ms)
        relived.surround(self._around)
        return relived

    def _turn_twin(self, relived: Relived, until_ms: int) -> int:
        """Have its twin as it was until then; when it changes next."""
        twins = self._twins
        while twins and twins[0].time_ms < until_ms:
            relived.turn_twin(*twins.popleft())
            self._note(relived.emitted)
        return twins[0].time_ms if twins else NEVER_DUE_MS

    def _shape_of(self, metrics: MetricSet) -> tuple[tuple[str, ...], Callable[[Any], list[Any]]]:
        shape = self._shapes.get(metrics)
        if shape is None:
            shape = self._shapes[metrics] = self._shape(metrics)
        return shape

    def _shape(self, metrics: MetricSet) -> tuple[tuple[str, ...], Callable[[Any], list[Any]]]:
        """The metrics that a rule may name, and how to pick their values."""
        positions = [n for n, name in enumerate(metrics.names) if name in self._picked]
        names = tuple(metrics.names[n] for n in positions)
        if not positions:
            return names, lambda values: []
        if len(positions) == 1:
            (only,) = positions
            return names, lambda values: [values[only]]
        pick = itemgetter(*positions)
        return names, lambda values: list(pick(values))

    def _note(self, emitted: Iterable[Alarm]) -> None:
        for alarm in emitted:
            of_rule = self._alarms.get(alarm.rule_id)
            if of_rule is None:
                continue  # of a rule that only derives what is looked at
            of_rule[alarm.alarm_id] = alarm
            if len(of_rule) > MAX_DEVICE_ALARMS:
                raise InvalidMessage(
                    f"condition: {alarm.rule_name} raises more than {MAX_DEVICE_ALARMS} alarms at device"
                    f" {alarm.device_id} alone; choose a shorter time, or a rule that holds on (for_s, clear)"
                )

    def _of(self, rule_id: str) -> list[Alarm]:
        """The alarms that began in the range or stood at its start."""
        start_ms, end_ms = self._order.start_ms, self._order.end_ms
        return [
            alarm
            for alarm in self._alarms[rule_id].values()
            if alarm.start_ms < end_ms and (alarm.end_ms is None or alarm.end_ms >= start_ms)
        ]

    def _figures(self, alarms: Sequence[Alarm]) -> Figures:
        start_ms, end_ms = self._order.start_ms, self._order.end_ms
        stood_ms = sum(
            min(end_ms if alarm.end_ms is None else alarm.end_ms, end_ms) - max(alarm.start_ms, start_ms)
            for alarm in alarms
        )
        return Figures(len(alarms), stood_ms / 1000, bool(alarms) * 1)


class Gathering:
    """The outcomes of devices, added up as they come in. It keeps no more than the result will say."""

    def __init__(self, order: Order) -> None:
        self.devices = 0
        self.readings = 0
        self._order = order
        self._outcomes: list[DeviceOutcome] = []
        self._listed: list[TriedAlarm] = []
        self._alarms = 0

    def add(self, outcomes: Iterable[DeviceOutcome]) -> None:
        """Take in some devices."""
        for outcome in outcomes:
            self.devices += 1
            self.readings += outcome.readings
            if outcome.draft.alarms or outcome.present.alarms:
                self._alarms += outcome.new + outcome.gone + outcome.stays
                self._listed += outcome.listed
                self._outcomes.append(msgspec.structs.replace(outcome, listed=[]))
        self._listed = sorted(self._listed, key=_start)[:MAX_LISTED]

    def result(self) -> BacktestResult:
        """Of all that was taken in."""
        outcomes = sorted(self._outcomes, key=lambda outcome: outcome.device_id)
        order = self._order
        return BacktestResult(
            order.start_ms,
            order.end_ms,
            self.devices,
            self.readings,
            sum((outcome.draft for outcome in outcomes), Figures()),
            None if order.present is None else sum((outcome.present for outcome in outcomes), Figures()),
            sum(outcome.new for outcome in outcomes),
            sum(outcome.gone for outcome in outcomes),
            sum(outcome.stays for outcome in outcomes),
            outcomes,
            self._listed,
            self._alarms > len(self._listed),
        )


def _windows(spec: RuleSpec) -> list[float | None]:
    """The lengths of all windows that the rule looks at; None: the profile's first."""
    waiting = [spec.condition, *(level.condition for level in spec.levels)]
    if spec.clear is not None:
        waiting.append(spec.clear)
    found: list[float | None] = []
    texts = formulas_of(spec)
    while waiting:
        condition = waiting.pop()
        if isinstance(condition, WindowAggregate | ZScore):
            found.append(condition.window_s)
        elif isinstance(condition, Formula):
            texts += condition.texts()
        waiting += [part for _, part in parts_of(condition)]
    nodes = [node for text in texts for node in nodes_of(parse_formula(text))]
    return found + [node.window_s for node in nodes if isinstance(node, Windowed)]


def _tried(alarm: Alarm, change: str) -> TriedAlarm:
    return TriedAlarm(
        alarm.device_id, change, alarm.severity, alarm.metric, alarm.value, alarm.start_ms, alarm.end_ms
    )


def _start(alarm: TriedAlarm) -> tuple[int, str]:
    return alarm.start_ms, alarm.device_id
