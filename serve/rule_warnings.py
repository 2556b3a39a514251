"""What is odd about a rule, told when it is written: metrics and metadata that none of its devices has."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from sensorium.actors.actions import DeriveAction
from sensorium.actors.conditions.recursion import sources_of
from sensorium.actors.formulas import Named, metrics_in, nodes_of, parse_formula
from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration
from sensorium.actors.rules import RuleSpec, Scope
from sensorium.serve.pages import RuleWarning
from sensorium.serve.problems import pointer_to
from sensorium.serve.services import Services

SAMPLE_DEVICES: Final = 100
"""Devices of the scope, the first by id, that are asked what they have sent."""

MAX_WARNINGS: Final = 32

_METRIC_FIELDS: Final = ("metric", "latitude", "longitude")


async def warnings_of(services: Services, spec: RuleSpec) -> list[RuleWarning]:
    """What is probably a mistake, at most `MAX_WARNINGS`. Raises `LogUnavailable`."""
    devices, more = await _sample(services, spec.scope)
    if not devices and more:
        return []  # those that were looked at are of other groups
    if not devices:
        return [RuleWarning(f"no active device is in the scope yet: {_words(spec.scope)}", "#/scope")]
    nobody = f"no device of the scope ({_words(spec.scope)})"
    if more:
        nobody = f"none of the first {len(devices)} devices of the scope ({_words(spec.scope)})"
    sent = {name for name, _ in await services.history.newest_kinds([r.device_id for r in devices])}
    keys = {key for r in devices for key in r.metadata}
    schemas = [services.profiles.of(kind).schema for kind in {r.device_type for r in devices}]
    expected = [schema for schema in schemas if schema is not None]
    others = sources_of(rule.spec for rule in await services.rules.list() if rule.spec.enabled)
    derived = {*others, *sources_of([spec])}
    found: dict[tuple[str, str], RuleWarning] = {}
    for kind, name, pointer in named_in(spec):
        if kind == "metadata" and name not in keys:
            detail = f"{nobody} has {name} in its metadata"
            found[kind, name] = RuleWarning(detail + _meant(name, keys), pointer)
        elif kind == "metric" and (sent or expected) and name not in sent and name not in derived:
            if any(schema.of(name) is not None for schema in expected):
                continue
            detail = f"{nobody} has sent a metric {name}"
            if expected:
                detail += ", and the profile knows none"
            known = sent | derived | {known for schema in expected for known in schema.metrics}
            found[kind, name] = RuleWarning(detail + _meant(name, known), pointer)
    for n, action in enumerate(spec.actions):
        if isinstance(action, DeriveAction) and action.metric in sent and action.metric not in others:
            detail = f"devices send {action.metric} themselves, and what they send counts"
            found["derived", action.metric] = RuleWarning(detail, f"#/actions/{n}/metric")
    return list(found.values())[:MAX_WARNINGS]


def named_in(spec: RuleSpec) -> Iterator[tuple[str, str, str]]:
    """What the rule names: ("metric" or "metadata", the name, where it stands in the rule)."""
    written = msgspec.to_builtins(spec)
    for field in ("condition", "clear", "levels", "actions"):
        for kind, name, path in _within(written[field], (field,)):
            by_expression = spec.expression and path[0] == "condition"
            yield kind, name, "#/expression" if by_expression else pointer_to(path)


def _within(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if isinstance(node, list | tuple):
        for number, part in enumerate(node):
            yield from _within(part, (*path, str(number)))
    if not isinstance(node, dict):
        return
    for field, value in node.items():
        place = (*path, field)
        if isinstance(value, dict | list | tuple):
            yield from _within(value, place)
        elif not isinstance(value, str):
            continue
        elif field == "formula" or (field == "value" and node.get("type") == "formula"):
            yield from ((kind, name, place) for kind, name in _in_formula(value))
        elif field in _METRIC_FIELDS and node.get("type") != "derive":
            yield "metric", value, place
        elif field == "metadata":
            yield "metadata", value, place


def _in_formula(text: str) -> Iterator[tuple[str, str]]:
    tree = parse_formula(text)
    for name in metrics_in(tree):
        yield "metric", name
    for node in nodes_of(tree):
        if isinstance(node, Named) and node.own and node.name.startswith("metadata."):
            yield "metadata", node.name.removeprefix("metadata.")


async def _sample(services: Services, scope: Scope) -> tuple[Sequence[Registration], bool]:
    """Devices of the scope, and whether there may be more than were looked at."""
    ids = None if scope.device_id is None else [scope.device_id]
    which = Filter(scope.device_type, "active", scope.metadata, ids)
    page = await services.registry.page(which, None, SAMPLE_DEVICES)
    found = [r for r in page.items if scope.covers(r.device_id, r.device_type, r.metadata)]
    return found, page.next is not None


def _words(scope: Scope) -> str:
    parts = []
    for name in ("device_id", "device_type", "group"):
        value = getattr(scope, name)
        if value is not None:
            parts.append(f"{name} {value}")
    if scope.metadata:
        parts.append(f"metadata {msgspec.json.encode(scope.metadata).decode()}")
    return ", ".join(parts) or "all devices"


def _meant(name: str, known: Any) -> str:
    close = get_close_matches(name, sorted(known), n=1)
    return f"; was {close[0]} meant?" if close else ""
