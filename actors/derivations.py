"""Metrics that rules derive from others at a device: bound to its metric set, in an order that works. Pure.

What is derived is stored with the reading, so a replay has it without working anything out.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sensorium.actors.actions import DeriveAction
from sensorium.actors.conditions import Test, compile_condition
from sensorium.actors.conditions.computed import Compiled, Unknown, compile_formula
from sensorium.actors.conditions.kinds import Always
from sensorium.actors.conditions.recursion import sources_of
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.rules import Rule
from sensorium.actors.windows import Window

CONTAINED: Final = (ArithmeticError, ValueError, TypeError)
"""What working something out may raise because of what was measured."""


class Derivation(NamedTuple):
    """A derived metric at its place in a metric set. `test` is the rule's condition; None: always."""

    rule: Rule
    position: int
    formula: Compiled
    test: Test | None


class Derivations(NamedTuple):
    """What is derived at devices alike, in the order of working out.

    Attributes:
        metrics: the set that it is bound to: the device's, with what is derived after it.
        names: of the derived metrics.
        windowed: whether windows must have been moved on to the reading's time before.
        left_out: rules that cannot take part, and why.
    """

    metrics: MetricSet
    each: tuple[Derivation, ...]
    names: frozenset[str]
    windowed: bool
    left_out: tuple[tuple[Rule, str], ...]

    def work_out(
        self, values: Sequence[Any], time_ms: int, device: Any, late: bool
    ) -> tuple[list[Any], list[tuple[Rule, str]]]:
        """The reading's values with what is derived of them, and the rules that could not, with the reason.

        What the reading has itself stays. A late reading is given only what needs nothing but its own values.
        """
        worked = [*values, *[None] * (len(self.metrics.names) - len(values))]
        failed: list[tuple[Rule, str]] = []
        for rule, position, (work, positions, own), test in self.each:
            if worked[position] is not None:
                continue
            lacking = sum(worked[source] is None for source in positions)
            if lacking == len(positions) or (late and (lacking or not own or test is not None)):
                continue
            try:
                if test is None or test(worked, time_ms, device):
                    worked[position] = work(worked, time_ms, device)
            except Unknown:
                continue
            except CONTAINED as error:
                failed.append((rule, f"{self.metrics.names[position]}: {error}"))
        return worked, failed


def bind_derivations(
    rules: Sequence[Rule], metrics: MetricSet, windows: Sequence[Window], max_metrics: int
) -> Derivations | None:
    """What these rules derive at devices with these metrics; None when it is nothing.

    A rule whose metrics the device has never sent waits until it has.
    """
    wanted = [
        (rule, action) for rule in rules for action in rule.spec.actions if isinstance(action, DeriveAction)
    ]
    if not wanted:
        return None
    bound: list[Derivation] = []
    ordered, recursive = _in_order(wanted)
    left_out = [(rule, f"{action.metric}: is derived from itself") for rule, action in recursive]
    for rule, action in ordered:
        grown = metrics if action.metric in metrics.index else metrics.grown((action.metric,), [0.0])
        position = grown.index[action.metric]
        if grown.kinds[position] != NUMBER:
            left_out.append((rule, f"{action.metric}: is no number at this device"))
            continue
        always = isinstance(rule.spec.condition, Always)
        formula = compile_formula(action.formula, metrics, windows)
        test = None if always else compile_condition(rule.spec.condition, metrics, windows)
        if formula is None or (test is None and not always):
            continue
        if len(grown.names) > max_metrics:
            left_out.append((rule, f"{action.metric}: the device would have more than {max_metrics} metrics"))
            continue
        metrics = grown
        bound.append(Derivation(rule, position, formula, test))
    names = frozenset(metrics.names[each.position] for each in bound)
    windowed = any(not each.formula.own or each.test is not None for each in bound)
    return Derivations(metrics, tuple(bound), names, windowed, tuple(left_out))


def _in_order(
    wanted: Sequence[tuple[Rule, DeriveAction]],
) -> tuple[list[tuple[Rule, DeriveAction]], list[tuple[Rule, DeriveAction]]]:
    """Each after those that it is derived from; and those for which there is no such order."""
    sources = sources_of({rule.rule_id: rule.spec for rule, _ in wanted}.values())
    ordered: list[tuple[Rule, DeriveAction]] = []
    waiting = list(wanted)
    while waiting:
        open_ = {action.metric for _, action in waiting}
        ready = [each for each in waiting if open_.isdisjoint(sources[each[1].metric])]
        if not ready:
            break
        ordered += ready
        chosen = {id(action) for _, action in ready}
        waiting = [each for each in waiting if id(each[1]) not in chosen]
    return ordered, waiting
