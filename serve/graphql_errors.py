"""What GraphQL clients are told of errors: ours with their codes; of others only that they are logged."""

import logging
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from graphql import GraphQLError
from strawberry.extensions import SchemaExtension

from sensorium.actors.errors import SensoriumError
from sensorium.serve.problems import Problem, problem_of

MASKED: Final = "Something went wrong on our side; it is logged."

log = logging.getLogger(__name__)


class Told(SchemaExtension):
    """Puts what is told in the place of each error, in answers and in what subscriptions send."""

    def on_operation(self) -> Iterator[None]:
        """After the answer is there."""
        yield
        _replace(self.execution_context.result)

    def on_stream_result(self, result: Any) -> Iterator[None]:
        """Before it is sent."""
        _replace(result)
        yield


def _replace(result: Any) -> None:
    errors = getattr(result, "errors", None)
    if errors:
        result.errors = [shown(error) for error in errors]


def shown(error: GraphQLError) -> GraphQLError:
    """The error with the `code` and `status` that the REST API would answer with."""
    cause = error.original_error
    if cause is None or isinstance(cause, GraphQLError):
        return error
    if isinstance(cause, SensoriumError):
        cause = problem_of(cause)
    if isinstance(cause, Problem):
        message, extensions = cause.detail, _extensions(cause)
    else:
        log.error("a query failed at %s", error.path, exc_info=cause)
        message, extensions = MASKED, {"code": "internal", "status": 500}
    return GraphQLError(message, error.nodes, error.source, error.positions, error.path, None, extensions)


def _extensions(problem: Problem) -> dict[str, Any]:
    extensions: dict[str, Any] = {"code": problem.code, "status": problem.status}
    if problem.errors:
        extensions["errors"] = msgspec.to_builtins(list(problem.errors))
    return extensions
