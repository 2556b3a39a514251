"""How outcomes and troubles are said in CoAP: response codes with a diagnostic payload."""

import math
from typing import Any, Final

import aiocoap
from aiocoap.error import RenderableError
from aiocoap.numbers.codes import Code

from sensorium.actors.errors import DeviceConflict, DeviceNotFound, Overloaded, SensoriumError, Unavailable
from sensorium.actors.messages import Outcome, Refusal
from sensorium.ingest.errors import Reason

RETRY_AFTER_S: Final = 5.0
"""What Max-Age says when nobody knows better."""
MAX_DIAGNOSTIC_CHARS: Final = 200

_CODES: Final = {
    "unregistered": Code.NOT_FOUND,
    "not_found": Code.NOT_FOUND,
    "decommissioned": Code.CONFLICT,
    "conflict": Code.CONFLICT,
    "twin_too_large": Code.REQUEST_ENTITY_TOO_LARGE,
    Reason.TOO_LARGE: Code.REQUEST_ENTITY_TOO_LARGE,
    Reason.BATCH_TOO_LONG: Code.REQUEST_ENTITY_TOO_LARGE,
}
"""Of refusals by their code; all others are about the content: 4.00."""


class Answered(RenderableError):  # type: ignore[misc]  # aiocoap ships no types
    """Raised to answer a request with a code other than success."""

    def __init__(self, code: Any, diagnostic: str, max_age_s: float | None = None) -> None:
        super().__init__(diagnostic)
        self.code = code
        self.diagnostic = diagnostic
        self.max_age_s = max_age_s

    def to_message(self) -> Any:
        """As aiocoap sends it."""
        message = aiocoap.Message(
            code=self.code, payload=self.diagnostic[:MAX_DIAGNOSTIC_CHARS].encode(errors="replace")
        )
        if self.max_age_s is not None:
            message.opt.max_age = max(1, math.ceil(self.max_age_s))
        return message


def later(diagnostic: str, max_age_s: float = RETRY_AFTER_S) -> Answered:
    """5.03: the same request may work after `max_age_s`."""
    return Answered(Code.SERVICE_UNAVAILABLE, diagnostic, max_age_s)


def answer_of(error: SensoriumError) -> Answered:
    """What the client is told of an error of the runtime."""
    match error:
        case DeviceNotFound():
            return Answered(Code.NOT_FOUND, str(error))
        case DeviceConflict():
            return Answered(Code.CONFLICT, str(error))
        case Overloaded():
            return later(str(error), error.retry_after_s)
        case Unavailable():
            return later(str(error))
        case _:
            return Answered(Code.BAD_REQUEST, str(error))


def refuse(outcome: Outcome) -> None:
    """Raise `Answered` if the outcome is a refusal."""
    if isinstance(outcome, Refusal):
        code = _CODES.get(outcome.code, Code.BAD_REQUEST)
        raise Answered(code, f"{outcome.code}: {outcome.detail}")
