"""The exceptions of the runtime.

SensoriumError
├── Refused              the caller's fault: say it to the caller, change the request
│   ├── InvalidMessage
│   ├── DeviceNotFound
│   ├── DeviceConflict
│   ├── PreconditionFailed   what is to be changed is no longer as the caller saw it
│   ├── ForkExists
│   ├── IsolationLimit   as many devices have a process of their own as may
│   ├── RuleNotFound
│   └── NoHistory        nothing is stored of what was asked about
└── Unavailable          our fault or the surroundings': the same request may work later
    ├── LogUnavailable   the database did not commit, or nobody knows whether it did
    ├── Fenced           this incarnation lost its shards; another host commits for them
    │   ├── Moved        only some of them; the host goes on with the rest
    │   └── LeaseOver    perhaps: it has not heard from the database for too long
    └── Overloaded       a bound was reached; slow down
"""


class SensoriumError(Exception):
    """Base of every error that Sensorium raises on purpose."""


class Refused(SensoriumError):
    """The request cannot be done as it stands; repeating it unchanged is pointless."""

    code = "refused"


class InvalidMessage(Refused):
    """The message breaks a documented bound or type."""

    code = "invalid"


class DeviceNotFound(Refused):
    """No device of this id is registered."""

    code = "not_found"


class DeviceConflict(Refused):
    """The device exists already, or its state forbids the request."""

    code = "conflict"


class PreconditionFailed(Refused):
    """What is to be changed has changed meanwhile: read it again."""

    code = "precondition_failed"


class RuleNotFound(Refused, LookupError):
    """There is no rule of this id, or none of this version."""

    code = "not_found"


class NoHistory(Refused, LookupError):
    """No device, or no reading of those devices, is stored to look back at."""

    code = "no_history"


class ForkExists(Refused):
    """A fork of this name is open."""

    code = "conflict"


class IsolationLimit(Refused):
    """No further device may have a process of its own: take one back, or raise the bound."""

    code = "isolation_limit"


class Unavailable(SensoriumError):
    """Nothing is wrong with the request; try it again later."""


class LogUnavailable(Unavailable):
    """The log could not be reached, or the connection broke while it committed."""


class Fenced(Unavailable):
    """Another incarnation owns the shards now; this one must stop."""


class Moved(Fenced):
    """The shard is another host's now: ask for the routing table. This host goes on with its other shards."""


class LeaseOver(Fenced):
    """This host cannot tell whether its shards are still its own, so it does not answer for them."""


class Overloaded(Unavailable):
    """A bound was reached. `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def refused(code: str, detail: str) -> Refused:
    """The exception of a refusal's code; a plain `Refused` with that code when none is made for it."""
    for kind in (InvalidMessage, DeviceNotFound, DeviceConflict, PreconditionFailed):
        if kind.code == code:
            return kind(detail)
    error = Refused(detail)
    error.code = code
    return error
