"""All rules at one time, as devices use them: who is watched by which, compiled once for devices alike."""

from collections.abc import Sequence
from typing import Final

from sensorium.actors.conditions import Test, compile_condition
from sensorium.actors.metrics import MetricSet
from sensorium.actors.rules import NoData, Rule
from sensorium.actors.windows import Window

COMPILED_SETS: Final = 4096
"""Pairs of device type and metric set that a book keeps compiled; devices hold on to theirs beyond it."""


class Check:
    """A rule bound to a position of a metric set: what a device calls.

    `clears` is the test of the rule's own clear condition, if it has one.
    """

    __slots__ = ("clears", "for_ms", "position", "rule", "rule_id", "test")

    def __init__(self, rule: Rule, position: int, test: Test, clears: Test | None) -> None:
        self.rule = rule
        self.rule_id = rule.rule_id
        self.position = position
        self.test = test
        self.clears = clears
        self.for_ms = round(rule.spec.for_s * 1000)


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
        self._compiled: dict[tuple[str, MetricSet], tuple[Check, ...]] = {}
        self._has_silences = any(isinstance(rule.spec.condition, NoData) for rule in rules)

    def covering(self, device_id: str, device_type: str) -> list[Rule]:
        """The enabled rules that watch the device."""
        candidates = [*self._shared, *self._own.get(device_id, ())]
        return [rule for rule in candidates if rule.spec.scope.covers(device_id, device_type)]

    def silences(self, device_id: str, device_type: str) -> tuple[Rule, ...]:
        """The enabled no-data rules that watch the device."""
        if not self._has_silences:
            return ()
        return tuple(r for r in self.covering(device_id, device_type) if isinstance(r.spec.condition, NoData))

    def checks(
        self, device_id: str, device_type: str, metrics: MetricSet, windows: Sequence[Window]
    ) -> tuple[Check, ...]:
        """The compiled rules that watch the device and whose metric it has with the right kind.

        Devices of one type share the profile, and so the windows: what is compiled is shared too.
        """
        if device_id in self._own:
            return _compile(self.covering(device_id, device_type), metrics, windows)
        known = self._compiled.get((device_type, metrics))
        if known is None:
            known = _compile(self.covering(device_id, device_type), metrics, windows)
            if len(self._compiled) >= COMPILED_SETS:
                self._compiled.clear()
            self._compiled[device_type, metrics] = known
        return known


def _compile(rules: Sequence[Rule], metrics: MetricSet, windows: Sequence[Window]) -> tuple[Check, ...]:
    checks = []
    for rule in rules:
        spec = rule.spec
        position = metrics.index.get(spec.condition.metric)
        if position is None:
            continue
        test = compile_condition(spec.condition, metrics, windows)
        clears = None if spec.clear is None else compile_condition(spec.clear, metrics, windows)
        if test is not None and (spec.clear is None or clears is not None):
            checks.append(Check(rule, position, test, clears))
    return tuple(checks)
