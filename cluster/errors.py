"""The exceptions of the commands. Each is told in one line on stderr; its `exit_code` is the process's.

ClusterError              1: it could not be done
├── ConfigError           2: what was asked for makes no sense; change the flag, variable or file
├── AlreadyRunning        another platform keeps its data in this directory
├── NotRunning            there is no platform in this directory
├── StartFailed           a part of the platform could not be started
├── PlatformFailed        a running platform cannot go on
├── DeployFailed          a deployment could not be run, or did not get ready
├── PlatformUnreachable   the HTTP API does not answer, or not as it should
├── CommandsFailed        not every device of a selection did what it was told
├── DeliveryFailed        the broker refused a message or did not acknowledge it in time
└── BadRecording          a row of a recording cannot be sent
"""

from collections.abc import Iterator
from contextlib import contextmanager


class ClusterError(Exception):
    """Base of what a command fails with on purpose."""

    exit_code = 1


class ConfigError(ClusterError):
    """The configuration cannot be used. The message is one line that says what to change."""

    exit_code = 2


class AlreadyRunning(ClusterError):
    """A platform runs on this data directory; two would overwrite each other."""


class NotRunning(ClusterError):
    """No platform runs on this data directory."""


class StartFailed(ClusterError):
    """A part of the platform could not be started; the message says which and why."""


class PlatformFailed(ClusterError):
    """A platform that had been serving cannot go on, and has ended; the message says why."""


class DeployFailed(ClusterError):
    """A deployment could not be run; the message says what is missing or what to look at."""


class PlatformUnreachable(ClusterError):
    """The HTTP API could not be reached, or refused what a command needs of it."""


class DeliveryFailed(ClusterError):
    """The broker refused a message, or did not acknowledge it in time."""


class BadRecording(ClusterError):
    """The recording cannot be read; the message names file and line."""


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the first of a group of ClusterErrors by itself; groups that hold anything else pass."""
    try:
        yield
    except ExceptionGroup as group:
        known, unknown = group.split(ClusterError)
        if known is None or unknown is not None:
            raise
        first: Exception = known
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None
