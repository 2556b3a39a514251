"""Work over stored history as Ray tasks, for backtests and training. Not an actor: a task keeps nothing."""

from typing import Any, Final

import ray
from ray.exceptions import RayTaskError

from sensorium.actors.errors import SensoriumError

_TASK: Final[dict[str, Any]] = {"num_cpus": 1, "max_retries": 2, "enable_task_events": False}


def as_task(function: Any) -> Any:
    """The function as a task of one CPU, tried again when its process or node is lost."""
    return ray.remote(**_TASK)(function)


def results_of(refs: Any) -> Any:
    """The results; what a task raised of ours comes as it was raised there, without Ray's traceback."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        if isinstance(error.cause, SensoriumError):
            raise error.cause from None
        raise
