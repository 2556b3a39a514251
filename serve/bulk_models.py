"""What people send to have many devices do something or be somehow, and what they are told of it."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sensorium.actors.ports import Filter
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.replies import check_plain
from sensorium.serve.command_models import CommandFields
from sensorium.serve.pages import Page
from sensorium.storage.bulk_jobs import BulkJob

MAX_SELECTED: Final = 100_000
MAX_IDS: Final = 10_000
MAX_PER_S: Final = 10_000.0


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        check_plain(value)
    except Undecodable as error:
        raise ValueError(error.detail) from None
    return value


class SelectBody(BaseModel):
    """Active devices for which all holds that is given, as the list of devices has it; `{}`: all."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    device_type: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    device_ids: Annotated[list[str] | None, Field(min_length=1, max_length=MAX_IDS)] = None
    metadata: Annotated[
        dict[str, Any],
        AfterValidator(_plain),
        Field(description="What the device's metadata must contain."),
    ] = {}

    def which(self) -> Filter:
        """As the registry takes it."""
        return Filter(self.device_type, "active", self.metadata, self.device_ids)


PerSecond = Annotated[
    float, Field(ge=0.1, le=MAX_PER_S, description="To how many devices in a second at most.")
]
Key = Annotated[
    str | None, Field(min_length=1, max_length=256, description="The same key: the same job, not another.")
]


class BulkCommandBody(CommandFields):
    """A command to a selection of devices."""

    select: SelectBody
    per_second: PerSecond = 100.0
    idempotency_key: Key = None


class BulkTwinBody(BaseModel):
    """A merge patch of what is desired of a selection of devices."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    desired: Annotated[dict[str, Any], AfterValidator(_plain)]
    by: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] = "api"
    select: SelectBody
    per_second: PerSecond = 100.0
    idempotency_key: Key = None


def job_id_of(kind: str, key: str) -> str:
    """The id of the job with this idempotency key."""
    return blake2b(f"{kind}\0{key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


class BulkFailure(msgspec.Struct, frozen=True):
    """A device at which it failed: `state` is "refused", or the command's."""

    device_id: str
    state: str
    reason: str | None


class BulkStatus(msgspec.Struct, frozen=True):
    """How far a job is.

    Attributes:
        state: "RUNNING", "DONE" once all were given it, "CANCELLING", "CANCELLED".
        pending, given, refused, cancelled: how many of the `total` devices.
        commands: how many of its commands are in each state.
        finished: nothing more happens: it is given out, and no command is open.
        failures: the first hundred; the rest by the lists.
        spec: what was asked for.
    """

    job_id: str
    kind: str
    state: str
    created_ms: int
    per_second: float
    total: int
    pending: int
    given: int
    refused: int
    cancelled: int
    commands: Mapping[str, int]
    finished: bool
    failures: Sequence[BulkFailure]
    spec: dict[str, Any]


class BulkJobPage(Page[BulkJob], frozen=True):
    """Jobs, newest first."""


class BulkDevice(msgspec.Struct, frozen=True):
    """A device of a job: "pending", "given", "refused" or "cancelled"; and its command, once it is given."""

    device_id: str
    state: str
    reason: str | None
    command_id: str | None = None
    command_state: str | None = None


class BulkDevicePage(Page[BulkDevice], frozen=True):
    """Devices of a job in order of their ids."""


VALUES: tuple[type, ...] = (BulkStatus, BulkJobPage, BulkDevicePage)
"""Everything that is answered, for the API's document."""
