"""The section `lorawan` of the configuration: network servers, and how frames are decoded."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from sensorium.cluster.sections import File, Section
from sensorium.ingest.lorawan import layout
from sensorium.ingest.lorawan.adapter import CayenneCodec, Codec, LayoutCodec, LorawanSettings, ScriptCodec

MAX_SCRIPT_BYTES = 1024 * 1024
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class LayoutField(Section):
    """A metric in a frame: its number times `scale`, plus `add`."""

    name: _Name
    offset: Annotated[int, Field(ge=-255, le=255)]
    """Of its first byte; below 0 from the end of the frame."""
    type: layout.FieldType
    endian: Literal["big", "little"] = "big"
    scale: _Finite = 1.0
    add: _Finite = 0.0
    bits: Annotated[list[Annotated[int, Field(ge=0, le=32)]], Field(min_length=2, max_length=2)] | None = None
    """Of an unsigned number or bool: the lowest bit, and how many."""
    f_port: Annotated[int, Field(ge=0, le=255)] | None = None
    """Only in frames of this port."""
    optional: bool = False
    """Whether a frame may end before it."""

    @model_validator(mode="after")
    def _bits_fit(self) -> Self:
        if self.bits is not None:
            low, count = self.bits
            if not (self.type == "bool" or self.type.startswith("u")):
                raise ValueError(f"bits need an unsigned type or bool, not {self.type}")
            if count < 1 or low + count > 8 * layout.SIZES[self.type]:
                raise ValueError(f"bits {low} to {low + count - 1} are not in a {self.type}")
        return self

    def field(self) -> layout.Field:
        """As the decoder takes it."""
        settings = self.model_dump()
        return layout.Field(**{**settings, "bits": None if self.bits is None else tuple(self.bits)})


class LorawanCodec(Section):
    """How the frames of one profile are decoded: one of the three."""

    cayenne: bool = False
    layout: Annotated[list[LayoutField], Field(min_length=1, max_length=256)] | None = None
    javascript: File | None = None
    """A file with `decodeUplink` (TS013), or with the older `Decoder` or `Decode`."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.cayenne + (self.layout is not None) + (self.javascript is not None) != 1:
            raise ValueError("give one of cayenne, layout and javascript")
        if self.javascript is not None and self.javascript.stat().st_size > MAX_SCRIPT_BYTES:
            raise ValueError(f"the script has more than {MAX_SCRIPT_BYTES} bytes")
        return self

    def codec(self) -> Codec:
        """As the adapter takes it."""
        if self.layout is not None:
            return LayoutCodec(tuple(each.field() for each in self.layout))
        if self.javascript is not None:
            return ScriptCodec(self.javascript.read_text(encoding="utf-8", errors="replace"))
        return CayenneCodec()


class Lorawan(Section):
    """LoRaWAN network servers. Devices are known by their DevEUI in lower case."""

    chirpstack: bool = False
    """Whether to subscribe to the events that ChirpStack v4 publishes at the broker."""
    tts_secret: Annotated[SecretStr, Field(min_length=16)] | None = None
    """What webhooks of The Things Stack send in `X-Webhook-Secret`; without it there is no such webhook."""
    codecs: dict[_Name, LorawanCodec] = Field(default_factory=dict)
    """By the device's profile (ChirpStack), model or application (The Things Stack); `default` for others."""

    def settings(self) -> LorawanSettings:
        """As the ways in take it."""
        return LorawanSettings(
            codecs={name: codec.codec() for name, codec in self.codecs.items()},
            chirpstack=self.chirpstack,
            tts_secret=None if self.tts_secret is None else self.tts_secret.get_secret_value(),
        )
