"""Which metrics are derived from which, over rules, and whether any is derived from itself. Pure."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sensorium.actors.actions import DeriveAction
from sensorium.actors.conditions.kinds import metrics_named
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.formulas import metrics_in, parse_formula

if TYPE_CHECKING:
    from sensorium.actors.rules import Rule, RuleSpec, Scope


def derived_by(spec: "RuleSpec") -> dict[str, list[str]]:
    """The metrics that the rule derives, and what each is derived from: its formula's and its condition's."""
    return {
        action.metric: [*metrics_in(parse_formula(action.formula)), *metrics_named(spec.condition)]
        for action in spec.actions
        if isinstance(action, DeriveAction)
    }


def metrics_looked_at(spec: "RuleSpec") -> list[str]:
    """Every metric that the rule's conditions and formulas name, each once."""
    conditions = [spec.condition, *(level.condition for level in spec.levels)]
    if spec.clear is not None:
        conditions.append(spec.clear)
    found = [name for condition in conditions for name in metrics_named(condition)]
    for text in formulas_of(spec):
        found += metrics_in(parse_formula(text))
    return list(dict.fromkeys(found))


def formulas_of(spec: "RuleSpec") -> list[str]:
    """Of what it derives."""
    return [action.formula for action in spec.actions if isinstance(action, DeriveAction)]


def needed_derivations(specs: Iterable["RuleSpec"], rules: Iterable["Rule"]) -> list["Rule"]:
    """Those of the rules that derive what the specs look at, or what that is derived from in turn."""
    wanted = {name for spec in specs for name in metrics_looked_at(spec)}
    waiting = [rule for rule in rules if rule.spec.enabled and derived_by(rule.spec)]
    chosen: list[Rule] = []
    while found := [rule for rule in waiting if wanted & derived_by(rule.spec).keys()]:
        chosen += found
        waiting = [rule for rule in waiting if rule not in found]
        wanted.update(name for rule in found for name in metrics_looked_at(rule.spec))
    return chosen


def sources_of(specs: Iterable["RuleSpec"]) -> dict[str, list[str]]:
    """`derived_by` of several rules together."""
    sources: dict[str, list[str]] = {}
    for spec in specs:
        for metric, names in derived_by(spec).items():
            sources.setdefault(metric, []).extend(names)
    return sources


def cycle(specs: Iterable["RuleSpec"]) -> list[str] | None:
    """A metric that is derived from itself, with the way there and back; None when there is none."""
    return cycle_in(sources_of(specs))


def cycle_in(sources: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The same of metrics and what each is derived from."""
    done: set[str] = set()
    for start in sources:
        way: list[str] = []
        open_: list[tuple[str, int]] = [(start, 0)]
        # By depth first, without recursion of our own: chains may be as long as there are rules.
        while open_:
            metric, depth = open_.pop()
            del way[depth:]
            if metric in way:
                return [*way[way.index(metric) :], metric]
            if metric in done and depth:
                continue
            way.append(metric)
            done.add(metric)
            open_ += [(name, depth + 1) for name in sources.get(metric, ()) if name in sources]
    return None


def overlapping(one: "Scope", other: "Scope") -> bool:
    """Whether a device may be in both scopes, as far as their ids and types tell."""
    ids, types = (one.device_id, other.device_id), (one.device_type, other.device_type)
    return (None in ids or ids[0] == ids[1]) and (None in types or types[0] == types[1])


def check_recursion(spec: "RuleSpec", others: Iterable["RuleSpec"]) -> None:
    """For stores of rules, as the last thing before they take one.

    Raises:
        InvalidMessage: a metric that it derives would be derived from itself, through the others.
    """
    way = recursion(spec, others)
    if way is None:
        return
    own = derived_by(spec)
    places = [
        n
        for n, action in enumerate(spec.actions)
        if isinstance(action, DeriveAction) and action.metric in way and action.metric in own
    ]
    raise InvalidMessage(f"actions[{places[0]}].formula: recursive through other rules: {' from '.join(way)}")


def recursion(spec: "RuleSpec", others: Iterable["RuleSpec"]) -> list[str] | None:
    """The way by which a metric of the rule would be derived from itself, through the others; or None.

    Rules that are off do not count, nor those that watch other devices for certain.
    """
    if not spec.enabled or not derived_by(spec):
        return None
    near = [
        other
        for other in others
        if other.enabled and derived_by(other) and overlapping(spec.scope, other.scope)
    ]
    found = cycle([spec, *near])
    # A circle among the others is none of this rule's.
    return found if found is not None and set(found) & set(derived_by(spec)) else None
