"""What a GraphQL query may cost, told from its text and variables before anything is read."""

from collections.abc import Iterator
from typing import Any, Final

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    IntValueNode,
    NullValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
)
from strawberry.extensions import SchemaExtension

from sensorium.serve.problems import Problem

MAX_DEPTH: Final = 10
MAX_COST: Final = 20_000
MAX_ALIASES: Final = 30
MAX_TOKENS: Final = 2_000
MAX_FIRST: Final = 1_000

_FIRST: Final = dict.fromkeys(
    (
        *("devices", "alarms", "anomalies", "commands", "events", "readings"),
        *("twinChanges", "bulkJobs", "bulkJobDevices"),
    ),
    100,
)
"""Fields that are lists, and how many items they have when nobody says; below a device it is fewer."""
_OF_A_DEVICE: Final = 10
_OF_THE_DEVICE: Final = (
    *("latest", "window", "twin", "connectivity", "lastSeenMs", "activeAlarms"),
    *("isolation", "isolationBy", "process"),
)
"""What the device itself is asked for."""
_WEIGHTS: Final = {
    **dict.fromkeys(_OF_THE_DEVICE, 2),
    "twinAt": 10,
    "aggregate": 100,
    "aggregated": 200,
    "alarmWhy": 500,
}


class CostLimit(SchemaExtension):
    """Refuses what costs more than `MAX_COST`: fields, times the items of the lists around them."""

    def on_execute(self) -> Iterator[None]:
        """Before the first resolver."""
        document = self.execution_context.graphql_document
        assert document is not None
        fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        variables = self.execution_context.variables or {}
        name = self.execution_context.operation_name
        for definition in document.definitions:
            if isinstance(definition, OperationDefinitionNode) and (
                name is None or (definition.name is not None and definition.name.value == name)
            ):
                cost = _cost(definition.selection_set, fragments, _variables(definition, variables), False)
                if cost > MAX_COST:
                    raise GraphQLError(
                        f"the query would cost {cost}, above {MAX_COST}: ask for fewer items (`first`)",
                        extensions={"code": "too_costly"},
                    )
        yield


def _variables(operation: OperationDefinitionNode, given: dict[str, Any]) -> dict[str, Any]:
    defaults = {
        definition.variable.name.value: int(definition.default_value.value)
        for definition in operation.variable_definitions or ()
        if isinstance(definition.default_value, IntValueNode)
    }
    return {**defaults, **given}


def _cost(
    selections: SelectionSetNode,
    fragments: dict[str, FragmentDefinitionNode],
    variables: dict[str, Any],
    in_device: bool,
) -> int:
    """Validation has refused fragments that go in circles."""
    cost = 0
    for selection in selections.selections:
        if isinstance(selection, FragmentSpreadNode):
            fragment = fragments[selection.name.value]
            cost += _cost(fragment.selection_set, fragments, variables, in_device)
        elif isinstance(selection, InlineFragmentNode):
            cost += _cost(selection.selection_set, fragments, variables, in_device)
        elif isinstance(selection, FieldNode) and not selection.name.value.startswith("__"):
            cost += _field(selection, fragments, variables, in_device)
        if cost > MAX_COST:
            break
    return cost


def _field(
    field: FieldNode,
    fragments: dict[str, FragmentDefinitionNode],
    variables: dict[str, Any],
    in_device: bool,
) -> int:
    name = field.name.value
    own = _WEIGHTS.get(name, 1)
    if field.selection_set is None:
        return own
    below = in_device or name in ("device", "devices")
    inner = _cost(field.selection_set, fragments, variables, below)
    return own + inner * (_items(field, variables, in_device) if name in _FIRST else 1)


def _items(field: FieldNode, variables: dict[str, Any], in_device: bool) -> int:
    default = _OF_A_DEVICE if in_device else _FIRST[field.name.value]
    for argument in field.arguments or ():
        if argument.name.value == "first":
            value = argument.value
            if isinstance(value, VariableNode):
                number = variables.get(value.name.value, default)
                return number if isinstance(number, int) and number > 0 else default
            if isinstance(value, IntValueNode):
                return max(int(value.value), 0)
            if isinstance(value, NullValueNode):
                return default
    return default


def checked_first(first: int) -> int:
    """How many items; raises a `Problem` beyond `MAX_FIRST`."""
    if not 1 <= first <= MAX_FIRST:
        raise Problem(422, "invalid", f"first: between 1 and {MAX_FIRST}, not {first}")
    return first
