"""What people send to have a device do something, as a model that holds nothing invalid."""

import secrets
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sensorium.actors.messages import SendCommand
from sensorium.ingest.command_requests import (
    EXPIRES_AFTER_MS,
    MAX_EXPIRES_AFTER_MS,
    MAX_PARAMETERS_BYTES,
    MAX_RETRIES,
    MAX_TIMEOUT_S,
    MIN_TIMEOUT_S,
    check_parameters,
    keyed_id,
)
from sensorium.ingest.errors import Undecodable
from sensorium.serve.problems import invalid_body
from sensorium.serve.query import time_ms

MAX_WAIT_S: Final = 60.0


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    try:
        check_parameters(parameters)
    except Undecodable as error:
        raise ValueError(error.detail) from None
    return parameters


CommandName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Parameters = Annotated[
    dict[str, Any],
    AfterValidator(_parameters),
    Field(description=f"Any JSON object of at most {MAX_PARAMETERS_BYTES} bytes."),
]


class CommandFields(BaseModel):
    """What a command is, to whomever."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    command: CommandName
    parameters: Parameters = {}
    timeout_s: Annotated[
        float,
        Field(
            ge=MIN_TIMEOUT_S,
            le=MAX_TIMEOUT_S,
            description="In which the device must answer once it was told.",
        ),
    ] = 30.0
    expires_at: Annotated[
        str | int | None,
        Field(description="ISO 8601 or epoch ms; then the device is not told any more. Else after a day."),
    ] = None
    retries: Annotated[
        int,
        Field(
            ge=0, le=MAX_RETRIES, description="How often it is told again, by the same id, if it is silent."
        ),
    ] = 0

    def expires_ms(self, now_ms: int) -> int:
        """From when on the device is not told. Raises a `Problem` if that is past or no time."""
        if self.expires_at is None:
            return now_ms + EXPIRES_AFTER_MS
        expires_ms = time_ms("expires_at", str(self.expires_at))
        assert expires_ms is not None
        if not now_ms < expires_ms <= now_ms + MAX_EXPIRES_AFTER_MS:
            raise invalid_body("must lie in the future, a year at most", "#/expires_at")
        return expires_ms


class CommandBody(CommandFields):
    """A command to one device."""

    idempotency_key: Annotated[
        str | None,
        Field(min_length=1, max_length=256, description="The same key and device: the same command."),
    ] = None
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="How long the answer is waited for.")] = (
        0.0
    )

    def command_id(self, device_id: str, now_ms: int) -> str:
        """By the idempotency key where there is one; else a new one, which sorts by time."""
        if self.idempotency_key is None:
            return f"{now_ms:012x}{secrets.token_hex(10)}"
        return keyed_id(device_id, self.idempotency_key)

    def message(self, device_id: str, command_id: str, now_ms: int) -> SendCommand:
        """As the device takes it. Raises a `Problem` about when it expires."""
        return SendCommand(
            *(device_id, command_id, self.command, self.parameters, round(self.timeout_s * 1000)),
            *(self.expires_ms(now_ms), self.retries),
        )
