"""All rules at one time, as devices use them: who is watched by which, compiled once for devices alike."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sensorium.actors.conditions import Test, compile_condition, needed_detectors, needed_windows
from sensorium.actors.conditions.kinds import AnyCondition
from sensorium.actors.conditions.recursion import derived_by, formulas_of
from sensorium.actors.conditions.registry import Index
from sensorium.actors.conditions.standing import compile_standing, own_named
from sensorium.actors.conditions.windowed import windows_in
from sensorium.actors.derivations import Derivations, bind_derivations
from sensorium.actors.metrics import MetricSet
from sensorium.actors.profile import WindowSpec
from sensorium.actors.rules import NOTHING, Level, NoData, Rule, Severity
from sensorium.actors.windows import Window

COMPILED_SETS: Final = 4096
"""Combinations of device type, metric set and rules by metadata that a book keeps compiled; devices hold on
to theirs beyond it."""


class Standing(NamedTuple):
    """The tests of a rule where there is no reading; None is one that cannot tell. See `Check`.

    `names` is what of the device's own the rule compares with: "twin", "metadata".
    """

    names: frozenset[str]
    test: Test | None
    clears: Test | None
    levels: tuple[tuple[Severity, Test | None], ...]


class Check:
    """A rule bound to a position of a metric set: what a device calls.

    `clears` is the test of the rule's own clear condition, if it has one; `levels` are those of its other
    severities, worst first. `standing` has the tests for a change of the twin or the metadata, of a rule that
    looks at them.
    """

    __slots__ = ("clears", "for_ms", "levels", "position", "rule", "rule_id", "standing", "test", "times")

    def __init__(
        self,
        rule: Rule,
        position: int,
        test: Test,
        clears: Test | None,
        levels: tuple[tuple[Severity, Test], ...] = (),
        standing: Standing | None = None,
    ) -> None:
        self.rule = rule
        self.rule_id = rule.rule_id
        self.position = position
        self.test = test
        self.clears = clears
        self.levels = levels
        self.standing = standing
        self.for_ms = round(rule.spec.for_s * 1000)
        self.times = rule.spec.times


class Checks:
    """The checks of devices alike, in the order of their rules.

    Attributes:
        index: finds those whose condition holds; see `Index`.
        place: where in `each` a rule stands, by its id.
        standing: those that look at the twin or the metadata.
    """

    __slots__ = ("each", "index", "place", "standing")

    def __init__(self, each: tuple[Check, ...] = ()) -> None:
        self.each = each
        self.index = Index(tuple(check.test for check in each))
        self.place = {check.rule_id: n for n, check in enumerate(each)}
        self.standing = tuple(check for check in each if check.standing is not None)


class RuleBook:
    """All rules at one time, compiled as devices ask for them. A change of rules makes a new book."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = {rule.rule_id: rule for rule in rules}
        self._shared = [r for r in rules if r.spec.enabled and r.spec.scope.device_id is None]
        self._own: dict[str, list[Rule]] = {}
        for rule in rules:
            device_id = rule.spec.scope.device_id
            if rule.spec.enabled and device_id is not None:
                self._own.setdefault(device_id, []).append(rule)
        self._by_metadata = [rule for rule in self._shared if rule.spec.scope.by_metadata]
        self._compiled: dict[tuple[str, MetricSet, tuple[str, ...]], Checks] = {}
        self._derives = any(derived_by(rule.spec) for rule in rules)
        self._derived: dict[tuple[str, MetricSet, tuple[str, ...], int], Derivations | None] = {}
        self._needed = {rule.rule_id: specs for rule in rules if (specs := _needed(rule))}
        self._asking = {rule.rule_id: asked for rule in rules if (asked := asked_of(rule))}
        self._has_silences = any(isinstance(rule.spec.condition, NoData) for rule in rules)

    def covering(self, device_id: str, device_type: str, metadata: Mapping[str, Any] = NOTHING) -> list[Rule]:
        """The enabled rules that watch the device."""
        candidates = [*self._shared, *self._own.get(device_id, ())]
        return [rule for rule in candidates if rule.spec.scope.covers(device_id, device_type, metadata)]

    def silences(
        self, device_id: str, device_type: str, metadata: Mapping[str, Any] = NOTHING
    ) -> tuple[Rule, ...]:
        """The enabled no-data rules that watch the device."""
        if not self._has_silences:
            return ()
        rules = self.covering(device_id, device_type, metadata)
        return tuple(rule for rule in rules if isinstance(rule.spec.condition, NoData))

    def windows(
        self, device_id: str, device_type: str, metadata: Mapping[str, Any] = NOTHING
    ) -> list[WindowSpec]:
        """The windows, besides its profile's, that the rules which watch the device look at."""
        if not self._needed:
            return []
        wanted: dict[WindowSpec, None] = {}
        for rule in self.covering(device_id, device_type, metadata):
            wanted.update(dict.fromkeys(self._needed.get(rule.rule_id, ())))
        return list(wanted)

    @property
    def asks_detectors(self) -> bool:
        """Whether any rule goes by what detectors find."""
        return bool(self._asking)

    def detectors(
        self, device_id: str, device_type: str, metadata: Mapping[str, Any] = NOTHING
    ) -> list[tuple[str, str]]:
        """(metric, detector) that the rules which watch the device look at; "" for any detector."""
        if not self._asking:
            return []
        wanted: dict[tuple[str, str], None] = {}
        for rule in self.covering(device_id, device_type, metadata):
            wanted.update(dict.fromkeys(self._asking.get(rule.rule_id, ())))
        return list(wanted)

    def checks(
        self,
        device_id: str,
        device_type: str,
        metrics: MetricSet,
        windows: Sequence[Window],
        metadata: Mapping[str, Any] = NOTHING,
    ) -> Checks:
        """The compiled rules that watch the device and whose metric it has with the right kind.

        Devices of one type share the profile, and so the windows: what is compiled is shared too.
        """
        if device_id in self._own:
            return _compile(self.covering(device_id, device_type, metadata), metrics, windows)
        chosen = self._chosen(device_id, device_type, metadata)
        known = self._compiled.get((device_type, metrics, chosen))
        if known is None:
            known = _compile(self.covering(device_id, device_type, metadata), metrics, windows)
            if len(self._compiled) >= COMPILED_SETS:
                self._compiled.clear()
            self._compiled[device_type, metrics, chosen] = known
        return known

    def derivations(
        self,
        device_id: str,
        device_type: str,
        metrics: MetricSet,
        windows: Sequence[Window],
        max_metrics: int,
        metadata: Mapping[str, Any] = NOTHING,
    ) -> Derivations | None:
        """What the rules that watch the device derive from these metrics; None when it is nothing."""
        if not self._derives:
            return None
        rules = self.covering(device_id, device_type, metadata)
        if device_id in self._own:
            return bind_derivations(rules, metrics, windows, max_metrics)
        key = (device_type, metrics, self._chosen(device_id, device_type, metadata), max_metrics)
        if key not in self._derived:
            if len(self._derived) >= COMPILED_SETS:
                self._derived.clear()
            self._derived[key] = bind_derivations(rules, metrics, windows, max_metrics)
        return self._derived[key]

    def _chosen(self, device_id: str, device_type: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
        """The rules by metadata that watch the device: devices alike but for it differ by these."""
        return tuple(
            rule.rule_id
            for rule in self._by_metadata
            if rule.spec.scope.covers(device_id, device_type, metadata)
        )


def _conditions(rule: Rule) -> list[AnyCondition]:
    spec = rule.spec
    conditions = [spec.condition, *(level.condition for level in spec.levels)]
    return conditions if spec.clear is None else [*conditions, spec.clear]


def _needed(rule: Rule) -> list[WindowSpec]:
    needed = [window for condition in _conditions(rule) for window in needed_windows(condition)]
    return needed + [window for text in formulas_of(rule.spec) for window in windows_in(text)]


def asked_of(rule: Rule) -> list[tuple[str, str]]:
    """(metric, detector) that the rule looks at; "" for any detector."""
    return [asked for condition in _conditions(rule) for asked in needed_detectors(condition)]


def _compile(rules: Sequence[Rule], metrics: MetricSet, windows: Sequence[Window]) -> Checks:
    checks = []
    for rule in rules:
        spec = rule.spec
        position = metrics.index.get(spec.condition.metric)
        if position is None:
            continue
        test = compile_condition(spec.condition, metrics, windows)
        clears = None if spec.clear is None else compile_condition(spec.clear, metrics, windows)
        if test is not None and (spec.clear is None or clears is not None):
            levels = _levels(rule, metrics, windows)
            checks.append(Check(rule, position, test, clears, levels, _standing(rule, metrics, windows)))
    return Checks(tuple(checks))


def _levels(rule: Rule, metrics: MetricSet, windows: Sequence[Window]) -> tuple[tuple[Severity, Test], ...]:
    compiled = [
        (level.severity, compile_condition(level.condition, metrics, windows)) for level in _worst_first(rule)
    ]
    return tuple((severity, test) for severity, test in compiled if test is not None)


def _standing(rule: Rule, metrics: MetricSet, windows: Sequence[Window]) -> Standing | None:
    names = own_of(rule)
    if not names:
        return None
    spec = rule.spec
    return Standing(
        names,
        compile_standing(spec.condition, metrics, windows),
        None if spec.clear is None else compile_standing(spec.clear, metrics, windows),
        tuple((v.severity, compile_standing(v.condition, metrics, windows)) for v in _worst_first(rule)),
    )


def own_of(rule: Rule) -> frozenset[str]:
    """What of the device's own the rule's conditions compare with: "twin", "metadata"."""
    return frozenset[str]().union(*map(own_named, _conditions(rule)))


def _worst_first(rule: Rule) -> list[Level]:
    """The rule's other severities."""
    order = list(Severity)
    return sorted(rule.spec.levels, key=lambda level: order.index(level.severity))
