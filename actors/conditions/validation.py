"""What the types of a rule's conditions cannot say: which can never work."""

from typing import TYPE_CHECKING, Final

import msgspec

from sensorium.actors.actions import DeriveAction, all_actions, validate_actions
from sensorium.actors.conditions.hours import date_problem, zone_problem
from sensorium.actors.conditions.kinds import (
    Always,
    AnyCondition,
    NoData,
    Schedule,
    formula_problem,
    parts_of,
)
from sensorium.actors.conditions.recursion import cycle
from sensorium.actors.errors import InvalidMessage

if TYPE_CHECKING:
    from sensorium.actors.rules import RuleSpec

MAX_SCOPE_BYTES: Final = 4_096
MAX_DEPTH: Final = 4
"""How deep conditions may stand within each other."""


def validate(spec: "RuleSpec") -> None:
    """Check what the types of a rule cannot say.

    Raises:
        InvalidMessage: the rule can never work; the text says which field and why.
    """
    _check_types(spec)
    metric = spec.condition.metric
    _validate("condition", spec.condition)
    if isinstance(spec.condition, Always):
        _validate_always(spec)
    elif not metric and not isinstance(spec.condition, NoData):
        raise InvalidMessage(
            "condition: hours are a part of another condition, and not its first: an alarm goes by a metric"
        )
    if isinstance(spec.condition, NoData):
        for name in ("for_s", "times", "clear", "levels"):
            if getattr(spec, name):
                raise InvalidMessage(
                    f"{name}: a no_data condition has its own time, after_s, and nothing else"
                )
    if spec.times is not None and spec.for_s:
        raise InvalidMessage("times: a condition holds for a while (for_s) or several times, not both")
    if spec.clear is not None:
        _validate("clear", spec.clear)
        if isinstance(spec.clear, NoData | Always) or spec.clear.metric != metric:
            raise InvalidMessage(f"clear.metric: must be {metric}, as in condition")
    seen = {spec.severity}
    for number, level in enumerate(spec.levels):
        _validate(f"levels[{number}].condition", level.condition)
        if isinstance(level.condition, NoData) or not level.condition.metric:
            raise InvalidMessage(f"levels[{number}].condition: a level goes by a reading's metrics")
        if level.severity in seen:
            raise InvalidMessage(
                f"levels[{number}].severity: {level.severity.value} stands twice in the rule"
            )
        seen.add(level.severity)
    order = [severity.value for severity in type(spec.severity)]
    mildest = order.index(spec.severity)
    for number, step in enumerate(spec.escalation):
        if order.index(step.severity) >= mildest:
            raise InvalidMessage(
                f"escalation[{number}].severity: {step.severity.value} is no worse than before"
            )
        mildest = order.index(step.severity)
    validate_actions(spec)
    _validate_derived(spec)
    if len(msgspec.json.encode(spec.scope.metadata)) > MAX_SCOPE_BYTES:
        raise InvalidMessage(f"scope.metadata: more than {MAX_SCOPE_BYTES} bytes as JSON")


def _validate_always(spec: "RuleSpec") -> None:
    """Such a rule raises no alarm, so it has nothing that goes by one."""
    for name in ("for_s", "times", "clear", "levels", "escalation"):
        if getattr(spec, name):
            raise InvalidMessage(f"{name}: a rule whose condition is always raises no alarm")
    if not spec.actions:
        raise InvalidMessage("condition: always raises no alarm; give the rule a derive action")
    for place, action in all_actions(spec):
        if not isinstance(action, DeriveAction):
            raise InvalidMessage(f"{place}: a rule whose condition is always raises no alarm to tell of")


def _validate_derived(spec: "RuleSpec") -> None:
    derived: dict[str, str] = {}
    for place, action in all_actions(spec):
        if isinstance(action, DeriveAction):
            problem = formula_problem(action.formula)
            if problem is not None:
                raise InvalidMessage(f"{place}.formula: {problem}")
            if action.metric in derived:
                raise InvalidMessage(f"{place}.metric: {action.metric} is derived twice")
            derived[action.metric] = place
    if derived and isinstance(spec.condition, NoData):
        raise InvalidMessage("condition: no_data holds at no reading, so there is nothing to derive from one")
    found = cycle([spec])
    if found is not None:
        raise InvalidMessage(f"{derived[found[0]]}.formula: recursive: {' from '.join(found)}")


def _check_types(spec: "RuleSpec") -> None:
    """What was made in Python has not been through a decoder, which checks types and bounds."""
    try:
        msgspec.convert(msgspec.to_builtins(spec), type(spec))
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        place = path.strip("`.").replace("[...]", "")
        raise InvalidMessage(f"{place or 'rule'}: {detail}") from None


def describe(spec: "RuleSpec") -> str:
    """The condition in words, for an alarm's detail."""
    words = spec.condition.words()
    if spec.for_s:
        return f"{words} for {spec.for_s:g} s"
    if spec.times is not None:
        return f"{words}, {spec.times.count} times within {spec.times.within_s:g} s"
    return words


def _validate(field: str, condition: AnyCondition, depth: int = 1) -> None:
    problem = condition.problem()
    if problem is not None:
        raise InvalidMessage(f"{field}.{problem[0]}: {problem[1]}")
    if isinstance(condition, Schedule):
        _validate_schedule(field, condition)
    for name, part in parts_of(condition):
        place = f"{field}.{name}"
        if isinstance(part, Always):
            raise InvalidMessage(f"{place}: always is a rule's whole condition, and no part of another")
        if isinstance(part, NoData):
            raise InvalidMessage(
                f"{place}: no_data is a rule of its own, it cannot be part of another condition"
            )
        if depth >= MAX_DEPTH:
            raise InvalidMessage(f"{place}: conditions may be nested {MAX_DEPTH} deep at most")
        _validate(place, part, depth + 1)


def _validate_schedule(field: str, schedule: Schedule) -> None:
    problem = zone_problem(schedule.timezone)
    if problem is not None:
        raise InvalidMessage(f"{field}.timezone: {problem}")
    for number, date in enumerate(schedule.holidays):
        problem = date_problem(date)
        if problem is not None:
            raise InvalidMessage(f"{field}.holidays[{number}]: {problem}")
