"""A rule as a person writes it down: with its condition as a JSON object, or as an expression."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sensorium.actors.actions import Actions, Limits
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.expressions import MAX_CHARACTERS, Parsed, parse_expression
from sensorium.actors.rules import Condition, Escalation, Level, Name, RuleSpec, Scope, Severity, Times


class WrittenRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule whose condition, and how long or often it must hold, is an expression (see `expressions`).

    `clear` may be an expression too.
    """

    name: Name
    expression: Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
    severity: Severity = Severity.WARNING
    scope: Scope = Scope()
    description: str = ""
    clear: Annotated[str, Meta(max_length=MAX_CHARACTERS)] | Condition | None = None
    levels: Annotated[tuple[Level, ...], Meta(max_length=4)] = ()
    escalation: Annotated[tuple[Escalation, ...], Meta(max_length=4)] = ()
    actions: Actions = ()
    limits: Limits = Limits()
    enabled: bool = True

    def spec(self) -> RuleSpec:
        """The rule. Raises `InvalidMessage` for an expression that is none, with the column."""
        parsed = _parsed("expression", self.expression)
        clear = self.clear
        if isinstance(clear, str):
            ending = _parsed("clear", clear)
            if ending.for_s or ending.times is not None:
                raise InvalidMessage(
                    "clear: an alarm ends at once; 'for' and 'times' belong to the beginning"
                )
            clear = ending.condition
        return RuleSpec(
            name=self.name,
            condition=parsed.condition,
            severity=self.severity,
            scope=self.scope,
            description=self.description,
            for_s=parsed.for_s,
            times=None if parsed.times is None else Times(*parsed.times),
            clear=clear,
            levels=self.levels,
            escalation=self.escalation,
            actions=self.actions,
            limits=self.limits,
            expression=self.expression,
            enabled=self.enabled,
        )


def rule_spec(written: Mapping[str, Any]) -> RuleSpec:
    """The rule of a JSON object, with a condition or an expression.

    Raises:
        InvalidMessage: the expression is none.
        msgspec.ValidationError: it is no rule.
    """
    if "expression" in written and "condition" not in written:
        return msgspec.convert(written, WrittenRule).spec()
    return checked(msgspec.convert(written, RuleSpec))


def checked(spec: RuleSpec) -> RuleSpec:
    """The rule, once its expression, if it has one, says the same as its condition.

    Raises:
        InvalidMessage: it does not: somebody has changed one of the two.
    """
    if spec.expression:
        parsed = _parsed("expression", spec.expression)
        times = None if parsed.times is None else Times(*parsed.times)
        if (parsed.condition, parsed.for_s, times) != (spec.condition, spec.for_s, spec.times):
            raise InvalidMessage("expression: says something else than condition; give one of the two")
    return spec


def _parsed(field: str, text: str) -> Parsed:
    try:
        return parse_expression(text)
    except InvalidMessage as error:
        raise InvalidMessage(f"{field}: {error}") from None
