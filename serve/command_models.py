"""What people send to have a device do something, as a model that holds nothing invalid."""

import secrets
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sensorium.actors.messages import SendCommand
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.replies import check_plain
from sensorium.serve.problems import invalid_body
from sensorium.serve.query import time_ms

MAX_PARAMETERS_BYTES: Final = 32_768
MAX_WAIT_S: Final = 60.0
EXPIRES_AFTER_MS: Final = 86_400_000
"""Of a command that does not say when it expires: a day."""
MAX_EXPIRES_AFTER_MS: Final = 366 * 86_400_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    try:
        check_plain(parameters)
    except Undecodable as error:
        raise ValueError(error.detail) from None
    size = len(msgspec.json.encode(parameters))
    if size > MAX_PARAMETERS_BYTES:
        raise ValueError(f"{size} bytes as JSON; at most {MAX_PARAMETERS_BYTES} are sent")
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
        Field(ge=0.1, le=30 * 86_400, description="In which the device must answer once it was told."),
    ] = 30.0
    expires_at: Annotated[
        str | int | None,
        Field(description="ISO 8601 or epoch ms; then the device is not told any more. Else after a day."),
    ] = None
    retries: Annotated[
        int, Field(ge=0, le=10, description="How often it is told again, by the same id, if it is silent.")
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
        name = f"{device_id}\0{self.idempotency_key}".encode(errors="surrogatepass")
        return blake2b(name, digest_size=16).hexdigest()

    def message(self, device_id: str, command_id: str, now_ms: int) -> SendCommand:
        """As the device takes it. Raises a `Problem` about when it expires."""
        return SendCommand(
            *(device_id, command_id, self.command, self.parameters, round(self.timeout_s * 1000)),
            *(self.expires_ms(now_ms), self.retries),
        )
