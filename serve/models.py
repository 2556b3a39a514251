"""What people send about devices, as models that hold nothing invalid. Readings and rules have their own."""

import re
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sensorium.actors.messages import Location, Patch, Register

MAX_METADATA_BYTES: Final = 16_384
MAX_METADATA_DEPTH: Final = 8
_DEVICE_ID: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f/+#]+")


def _device_id(text: str) -> str:
    if not _DEVICE_ID.fullmatch(text):
        raise ValueError("control characters and / + # cannot be part of a device id")
    return text


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds the character NUL, which cannot be stored")
    return text


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    size = len(msgspec.json.encode(metadata))
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{size} bytes as JSON; at most {MAX_METADATA_BYTES} are kept")
    level: list[Any] = [metadata]
    for _ in range(MAX_METADATA_DEPTH):
        _refuse_nul(level)
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return metadata
    raise ValueError(f"nested deeper than {MAX_METADATA_DEPTH} levels")


def _refuse_nul(level: list[Any]) -> None:
    for value in level:
        if isinstance(value, str):
            _storable(value)
        elif isinstance(value, dict):
            for key in value:
                _storable(key)


DeviceId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_device_id)]
DeviceType = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_storable)]
Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_metadata),
    Field(
        description=f"Any JSON object of at most {MAX_METADATA_BYTES} bytes and {MAX_METADATA_DEPTH} levels."
    ),
]
Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]
Isolation = Literal["process", "shared"]
_ISOLATION: Final = "A process of its own, or one with others; null: what the profile of its type says."
Address = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_storable)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LocationBody(_Body):
    """Where a device stands: degrees (WGS 84), both or neither, and an address in words."""

    latitude: Latitude | None = None
    longitude: Longitude | None = None
    address: Address | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude and longitude go together")
        return self

    def value(self) -> Location:
        """The same for the device."""
        return Location(self.latitude, self.longitude, self.address)


class DeviceBody(_Body):
    """A device to register."""

    device_id: DeviceId
    device_type: DeviceType
    location: LocationBody | None = None
    metadata: Metadata = {}
    isolation: Isolation | None = Field(default=None, description=_ISOLATION)

    def value(self) -> Register:
        """The same for the device."""
        location = self.location.value() if self.location is not None else None
        return Register(self.device_id, self.device_type, location, self.metadata, isolation=self.isolation)


Person = Annotated[str, Field(max_length=128), AfterValidator(_storable)]


class AckBody(_Body):
    """Who took note of an alarm, or takes that back."""

    by: Person = ""


class AssignBody(AckBody):
    """Whose an alarm is to look after; "" for nobody's."""

    assignee: Person


class CommentBody(AckBody):
    """What somebody says about an alarm."""

    text: Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_storable)]


class ShelveBody(AckBody):
    """For how long an alarm is to be let alone, in seconds from now."""

    for_s: Annotated[float, Field(ge=1, le=2_678_400)]


class DevicePatch(_Body):
    """A JSON merge patch (RFC 7396) of a device: what is absent stays, null removes."""

    device_type: DeviceType = ""
    location: dict[str, Any] | None = Field(
        default=None, description="Merged into the location; null removes it."
    )
    metadata: Metadata | None = Field(default=None, description="Merged into the metadata; null empties it.")
    isolation: Isolation | None = Field(default=None, description=_ISOLATION)

    @property
    def touches_location(self) -> bool:
        """Whether the location is to change."""
        return "location" in self.model_fields_set

    @property
    def needs_old(self) -> bool:
        """Whether what the device is now must be known to merge."""
        return self.touches_location or (self.metadata is None and "metadata" in self.model_fields_set)

    def value(self, device_id: str, location: Location | None, old_metadata: dict[str, Any]) -> Patch:
        """The same for the device: `location` already merged, `old_metadata` what null would empty."""
        metadata = self.metadata
        if metadata is None and "metadata" in self.model_fields_set:
            metadata = dict.fromkeys(old_metadata)
        isolation = None
        if "isolation" in self.model_fields_set:
            isolation = self.isolation or ""
        return Patch(device_id, self.device_type or None, location, metadata, isolation=isolation)
